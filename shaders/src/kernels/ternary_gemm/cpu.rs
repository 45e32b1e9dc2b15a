//! CPU twin of the ternary product. Where AVX2 or NEON is there tokens go straight over the packed words (see `direct` and
//! `neon`); many tokens on VNNI, and the portable version, unpack the codes of a block of outputs once into a panel
//! `[k/4, outputs]` of four codes a word, then multiply and add unsigned codes with signed activations for several tokens
//! at a time. Row sums are subtracted once. All paths are exact integers.
#![allow(unsafe_code)]

use rayon::prelude::*;

use super::Shape;
use super::product::{Product, Target};
use super::tile::{self, OUTS, ROWS, Tile};
use crate::kernel::{Bufs, Params};
use crate::simd::scratch;

pub(crate) fn ternary_gemm(p: &Params, bufs: Bufs<'_>) {
    let s: Shape = p.get();
    let [q, scales, codes, scale, y] = bufs.take();
    let scales = bytemuck::cast_slice(scales.u32());
    let ops = Product { q: q.u32(), scales, codes: codes.u32(), scale: scale.f32() };
    let (rows, outs) = (s.rows as usize, s.outs as usize);
    path(rows)(&s, &ops, &Target::new(&mut y.f32_mut()[..rows * outs], outs));
}

/// Bytes of activations that a product arranges anew.
pub(crate) fn scratch(p: &Params) -> u64 {
    let s: Shape = p.get();
    u64::from(s.rows) * u64::from(s.cols).next_multiple_of(128)
}

/// Tokens from which on unpacking panels pays where the CPU has a dot product of bytes.
const PANEL_ROWS: usize = 96;
/// Tokens from which on the longer vectors of VNNI beat AVX2: with fewer, reading the codes is what takes the time.
#[cfg(target_arch = "x86_64")]
const VNNI_ROWS: usize = 3;

type Path = fn(&Shape, &Product<'_>, &Target<'_>);

/// The fastest path of this CPU.
fn path(rows: usize) -> Path {
    let best = tile::best();
    if rows >= PANEL_ROWS && best.byte_dots {
        return |s, ops, y| panels(tile::best(), s, ops, y);
    }
    #[cfg(target_arch = "x86_64")]
    if rows >= VNNI_ROWS && super::vnni::here() {
        return super::vnni::product;
    }
    #[cfg(target_arch = "x86_64")]
    if crate::simd::avx2() {
        return super::direct::product;
    }
    #[cfg(target_arch = "aarch64")]
    {
        if crate::simd::dotprod() {
            return super::neon::dotprod;
        }
        if crate::simd::neon() {
            return super::neon::plain;
        }
    }
    |s, ops, y| panels(tile::best(), s, ops, y)
}

/// The product over panels, with a given tile.
fn panels(tile: Tile, s: &Shape, ops: &Product<'_>, y: &Target<'_>) {
    let (rows, outs, words) = (s.rows as usize, s.outs as usize, (s.cols as usize).div_ceil(16));
    (0..outs.div_ceil(OUTS)).into_par_iter().for_each(|block| {
        let first = block * OUTS;
        let n = OUTS.min(outs - first);
        scratch::with_words(words * 4 * OUTS, |panel| {
            unpack(&ops.codes[first * words..(first + n) * words], words, panel);
            let mut acc = [0i32; ROWS * OUTS];
            for r0 in (0..rows).step_by(ROWS) {
                let m = ROWS.min(rows - r0);
                (tile.run)(words * 4, m, &ops.q[r0 * words * 4..(r0 + m) * words * 4], panel, &mut acc);
                // SAFETY: these outputs are this block's, and each block is one task's.
                unsafe { y.put(s, ops, r0..r0 + m, (first, n), &acc) };
            }
        });
    });
}

/// Packed rows `[n, words]` into `[words·4, OUTS]` words of four codes; missing outputs keep what is there.
fn unpack(codes: &[u32], words: usize, panel: &mut [u32]) {
    for (o, row) in codes.chunks_exact(words).enumerate() {
        for (i, w) in row.iter().enumerate() {
            for p in 0..4 {
                panel[(i * 4 + p) * OUTS + o] = (w >> (2 * p)) & 0x0303_0303;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::act_quant::RowScale;

    #[test]
    fn every_tile_is_exact() {
        let mut x = 7u32;
        let mut next = move || {
            x = x.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            x >> 9
        };
        // Every number of tokens that a group can have; the last case has the largest products throughout.
        let shapes = [(1, 1, 1), (3, 33, 17), (2, 37, 100), (13, 70, 256), (12, 6, 64), (30, 31, 1000), (15, 34, 300), (9, 40, 4500)];
        let cases = shapes.map(|shape| (shape, false)).into_iter().chain([((9, 5, 4500), true)]);
        for ((rows, outs, cols), largest) in cases {
            let words = cols_words(cols);
            let mut value = || if largest { -128 } else { (next() % 255) as i8 };
            let values: Vec<i8> = (0..rows * words * 16).map(|e| if e % (words * 16) < cols { value() } else { 0 }).collect();
            let weights: Vec<i32> = (0..outs * cols).map(|_| if largest { 1 } else { (next() % 3) as i32 - 1 }).collect();
            let mut codes = vec![0x5555_5555u32; outs * words];
            for o in 0..outs {
                for e in 0..cols {
                    let shift = (e % 4) * 8 + (e / 4 % 4) * 2;
                    let word = &mut codes[o * words + e / 16];
                    *word = *word & !(3 << shift) | ((weights[o * cols + e] + 1) as u32) << shift;
                }
            }
            let row = |r: &[i8]| RowScale { step: 1.0, sum: r.iter().map(|v| i32::from(*v)).sum() };
            let scales: Vec<RowScale> = values.chunks(words * 16).map(row).collect();
            let q: Vec<u32> = bytemuck::pod_collect_to_vec(&values);
            let scale = vec![1.0; outs];
            let s = Shape { rows: rows as u32, outs: outs as u32, cols: cols as u32, add: 0 };
            type Run = Box<dyn Fn(&Shape, &Product<'_>, &Target<'_>)>;
            let mut paths: Vec<(&str, Run)> = vec![("the fastest", Box::new(path(rows)))];
            for tile in tile::all() {
                paths.push((tile.name, Box::new(move |s, ops, y| panels(tile, s, ops, y))));
            }
            #[cfg(target_arch = "x86_64")]
            if crate::simd::avx2() {
                paths.push(("avx2", Box::new(super::super::direct::product)));
            }
            #[cfg(target_arch = "x86_64")]
            if super::super::vnni::here() {
                paths.push(("vnni over words", Box::new(super::super::vnni::product)));
            }
            #[cfg(target_arch = "aarch64")]
            {
                paths.push(("neon", Box::new(super::super::neon::plain)));
                if crate::simd::dotprod() {
                    paths.push(("dotprod", Box::new(super::super::neon::dotprod)));
                }
            }
            for (name, run) in paths {
                let mut y = vec![0f32; rows * outs];
                let ops = Product { q: &q, scales: &scales, codes: &codes, scale: &scale };
                run(&s, &ops, &Target::new(&mut y, outs));
                for r in 0..rows {
                    for o in 0..outs {
                        let want: i32 = (0..cols).map(|e| i32::from(values[r * words * 16 + e]) * weights[o * cols + e]).sum();
                        assert_eq!(y[r * outs + o], want as f32, "{rows}x{outs}x{cols} at {r},{o}, {name}");
                    }
                }
            }
        }
    }

    fn cols_words(cols: usize) -> usize {
        cols.div_ceil(16)
    }
}
