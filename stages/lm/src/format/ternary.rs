//! Ternary codes of a linear, outside a program: for export and import.

use rayon::prelude::*;

use super::tensors::PackedMatrix;
use crate::config::{Group, ModelConfig, Weights};

/// Codes −1, 0, +1 of a linear and the scale of each row.
#[derive(Clone, Debug, PartialEq)]
pub struct Ternary {
    /// `[rows, cols]`.
    pub codes: Vec<i8>,
    /// One value (absmean) or one per row (threshold).
    pub scales: Vec<f32>,
    /// Rows.
    pub rows: usize,
    /// Columns.
    pub cols: usize,
}

impl Ternary {
    /// Scale of a row.
    pub fn scale(&self, row: usize) -> f32 {
        if self.scales.len() == 1 { self.scales[0] } else { self.scales[row] }
    }
    /// Codes of a row.
    pub fn row(&self, row: usize) -> &[i8] {
        &self.codes[row * self.cols..(row + 1) * self.cols]
    }
}

/// Absmean ternarisation of BitNet b1.58: s = max(mean|W|, 1e-5), q = clamp(round_half_even(W / s), −1, 1); the codes and
/// the scale that the kernels compute.
pub fn ternarise(w: &[f32], rows: usize, cols: usize) -> (Vec<i8>, f32) {
    debug_assert_eq!(w.len(), rows * cols);
    let (words, scale) = flow_shaders::pack_ternary(w, cols, 0);
    (unpack(&words, cols), scale)
}

/// Packed rows of 2-bit codes (see `flow_shaders::kernels::ternary`) as −1, 0, +1.
pub(super) fn unpack(words: &[u32], cols: usize) -> Vec<i8> {
    let code = |row: &[u32], e: usize| (row[e / 16] >> ((e % 4) * 8 + (e / 4 % 4) * 2) & 3) as i8 - 1;
    words.chunks_exact(cols.div_ceil(16)).flat_map(|row| (0..cols).map(move |e| code(row, e))).collect()
}

/// Codes by a model's rule; `scales` are the learned ones of a threshold linear.
pub fn by_rule(rule: Weights, w: &[f32], scales: Option<&[f32]>, rows: usize, cols: usize) -> Ternary {
    match (rule, scales) {
        (Weights::Threshold, Some(scales)) => {
            let (words, _) = flow_shaders::pack_ternary(w, cols, 1);
            Ternary { codes: unpack(&words, cols), scales: scales.to_vec(), rows, cols }
        }
        _ => {
            let (codes, scale) = ternarise(w, rows, cols);
            Ternary { codes, scales: vec![scale], rows, cols }
        }
    }
}

/// A matrix of masters as a model's kernels hold it. Under the threshold rule its scale is 1: the learned ones are tensors of
/// their own.
pub fn pack(config: &ModelConfig, w: &[f32], cols: usize) -> PackedMatrix {
    if !config.half_scales() {
        let (codes, scale) = flow_shaders::pack_ternary(w, cols, u32::from(config.weights == Weights::Threshold));
        return PackedMatrix::of_tensor(codes, scale, cols);
    }
    let per = match config.group {
        Group::Tensor => 0,
        Group::Row => cols,
        Group::Of(n) => n,
    };
    let groups = config.group.stored(cols);
    let (codes, scale) = flow_shaders::pack_ternary_groups(w, cols, per, groups);
    PackedMatrix { codes, scale, groups, cols }
}

/// As [`masters`] of each part of `values` (0 and ± a scale) that shares a scale.
pub(super) fn masters_in(mut values: Vec<f32>, cols: usize, group: Group) -> Vec<f32> {
    let per = match group {
        Group::Tensor => values.len(),
        Group::Row => cols,
        Group::Of(n) => n,
    };
    values.par_chunks_mut(per.max(1)).for_each(|part| {
        let set = part.iter().filter(|v| **v != 0.0).count();
        let spread = part.len() as f64 / set.max(1) as f64;
        part.iter_mut().for_each(|v| *v = (f64::from(*v) * spread) as f32);
    });
    values
}

/// Master weights whose absmean ternarisation gives these codes and this scale back: mean|W| must be the scale, so the
/// codes are spread by the share of those that are not 0.
pub fn masters(codes: &[i8], scale: f32) -> Vec<f32> {
    let set = codes.iter().filter(|c| **c != 0).count();
    if set == 0 {
        return vec![0.0; codes.len()];
    }
    let magnitude = (f64::from(scale) * codes.len() as f64 / set as f64) as f32;
    codes.iter().map(|c| f32::from(*c) * magnitude).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ties_round_to_even_and_masters_come_back() {
        let (codes, scale) = ternarise(&[0.5, -1.5, 1.0, -1.0], 1, 4);
        assert_eq!((codes.as_slice(), scale), (&[0, -1, 1, -1][..], 1.0));
        let codes: Vec<i8> = (0..1000).map(|i| [0, 1, -1, 0, 1][i % 5]).collect();
        let (again, scale) = ternarise(&masters(&codes, 0.0123), 10, 100);
        assert!(again == codes && (scale - 0.0123).abs() < 1e-8, "{scale}");
        assert_eq!(ternarise(&masters(&[0, 0], 3.0), 1, 2), (vec![0, 0], 1e-5));
    }
}
