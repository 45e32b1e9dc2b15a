//! Ternary weights whose scales are float16: one for all, for each row, or for every 64, 128 or 256 weights of a row.
//!
//! A buffer of scales has one of two forms, told apart by `groups`, the scales of a row: with one it holds a float32 for
//! each row; with more it holds float16, two in a word, `[rows, ceil(groups / 2)]`, one for every [`GROUP`] weights
//! (scales of larger groups stand there several times: kernels know one size).

use bytemuck::{Pod, Zeroable};
use half::f16;
use rayon::prelude::*;

use super::packed_words;
use crate::cut::{Cut, along_first};
use crate::kernel::{Bufs, Kernel, NO_SCRATCH, Params, grid_1d, read, write};

/// Weights that a float16 of the buffer of scales is for.
pub const GROUP: usize = 64;

/// Words of the scales of `rows` rows with so many each.
pub const fn scale_words(rows: usize, groups: usize) -> usize {
    if groups == 1 { rows } else { rows * groups.div_ceil(2) }
}

/// Words of one row's scales.
pub const fn row_scale_words(groups: usize) -> usize {
    if groups == 1 { 1 } else { groups.div_ceil(2) }
}

/// A buffer of scales in one of its two forms.
#[derive(Clone, Copy)]
pub(crate) enum Scales<'a> {
    /// `[rows]`.
    Rows(&'a [f32]),
    /// float16 `[rows, stride]`.
    Groups { halves: &'a [u16], stride: usize },
}

impl<'a> Scales<'a> {
    /// The scales in `words`, so many a row.
    pub fn of(words: &'a [u32], groups: u32) -> Self {
        if groups == 1 {
            return Scales::Rows(bytemuck::cast_slice(words));
        }
        Scales::Groups { halves: bytemuck::cast_slice(words), stride: 2 * row_scale_words(groups as usize) }
    }
    /// The scale of element `e` of a row.
    pub fn at(&self, row: usize, e: usize) -> f32 {
        match self {
            Scales::Rows(all) => all[row],
            Scales::Groups { halves, stride } => f16::from_bits(halves[row * stride + e / GROUP]).to_f32(),
        }
    }
}

/// Shapes: `w [rows, cols]`, `sums` (of every `per` weights, or one), `codes [rows, ceil(cols/16)]`, `scale` as the module says.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
pub struct GroupShape {
    /// Output features.
    pub rows: u32,
    /// Input features.
    pub cols: u32,
    /// Weights of one sum, which divide a row; 0: one sum for all rows.
    pub per: u32,
    /// Scales of a row in the buffer: 1, or `cols / 64`.
    pub groups: u32,
    /// What a sum is divided by.
    pub count: f32,
}

/// `s = float16(max(sum / count, 1e-5))`, `q = clamp(round_half_even(w / s), −1, 1)`; sums are those of
/// [`super::ROW_ABS_SUM`] over rows of `per` weights, or the mean of [`super::ABS_MEAN`] with a count of 1. A scale beyond
/// float16 becomes its largest number. Bindings: `w`, `sums`, `codes`, `scale`. One thread per packed word.
pub static TERNARISE_GROUPS: Kernel = Kernel {
    name: "ternarise_groups",
    revision: 1,
    wgsl: &[
        include_str!("groups.wgsl"),
        include_str!("../divide.wgsl"),
        include_str!("../half_bits.wgsl"),
        include_str!("../half_value.wgsl"),
    ],
    bindings: &[read("w"), read("sums"), write("codes"), write("scale")],
    grid: |p| {
        let s: GroupShape = p.get();
        grid_1d(s.rows as usize * packed_words(s.cols as usize), 256)
    },
    cut: rows,
    variants: &[],
    scratch: NO_SCRATCH,
    cpu: ternarise,
};

fn rows(p: &Params) -> Vec<Cut> {
    let s: GroupShape = p.get();
    let cols = s.cols as usize;
    let sums = if s.per == 0 { 0 } else { cols / s.per as usize };
    along_first(p, &[cols, sums, packed_words(cols), row_scale_words(s.groups as usize)])
}

/// The scale that is stored for a mean.
fn rounded(mean: f32) -> f16 {
    f16::from_f32(mean.max(1e-5)).min(f16::MAX)
}

fn ternarise(p: &Params, bufs: Bufs<'_>) {
    let s: GroupShape = p.get();
    let [w, sums, codes, scale] = bufs.take();
    put(&s, w.f32(), sums.f32(), codes.u32_mut(), scale.u32_mut());
}

fn put(s: &GroupShape, w: &[f32], sums: &[f32], codes: &mut [u32], scale: &mut [u32]) {
    let (cols, words) = (s.cols as usize, packed_words(s.cols as usize));
    let per_row = if s.per == 0 { 0 } else { cols / s.per as usize };
    let rows = codes.par_chunks_exact_mut(words).zip(scale.par_chunks_exact_mut(row_scale_words(s.groups as usize)));
    rows.zip(w.par_chunks_exact(cols)).take(s.rows as usize).enumerate().for_each(|(r, ((codes, scale), w))| {
        let of = |e: usize| rounded(sums[if s.per == 0 { 0 } else { r * per_row + e / s.per as usize }] / s.count);
        if s.groups == 1 {
            let one = of(0).to_f32();
            scale[0] = one.to_bits();
            super::cpu::pack_row(w, one, 0, codes);
            return;
        }
        for (pair, word) in scale.iter_mut().enumerate() {
            let second = 128 * pair + GROUP;
            let high = if second < cols { u32::from(of(second).to_bits()) } else { 0 };
            *word = u32::from(of(128 * pair).to_bits()) | high << 16;
        }
        let groups = w.chunks(GROUP).zip(codes.chunks_mut(GROUP / 16)).enumerate();
        groups.for_each(|(g, (w, codes))| super::cpu::pack_row(w, of(g * GROUP).to_f32(), 0, codes));
    });
}

/// Packs a matrix on the host as the kernels do: codes and scales; `per` and `groups` as in [`GroupShape`].
pub(crate) fn pack(w: &[f32], cols: usize, per: usize, groups: usize) -> (Vec<u32>, Vec<u32>) {
    let rows = w.len() / cols;
    let (sums, count) = match per {
        0 => (vec![super::cpu::mean(w, cols)], 1.0),
        _ => (w.par_chunks(per).map(super::cpu::abs_sum).collect(), per as f32),
    };
    let s = GroupShape { rows: rows as u32, cols: cols as u32, per: per as u32, groups: groups as u32, count };
    let (mut codes, mut scale) = (vec![0; rows * packed_words(cols)], vec![0; scale_words(rows, groups)]);
    put(&s, w, &sums, &mut codes, &mut scale);
    (codes, scale)
}

/// Values of a whole matrix.
pub(crate) fn unpack(codes: &[u32], scale: &[u32], cols: usize, groups: usize) -> Vec<f32> {
    let rows = codes.len() / packed_words(cols).max(1);
    let mut out = vec![0f32; rows * cols];
    let scales = Scales::of(scale, groups as u32);
    out.par_chunks_exact_mut(cols.max(1)).enumerate().for_each(|(row, out)| values(codes, scales, cols, row, 0, out));
    out
}

crate::simd! {
    /// Values of a row of codes from element `first` on, a multiple of 16.
    fn spread(codes: &[u32], scale: f32, out: &mut [f32]) {
        for (out, word) in out.chunks_mut(16).zip(codes) {
            for (e, v) in out.iter_mut().enumerate() {
                let code = (word >> ((e % 4) * 8 + (e / 4) * 2) & 3) as i32 - 1;
                // A scale may be negative or infinite: 0 stays 0.
                *v = if code == 0 { 0.0 } else { code as f32 * scale };
            }
        }
    }
}

/// Values of elements `from .. from + out.len()` of packed row `row`; `from` is a multiple of 16.
pub(crate) fn values(codes: &[u32], scales: Scales<'_>, cols: usize, row: usize, from: usize, out: &mut [f32]) {
    let words = &codes[row * packed_words(cols)..][..packed_words(cols)];
    match scales {
        Scales::Rows(all) => spread(&words[from / 16..], all[row], out),
        Scales::Groups { .. } => {
            // The first part ends where a group does.
            let (head, rest) = out.split_at_mut((GROUP - from % GROUP).min(out.len()) % GROUP);
            spread(&words[from / 16..], scales.at(row, from), head);
            let from = from + head.len();
            for (g, out) in rest.chunks_mut(GROUP).enumerate() {
                let at = from + g * GROUP;
                spread(&words[at / 16..], scales.at(row, at), out);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scales_of_nothing_of_the_smallest_and_the_largest() {
        // Zeros, subnormal float16, beyond float16, and an ordinary group.
        let magnitudes = [0.0, 2e-5, 1e6, 0.5];
        let w: Vec<f32> = magnitudes.iter().flat_map(|m| (0..GROUP).map(move |i| if i % 2 == 0 { *m } else { -*m })).collect();
        let (codes, scales) = pack(&w, w.len(), GROUP, 4);
        let halves: &[u16] = bytemuck::cast_slice(&scales);
        let stored: Vec<f32> = halves.iter().map(|h| f16::from_bits(*h).to_f32()).collect();
        assert_eq!(stored, [f16::from_f32(1e-5).to_f32(), f16::from_f32(2e-5).to_f32(), 65_504.0, 0.5]);
        let mut back = vec![0f32; w.len()];
        values(&codes, Scales::of(&scales, 4), w.len(), 0, 0, &mut back);
        assert!(back[..64].iter().all(|v| *v == 0.0));
        assert!(back[64..128].iter().all(|v| v.abs() == stored[1]) && back[128..192].iter().all(|v| v.abs() == 65_504.0));
        let mut part = vec![0f32; 100];
        values(&codes, Scales::of(&scales, 4), w.len(), 0, 112, &mut part);
        assert_eq!(part, back[112..212]);
    }
}
