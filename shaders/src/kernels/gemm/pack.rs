//! Operands of the f32 products in panels: as many rows or columns side by side as a tile has, k after k.

use rayon::prelude::*;

use super::tile::Tile;
use crate::kernels::act_quant::RowScale;
use crate::kernels::halves::rows::to_floats;
use crate::kernels::ternary::groups::{Scales, values};
use crate::simd::scratch;

/// How an operand lies in memory.
#[derive(Clone, Copy)]
pub(crate) enum Operand<'a> {
    /// `[outer, k]`: k contiguous.
    KContiguous(&'a [f32], usize),
    /// `[k, outer]`: outer contiguous.
    OuterContiguous(&'a [f32], usize),
    /// `[outer, k]` of float16: k contiguous.
    Half(&'a [u16], usize),
    /// Packed ternary rows `[k, words]` with a scale per k.
    Ternary { codes: &'a [u32], scale: &'a [f32], words: usize },
    /// Packed ternary rows of `cols` weights `[k, ceil(cols/16)]`, along the outer side.
    TernaryGroups { codes: &'a [u32], scales: Scales<'a>, cols: usize },
    /// Packed ternary rows of `cols` weights `[outer, ceil(cols/16)]`, along k.
    TernaryRows { codes: &'a [u32], scales: Scales<'a>, cols: usize },
    /// Packed bytes `[k, words]` with a step per k.
    Bytes { q: &'a [u32], scales: &'a [RowScale], words: usize },
}

/// Packs an operand from its `first` row or column on into panels `[outer / w][kc][w]`, zero padded.
pub(super) fn pack(src: &Operand<'_>, outer: usize, k0: usize, first: usize, kc: usize, w: usize, out: &mut [f32]) {
    let together = abreast(w) * w;
    out.par_chunks_mut(kc * together).enumerate().for_each(|(i, out)| pack_panels(src, outer, k0, first + i * together, kc, w, out));
}

/// Panels of a width that are packed at a time: about 64 floats of each row.
const fn abreast(w: usize) -> usize {
    64 / w
}

/// At most [`abreast`] panels; the last ones of an operand, or of the columns that are packed together, may be fewer.
fn pack_panels(src: &Operand<'_>, outer: usize, k0: usize, first: usize, kc: usize, w: usize, out: &mut [f32]) {
    let all = out.len() == kc * abreast(w) * w && first + abreast(w) * w <= outer;
    match (*src, w) {
        (Operand::OuterContiguous(x, ld), 6) if all => copy_panels::<6>(x, ld, k0, first, out),
        (Operand::OuterContiguous(x, ld), 12) if all => copy_panels::<12>(x, ld, k0, first, out),
        (Operand::OuterContiguous(x, ld), 16) if all => copy_panels::<16>(x, ld, k0, first, out),
        (Operand::OuterContiguous(x, ld), 32) if all => copy_panels::<32>(x, ld, k0, first, out),
        _ => {
            let panels = out.chunks_exact_mut((kc * w).max(1)).enumerate();
            panels.for_each(|(panel, out)| pack_panel(src, outer, k0, first + panel * w, w, out));
        }
    }
}

/// One panel `[kc][w]`: rows or columns from `first` on, zero padded.
pub(super) fn pack_panel(src: &Operand<'_>, outer: usize, k0: usize, first: usize, w: usize, out: &mut [f32]) {
    let width = w.min(outer - first);
    if width < w {
        out.fill(0.0);
    }
    // Whole panels know their width when they are compiled: no call for a handful of floats.
    match (width == w, w) {
        (true, 6) => panel_of::<6>(src, k0, first, out),
        (true, 12) => panel_of::<12>(src, k0, first, out),
        (true, 16) => panel_of::<16>(src, k0, first, out),
        (true, 32) => panel_of::<32>(src, k0, first, out),
        _ => panel(src, k0, first, w, width, out),
    }
}

fn panel_of<const W: usize>(src: &Operand<'_>, k0: usize, first: usize, out: &mut [f32]) {
    match *src {
        Operand::OuterContiguous(x, ld) => copy_rows::<W>(x, ld, k0, first, out),
        Operand::KContiguous(x, ld) => turn_rows::<W>(x, ld, k0, first, out),
        // Whole words: panels begin where a word does.
        Operand::Ternary { codes, scale, words } if W.is_multiple_of(16) && first.is_multiple_of(16) => {
            ternary_rows::<W>(codes, scale, words, k0, first, out)
        }
        Operand::Bytes { q, scales, words } => scale_rows::<W>(bytemuck::cast_slice(q), scales, words, k0, first, out),
        _ => panel(src, k0, first, W, W, out),
    }
}

crate::simd! {
    fn copy_rows<W>(x: &[f32], ld: usize, k0: usize, first: usize, out: &mut [f32]) {
        for (k, row) in out.as_chunks_mut::<W>().0.iter_mut().enumerate() {
            let at = (k0 + k) * ld + first;
            if let Some(from) = x[at..].first_chunk::<W>() {
                *row = *from;
            }
        }
    }

    /// [`abreast`] panels row by row: what neighbours need lies together, and each row is read once.
    fn copy_panels<W>(x: &[f32], ld: usize, k0: usize, first: usize, out: &mut [f32]) {
        let kc = out.len() / (abreast(W) * W);
        let out = out.as_chunks_mut::<W>().0;
        for k in 0..kc {
            let row = &x[(k0 + k) * ld + first..][..abreast(W) * W];
            for (panel, from) in row.as_chunks::<W>().0.iter().enumerate() {
                out[panel * kc + k] = *from;
            }
        }
    }

    /// Rows along k become columns, eight of k at a time.
    fn turn_rows<W>(x: &[f32], ld: usize, k0: usize, first: usize, out: &mut [f32]) {
        let kc = out.len() / W;
        let line = |j: usize| x[(first + j) * ld + k0..][..kc].as_chunks::<8>();
        let (blocks, rest) = out.as_chunks_mut::<W>().0.split_at_mut(kc / 8 * 8);
        for (b, out) in blocks.as_chunks_mut::<8>().0.iter_mut().enumerate() {
            for j in 0..W {
                for (out, v) in out.iter_mut().zip(&line(j).0[b]) {
                    out[j] = *v;
                }
            }
        }
        for (k, out) in rest.iter_mut().enumerate() {
            for (j, v) in out.iter_mut().enumerate() {
                *v = line(j).1[k];
            }
        }
    }

    fn ternary_rows<W>(codes: &[u32], scale: &[f32], words: usize, k0: usize, first: usize, out: &mut [f32]) {
        for (k, row) in out.as_chunks_mut::<W>().0.iter_mut().enumerate() {
            let line = &codes[(k0 + k) * words + first / 16..];
            let s = scale[k0 + k];
            for (out, word) in row.as_chunks_mut::<16>().0.iter_mut().zip(line) {
                for (e, v) in out.iter_mut().enumerate() {
                    let shift = (e % 4) * 8 + (e / 4) * 2;
                    // A learned scale may be negative: 0 stays 0.
                    let code = (word >> shift & 3) as i32 - 1;
                    *v = if code == 0 { 0.0 } else { code as f32 * s };
                }
            }
        }
    }

    fn scale_rows<W>(bytes: &[i8], scales: &[RowScale], words: usize, k0: usize, first: usize, out: &mut [f32]) {
        for (k, row) in out.as_chunks_mut::<W>().0.iter_mut().enumerate() {
            let at = (k0 + k) * words * 4 + first;
            let s = scales[k0 + k].step;
            if let Some(from) = bytes[at..].first_chunk::<W>() {
                for (v, b) in row.iter_mut().zip(from) {
                    *v = f32::from(*b) * s;
                }
            }
        }
    }

    fn panel(src: &Operand<'_>, k0: usize, first: usize, w: usize, width: usize, out: &mut [f32]) {
        match *src {
            Operand::OuterContiguous(x, ld) => {
                for (k, row) in out.chunks_exact_mut(w).enumerate() {
                    let at = (k0 + k) * ld + first;
                    row[..width].copy_from_slice(&x[at..at + width]);
                }
            }
            Operand::KContiguous(x, ld) => {
                let kc = out.len() / w;
                for j in 0..width {
                    let at = (first + j) * ld + k0;
                    for (k, v) in x[at..at + kc].iter().enumerate() {
                        out[k * w + j] = *v;
                    }
                }
            }
            Operand::Half(x, ld) => turn_made(out, w, width, |j, floats| {
                let at = (first + j) * ld + k0;
                to_floats(&x[at..at + floats.len()], floats);
            }),
            // Values begin where a word of codes does: chains are cut at multiples of 16.
            Operand::TernaryRows { codes, scales, cols } => {
                turn_made(out, w, width, |j, floats| values(codes, scales, cols, first + j, k0, floats));
            }
            Operand::TernaryGroups { codes, scales, cols } => {
                let skip = first % 16;
                scratch::with(width + skip, |floats| {
                    for (k, row) in out.chunks_exact_mut(w).enumerate() {
                        values(codes, scales, cols, k0 + k, first - skip, floats);
                        row[..width].copy_from_slice(&floats[skip..]);
                    }
                });
            }
            Operand::Ternary { codes, scale, words } => {
                for (k, row) in out.chunks_exact_mut(w).enumerate() {
                    let line = &codes[(k0 + k) * words..(k0 + k + 1) * words];
                    let s = scale[k0 + k];
                    let table = [-s, 0.0, s, 0.0];
                    for (j, v) in row[..width].iter_mut().enumerate() {
                        let e = first + j;
                        let shift = (e % 4) * 8 + (e / 4 % 4) * 2;
                        *v = table[(line[e / 16] >> shift & 3) as usize];
                    }
                }
            }
            Operand::Bytes { q, scales, words } => {
                let bytes: &[i8] = bytemuck::cast_slice(q);
                for (k, row) in out.chunks_exact_mut(w).enumerate() {
                    let at = (k0 + k) * words * 4 + first;
                    let s = scales[k0 + k].step;
                    for (v, b) in row[..width].iter_mut().zip(&bytes[at..at + width]) {
                        *v = f32::from(*b) * s;
                    }
                }
            }
        }
    }
}

/// A panel `[kc][w]` of which `width` columns are made one after the other.
fn turn_made(out: &mut [f32], w: usize, width: usize, make: impl Fn(usize, &mut [f32])) {
    scratch::with(out.len() / w, |floats| {
        for j in 0..width {
            make(j, floats);
            for (k, v) in floats.iter().enumerate() {
                out[k * w + j] = *v;
            }
        }
    });
}

/// A packed right operand `[n / nr][depth][nr]`, of which a product may take the first of its depth.
#[derive(Clone, Copy, Default)]
pub(crate) struct Panels<'a> {
    data: &'a [f32],
    depth: usize,
}

impl<'a> Panels<'a> {
    /// Panels that hold `depth` floats along k of each column.
    pub(super) fn of(data: &'a [f32], depth: usize) -> Self {
        Self { data, depth }
    }
    /// The first `kc` of a panel.
    pub(super) fn panel(&self, i: usize, kc: usize, nr: usize) -> &'a [f32] {
        &self.data[i * self.depth * nr..][..kc * nr]
    }
}

/// A right operand packed once for several products on the calling thread.
pub(crate) fn pack_right<'a>(tile: Tile, b: Operand<'_>, n: usize, k: usize, out: &'a mut [f32]) -> Panels<'a> {
    for (i, out) in out[..panel_floats(tile, n, k)].chunks_mut(k * abreast(tile.nr) * tile.nr).enumerate() {
        pack_panels(&b, n, 0, i * abreast(tile.nr) * tile.nr, k, tile.nr, out);
    }
    Panels::of(out, k)
}

/// Floats of a packed right operand `[k, n]`.
pub(crate) fn panel_floats(tile: Tile, n: usize, k: usize) -> usize {
    n.div_ceil(tile.nr) * tile.nr * k
}
