//! Ternary codes of a linear, outside a program: for export and import.

use std::borrow::Cow;

use super::tensors::{PackedMatrix, TensorSource, Tensors, unpack};
use crate::config::{Group, ModelConfig, TensorSpec, Weights};

/// Absmean ternarisation of BitNet b1.58: s = max(mean|W|, 1e-5), q = clamp(round_half_even(W / s), −1, 1); the codes and
/// the scale that the kernels compute.
pub fn ternarise(w: &[f32], rows: usize, cols: usize) -> (Vec<i8>, f32) {
    debug_assert_eq!(w.len(), rows * cols);
    let (words, scale) = flow_shaders::pack_ternary(w, cols, 0);
    (unpack(&words, cols), scale)
}

/// Whether a matrix of a model is ternary: by its rule, or because its file holds it so.
pub fn is_ternary(config: &ModelConfig, tensors: &Tensors, spec: &TensorSpec) -> bool {
    config.ternary_groups(spec).is_some() || tensors.packed_groups(&spec.name).is_some()
}

/// Codes and scales of such a matrix, exactly as its file holds them or as training has them; none of others.
pub fn held(config: &ModelConfig, tensors: &Tensors, spec: &TensorSpec) -> Option<PackedMatrix> {
    if let Some(matrix) = tensors.packed(&spec.name) {
        return Some(matrix);
    }
    config.ternary_groups(spec)?;
    let matrix = pack(config, &tensors.tensor(&spec.name), spec.shape[1]);
    if config.weights != Weights::Threshold {
        return Some(matrix);
    }
    let learned = tensors.tensor(&format!("{}_scale", spec.name));
    Some(PackedMatrix { scale: learned.iter().map(|s| s.to_bits()).collect(), ..matrix })
}

/// Values of a tensor of a model: those of a ternary matrix, not its masters'.
pub fn values<'t>(config: &ModelConfig, tensors: &'t Tensors, spec: &TensorSpec) -> Cow<'t, [f32]> {
    held(config, tensors, spec).map_or_else(|| tensors.tensor(&spec.name), |matrix| Cow::Owned(matrix.values()))
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
