//! Blocks of quantised weights as float32, by the reference formulas of ggml.

mod few;
mod half_at;
mod k;
mod plain;
mod small;
mod tables;

use rayon::prelude::*;

use super::pack::unpack_i2_s_x86;
use super::types::TensorType;

/// Blocks that one thread takes at a time.
const BLOCKS: usize = 256;

/// Values of whole blocks of type `ty`.
pub fn dequantise(ty: TensorType, bytes: &[u8]) -> Vec<f32> {
    let block: fn(&[u8], &mut [f32]) = match ty {
        TensorType::F32 => plain::f32,
        TensorType::F16 => plain::f16,
        TensorType::Bf16 => plain::bf16,
        TensorType::Q1_0 => few::q1_0,
        TensorType::Q2_0 | TensorType::Q2_0G128 => few::q2_0,
        TensorType::Q4_0 => small::q4_0,
        TensorType::Q4_1 => small::q4_1,
        TensorType::Q5_0 => small::q5_0,
        TensorType::Q5_1 => small::q5_1,
        TensorType::Q8_0 => small::q8_0,
        TensorType::Q2K => k::q2_k,
        TensorType::Q3K => k::q3_k,
        TensorType::Q4K => k::q4_k,
        TensorType::Q5K => k::q5_k,
        TensorType::Q6K => k::q6_k,
        TensorType::Iq4Nl => tables::iq4_nl,
        TensorType::Iq4Xs => tables::iq4_xs,
        TensorType::Mxfp4 => tables::mxfp4,
        TensorType::Tq1_0 => plain::tq1_0,
        TensorType::Tq2_0 => plain::tq2_0,
        // The one type whose blocks do not hold their scale.
        TensorType::I2S => {
            let (codes, scale) = unpack_i2_s_x86(bytes);
            return codes.into_iter().map(|c| f32::from(c) * scale).collect();
        }
    };
    let (weights, size) = (ty.block(), ty.block_bytes());
    let mut out = vec![0f32; bytes.len() / size * weights];
    out.par_chunks_mut(BLOCKS * weights).zip(bytes.par_chunks(BLOCKS * size)).for_each(|(out, bytes)| {
        out.chunks_exact_mut(weights).zip(bytes.chunks_exact(size)).for_each(|(out, bytes)| block(bytes, out));
    });
    out
}
