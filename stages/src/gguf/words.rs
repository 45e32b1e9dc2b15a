//! Ternary blocks of a file as the kernels' packed words, without a float in between.

use half::f16;
use rayon::prelude::*;

use super::pack::{BLOCK, TQ1_0_BYTES, TQ2_0_BYTES, unpack_tq1_0};
use super::types::TensorType;

/// The scale that all blocks of a ternary tensor share.
pub fn shared_scale(ty: TensorType, bytes: &[u8]) -> Option<f32> {
    let size = match ty {
        TensorType::Tq2_0 => TQ2_0_BYTES,
        TensorType::Tq1_0 => TQ1_0_BYTES,
        _ => return None,
    };
    let mut scales = bytes.chunks_exact(size).map(|b| [b[size - 2], b[size - 1]]);
    let first = scales.next()?;
    let scale = f16::from_le_bytes(first).to_f32();
    (scales.all(|s| s == first) && scale > 0.0 && scale.is_finite()).then_some(scale)
}

/// Packed words `[rows, cols/16]` (see `flow_shaders::kernels::ternary`) of a tensor that has a shared scale.
pub fn words(ty: TensorType, bytes: &[u8], cols: usize) -> Vec<u32> {
    let per_row = cols / BLOCK * ty.block_bytes();
    let mut out = vec![0u32; bytes.len() / per_row * (cols / 16)];
    out.par_chunks_mut(cols / 16).zip(bytes.par_chunks_exact(per_row)).for_each(|(out, row)| {
        for (out, block) in out.chunks_exact_mut(BLOCK / 16).zip(row.chunks_exact(ty.block_bytes())) {
            if ty == TensorType::Tq2_0 { of_tq2_0(block, out) } else { of_codes(&unpack_tq1_0(block).0, out) }
        }
    });
    out
}

/// In a half block, field `l` of byte `m` is element `32·l + m`; in a word, field `p` of byte `j` is element `4·p + j`.
fn of_tq2_0(block: &[u8], out: &mut [u32]) {
    for (half, out) in block[..64].chunks_exact(32).zip(out.chunks_exact_mut(8)) {
        for (l, out) in out.chunks_exact_mut(2).enumerate() {
            for (word, bytes) in out.iter_mut().zip(half.chunks_exact(16)) {
                let four = |p: usize| u32::from_le_bytes([bytes[4 * p], bytes[4 * p + 1], bytes[4 * p + 2], bytes[4 * p + 3]]);
                *word = (0..4).fold(0, |word, p| word | ((four(p) >> (2 * l)) & 0x0303_0303) << (2 * p));
            }
        }
    }
}

fn of_codes(codes: &[i8], out: &mut [u32]) {
    for (word, codes) in out.iter_mut().zip(codes.chunks_exact(16)) {
        *word = codes.iter().enumerate().fold(0, |word, (e, c)| word | ((c + 1) as u32) << ((e % 4) * 8 + (e / 4) * 2));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gguf::pack::{tq1_0, tq2_0};

    #[test]
    fn words_are_those_that_the_kernels_pack() {
        let (rows, cols, scale) = (3, 512, 0.25f32);
        let codes: Vec<i8> = (0..rows * cols).map(|i| ((i * 7 + i / 13) % 3) as i8 - 1).collect();
        // Masters of magnitude 1.5 times the scale at two thirds of the places: their absmean is the scale.
        let (want, _) = flow_shaders::pack_ternary(&crate::model::ternary::masters(&codes, scale), cols, 0);
        for (ty, pack) in [(TensorType::Tq2_0, tq2_0 as fn(&[i8], f32, &mut Vec<u8>)), (TensorType::Tq1_0, tq1_0)] {
            let mut bytes = Vec::new();
            codes.chunks(cols).for_each(|row| pack(row, scale, &mut bytes));
            assert_eq!(shared_scale(ty, &bytes), Some(scale));
            assert!(words(ty, &bytes, cols) == want, "{ty:?}");
            let last = bytes.len() - 1;
            bytes[last] ^= 1;
            assert_eq!(shared_scale(ty, &bytes), None);
        }
        assert_eq!(shared_scale(TensorType::F16, &[0; 64]), None);
    }
}
