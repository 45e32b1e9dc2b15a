//! Matrices as the bytes of a GGUF type.

use half::f16;
use rayon::prelude::*;

use super::pack;
use super::types::TensorType;
use crate::format::tensors::PackedMatrix;

/// Values of rows that the type's block divides, as one of the types that hold floats.
pub fn floats(values: &[f32], ty: TensorType) -> Vec<u8> {
    match ty {
        TensorType::Q8_0 => values.chunks(32).flat_map(q8_0).collect(),
        TensorType::F16 => values.iter().flat_map(|v| f16::from_f32(*v).to_bits().to_le_bytes()).collect(),
        _ => values.iter().flat_map(|v| v.to_le_bytes()).collect(),
    }
}

/// A ternary matrix in any type that is written; codes and scales go into the ternary ones as they are.
pub fn ternary(matrix: &PackedMatrix, ty: TensorType) -> Vec<u8> {
    let row = |row: usize| {
        let mut out = Vec::new();
        let (codes, scales) = (matrix.codes_of(row), matrix.scales_of(row));
        // A block of 256 has the scale of its first 64: the others' is the same.
        let blocks = || codes.chunks_exact(pack::BLOCK).zip(scales.iter().step_by(pack::BLOCK / pack::Q2_0_GROUP));
        match ty {
            TensorType::Q2_0 => pack::q2_0(&codes, &scales, &mut out),
            TensorType::Tq2_0 => blocks().for_each(|(codes, scale)| pack::tq2_0(codes, *scale, &mut out)),
            TensorType::Tq1_0 => blocks().for_each(|(codes, scale)| pack::tq1_0(codes, *scale, &mut out)),
            _ => {
                let scale = |e: usize| scales[e / pack::Q2_0_GROUP];
                let value = |(e, c): (usize, &i8)| if *c == 0 { 0.0 } else { f32::from(*c) * scale(e) };
                out = floats(&codes.iter().enumerate().map(value).collect::<Vec<_>>(), ty);
            }
        }
        out
    };
    (0..matrix.rows()).into_par_iter().map(row).collect::<Vec<_>>().concat()
}

/// A block of 32: the step is a 127th of the largest magnitude, as llama.cpp rounds.
fn q8_0(block: &[f32]) -> Vec<u8> {
    let largest = block.iter().fold(0f32, |m, v| m.max(v.abs()));
    let step = largest / 127.0;
    let inverse = if step == 0.0 { 0.0 } else { 1.0 / step };
    let codes = block.iter().map(|v| (v * inverse).round() as i8 as u8);
    f16::from_f32(step).to_bits().to_le_bytes().into_iter().chain(codes).collect()
}
