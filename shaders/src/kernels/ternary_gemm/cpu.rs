//! CPU twin of the ternary product: codes of a block of outputs unpacked once into a panel `[k/4, outputs]` of four
//! codes a word, then multiply-adds of unsigned codes with signed activations for several tokens at a time; row sums
//! subtracted once. Single tokens go straight over the packed words. All paths are exact integers.

use rayon::prelude::*;

use super::Shape;
use super::tile::{self, OUTS, ROWS, Tile};
use crate::kernel::{Bufs, Params};

/// Operands of one product.
pub(crate) struct Product<'a> {
    pub q: &'a [u32],
    pub step: &'a [f32],
    pub qsum: &'a [i32],
    pub codes: &'a [u32],
    pub scale: &'a [f32],
}

pub(crate) fn ternary_gemm(p: &Params, bufs: Bufs<'_>) {
    let s: Shape = p.get();
    let [q, step, qsum, codes, scale, y] = bufs.take();
    let ops = Product { q: q.u32(), step: step.f32(), qsum: qsum.i32(), codes: codes.u32(), scale: scale.f32() };
    product(tile::best(), &s, &ops, y.f32_mut());
}

/// The product with a given tile; all tiles give the same bits.
pub(crate) fn product(tile: Tile, s: &Shape, ops: &Product<'_>, y: &mut [f32]) {
    let (rows, outs, words) = (s.rows as usize, s.outs as usize, (s.cols as usize).div_ceil(16));
    let blocks = outs.div_ceil(OUTS);
    // Each task makes the panels of some outputs and runs all tokens over them, into a buffer of its own.
    let per = blocks.div_ceil(rayon::current_num_threads() * 3).clamp(1, 8);
    let parts: Vec<(usize, Vec<f32>)> = (0..blocks.div_ceil(per))
        .into_par_iter()
        .map(|part| {
            let (first, last) = (part * per * OUTS, outs.min((part + 1) * per * OUTS));
            let width = last - first;
            let mut out = vec![0f32; rows * width];
            let mut panel = vec![0u32; words * 4 * OUTS];
            for block in (first..last).step_by(OUTS) {
                let n = OUTS.min(last - block);
                unpack(&ops.codes[block * words..(block + n) * words], words, &mut panel);
                for r0 in (0..rows).step_by(ROWS) {
                    let m = ROWS.min(rows - r0);
                    let mut acc = [0i32; ROWS * OUTS];
                    (tile.run)(words * 4, m, &ops.q[r0 * words * 4..(r0 + m) * words * 4], &panel, &mut acc);
                    for i in 0..m {
                        let (sum, step) = (ops.qsum[r0 + i], ops.step[r0 + i]);
                        let line = &mut out[(r0 + i) * width + block - first..][..n];
                        for ((o, a), scale) in line.iter_mut().zip(&acc[i * OUTS..]).zip(&ops.scale[block..]) {
                            *o = ((a - sum) as f32 * step) * scale;
                        }
                    }
                }
            }
            (first, out)
        })
        .collect();
    y[..rows * outs].par_chunks_mut(outs).enumerate().for_each(|(r, y)| {
        for (first, out) in &parts {
            let width = out.len() / rows;
            let y = &mut y[*first..first + width];
            let out = &out[r * width..(r + 1) * width];
            if s.add == 1 {
                y.iter_mut().zip(out).for_each(|(y, o)| *y += o);
            } else {
                y.copy_from_slice(out);
            }
        }
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

    #[test]
    fn every_tile_is_exact() {
        let mut x = 7u32;
        let mut next = move || {
            x = x.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            x >> 9
        };
        for (rows, outs, cols) in [(1, 1, 1), (3, 33, 17), (13, 70, 256), (30, 31, 1000)] {
            let words = cols_words(cols);
            let values: Vec<i8> = (0..rows * words * 16).map(|e| if e % (words * 16) < cols { (next() % 255) as i8 } else { 0 }).collect();
            let weights: Vec<i32> = (0..outs * cols).map(|_| (next() % 3) as i32 - 1).collect();
            let mut codes = vec![0x5555_5555u32; outs * words];
            for o in 0..outs {
                for e in 0..cols {
                    let shift = (e % 4) * 8 + (e / 4 % 4) * 2;
                    let word = &mut codes[o * words + e / 16];
                    *word = *word & !(3 << shift) | ((weights[o * cols + e] + 1) as u32) << shift;
                }
            }
            let qsum: Vec<i32> = values.chunks(words * 16).map(|r| r.iter().map(|v| i32::from(*v)).sum()).collect();
            let q: Vec<u32> = bytemuck::pod_collect_to_vec(&values);
            let (step, scale) = (vec![1.0; rows], vec![1.0; outs]);
            let s = Shape { rows: rows as u32, outs: outs as u32, cols: cols as u32, add: 0 };
            for tile in tile::all() {
                let mut y = vec![0f32; rows * outs];
                product(tile, &s, &Product { q: &q, step: &step, qsum: &qsum, codes: &codes, scale: &scale }, &mut y);
                for r in 0..rows {
                    for o in 0..outs {
                        let want: i32 = (0..cols).map(|e| i32::from(values[r * words * 16 + e]) * weights[o * cols + e]).sum();
                        assert_eq!(y[r * outs + o], want as f32, "{rows}x{outs}x{cols} at {r},{o}, {}", tile.name);
                    }
                }
            }
        }
    }

    fn cols_words(cols: usize) -> usize {
        cols.div_ceil(16)
    }
}
