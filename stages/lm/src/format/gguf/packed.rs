//! Ternary blocks of a file as the kernels' packed rows, without a float in between.

use half::f16;
use rayon::prelude::*;

use super::pack::{I2_S_TAIL, Q2_0_GROUP, TQ1_0_BYTES, TQ2_0_BYTES, is_ternary, unpack_tq1_0};
use super::types::TensorType;

/// The scale that all blocks of a ternary tensor share.
pub fn shared_scale(ty: TensorType, bytes: &[u8]) -> Option<f32> {
    let size = match ty {
        TensorType::Tq2_0 => TQ2_0_BYTES,
        TensorType::Tq1_0 => TQ1_0_BYTES,
        TensorType::I2S => return i2_s_scale(bytes),
        _ => return None,
    };
    let mut scales = bytes.chunks_exact(size).map(|b| [b[size - 2], b[size - 1]]);
    let first = scales.next()?;
    let scale = f16::from_le_bytes(first).to_f32();
    let codes = |b: &[u8]| ty != TensorType::Tq2_0 || is_ternary(&b[..size - 2]);
    (scales.all(|s| s == first) && scale > 0.0 && scale.is_finite() && bytes.par_chunks_exact(size).all(codes)).then_some(scale)
}

/// Blocks that one thread takes at a time.
const BLOCKS: usize = 1024;

/// The scales of all groups of 64 weights of a ternary tensor, as float16 bits `[rows, cols/64]`: those of larger blocks
/// repeat, so that kernels know one size only. `None` where a code is 3 or a scale is negative or not finite.
pub fn group_scales(ty: TensorType, bytes: &[u8]) -> Option<Vec<u16>> {
    // Where the codes and the scale stand in a block. No byte of TQ1_0 stands for anything but ternary codes.
    let (codes, at) = match ty {
        TensorType::Q2_0 | TensorType::Q2_0G128 => (2..ty.block_bytes(), 0),
        TensorType::Tq2_0 => (0..TQ2_0_BYTES - 2, TQ2_0_BYTES - 2),
        TensorType::Tq1_0 => (0..0, TQ1_0_BYTES - 2),
        _ => return None,
    };
    let (size, times) = (ty.block_bytes(), ty.block() / Q2_0_GROUP);
    let mut out = vec![0u16; bytes.len() / size * times];
    let parts = out.par_chunks_mut(BLOCKS * times).zip(bytes.par_chunks(BLOCKS * size));
    parts.try_for_each(|(out, bytes)| {
        let mut blocks = out.chunks_exact_mut(times).zip(bytes.chunks_exact(size));
        let sound = blocks.all(|(out, block)| {
            let scale = u16::from_le_bytes([block[at], block[at + 1]]);
            out.fill(scale);
            scale < f16::INFINITY.to_bits() && is_ternary(&block[codes.clone()])
        });
        sound.then_some(())
    })?;
    Some(out)
}

/// The scales of groups of 64 `[rows, cols/64]` as the kernels hold them, and how many a row has (see
/// `flow_shaders::kernels::ternary::groups`).
pub fn scale_words(halves: &[u16], cols: usize) -> (Vec<u32>, usize) {
    let groups = cols / Q2_0_GROUP;
    if groups == 1 {
        return (halves.iter().map(|h| f16::from_bits(*h).to_f32().to_bits()).collect(), 1);
    }
    let pair = |pair: &[u16]| u32::from(pair[0]) | pair.get(1).map_or(0, |high| u32::from(*high) << 16);
    (halves.chunks(groups.max(1)).flat_map(|row| row.chunks(2).map(pair)).collect(), groups)
}

/// Packed rows `[rows, cols/16]` (see `flow_shaders::kernels::ternary`) of a tensor that has a shared scale or scales of
/// groups.
pub fn rows(ty: TensorType, bytes: &[u8], cols: usize) -> Vec<u32> {
    // The scale behind the codes is as long as a short row.
    let bytes = if ty == TensorType::I2S { &bytes[..bytes.len().saturating_sub(I2_S_TAIL)] } else { bytes };
    let per_row = cols / ty.block() * ty.block_bytes();
    let mut out = vec![0u32; bytes.len() / per_row * (cols / 16)];
    out.par_chunks_mut(cols / 16).zip(bytes.par_chunks_exact(per_row)).for_each(|(out, row)| {
        for (out, block) in out.chunks_exact_mut(ty.block() / 16).zip(row.chunks_exact(ty.block_bytes())) {
            match ty {
                TensorType::Tq2_0 => {
                    block[..64].chunks_exact(32).zip(out.chunks_exact_mut(8)).for_each(|(half, out)| of_fields(half, |l| 2 * l, out))
                }
                TensorType::Q2_0 | TensorType::Q2_0G128 => of_order(&block[2..], out),
                TensorType::I2S => of_fields(block, |l| 6 - 2 * l, out),
                _ => of_codes(&unpack_tq1_0(block).0, out),
            }
        }
    });
    out
}

/// Packed rows `[rows, ceil(cols/16)]` of a linear in Hugging Face's layout (see `pack::hf`), whose codes are ternary.
pub fn rows_of_hf(bytes: &[u8], rows: usize, cols: usize) -> Vec<u32> {
    let quarter = rows / 4;
    let per_row = cols.div_ceil(16);
    let mut out = vec![0u32; rows * per_row];
    out.par_chunks_mut(per_row).enumerate().for_each(|(row, out)| {
        let (shift, from) = (2 * (row / quarter), &bytes[row % quarter * cols..][..cols]);
        for (word, sixteen) in out.iter_mut().zip(from.chunks(16)) {
            // Places past the last column hold the code of 0, as the kernels pack them.
            let code = |e: usize| sixteen.get(e).map_or(1, |b| u32::from(b >> shift & 3));
            *word = (0..16).fold(0, |word, e| word | code(e) << ((e % 4) * 8 + (e / 4) * 2));
        }
    });
    out
}

/// The scale of an I2_S tensor, if all its codes are ternary.
fn i2_s_scale(bytes: &[u8]) -> Option<f32> {
    let (codes, tail) = bytes.split_at_checked(bytes.len().checked_sub(I2_S_TAIL)?)?;
    let scale = f32::from_le_bytes(*tail.first_chunk()?);
    let ternary = codes.par_chunks(1 << 16).all(is_ternary);
    (ternary && scale > 0.0 && scale.is_finite()).then_some(scale)
}

/// 128 codes in 32 bytes: the field of byte `m` at bit `shift(l)` is element `32·l + m`; in a word, field `p` of byte `j` is
/// element `4·p + j`.
fn of_fields(group: &[u8], shift: impl Fn(usize) -> usize, out: &mut [u32]) {
    for (l, out) in out.chunks_exact_mut(2).enumerate() {
        for (word, bytes) in out.iter_mut().zip(group.chunks_exact(16)) {
            let four = |p: usize| u32::from_le_bytes([bytes[4 * p], bytes[4 * p + 1], bytes[4 * p + 2], bytes[4 * p + 3]]);
            *word = (0..4).fold(0, |word, p| word | ((four(p) >> shift(l)) & 0x0303_0303) << (2 * p));
        }
    }
}

/// Codes in the order of the weights: in four bytes, field `j` of byte `p` is element `4·p + j`, and goes to field `p` of byte
/// `j`. Fields change places with those across the diagonal, first within quarters of 2 × 2, then the quarters.
fn of_order(codes: &[u8], out: &mut [u32]) {
    for (word, four) in out.iter_mut().zip(codes.chunks_exact(4)) {
        let all = u32::from_le_bytes([four[0], four[1], four[2], four[3]]);
        *word = swapped(swapped(all, 6, 0x00cc_00cc), 12, 0x0000_f0f0);
    }
}

/// The bits of `mask` swapped with those `by` places higher.
fn swapped(word: u32, by: u32, mask: u32) -> u32 {
    let differ = (word ^ (word >> by)) & mask;
    word ^ differ ^ (differ << by)
}

fn of_codes(codes: &[i8], out: &mut [u32]) {
    for (word, codes) in out.iter_mut().zip(codes.chunks_exact(16)) {
        *word = codes.iter().enumerate().fold(0, |word, (e, c)| word | ((c + 1) as u32) << ((e % 4) * 8 + (e / 4) * 2));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::gguf::pack::{i2_s_x86, q2_0, tq1_0, tq2_0};

    /// Codes without a pattern that repeats in a word, and a scale for each 64.
    fn in_groups(cols: usize, of: usize) -> (Vec<i8>, Vec<f32>) {
        let codes = (0..3 * cols).map(|i| ((i * 7 + i / 13) % 3) as i8 - 1).collect();
        (codes, (0..3 * cols / 64).map(|g| 0.125 * (g * 64 / of) as f32).collect())
    }

    /// Rows in Q2_0 of groups of 128, which the project does not write.
    fn q2_0_of_128(row: &[i8], scales: &[f32], out: &mut Vec<u8>) {
        for (block, scale) in row.chunks_exact(128).zip(scales.chunks_exact(2)) {
            let mut halves = Vec::new();
            q2_0(block, scale, &mut halves);
            out.extend(&halves[..18]);
            out.extend(&halves[20..]);
        }
    }

    fn halves(scales: &[f32]) -> Vec<u16> {
        scales.iter().map(|s| f16::from_f32(*s).to_bits()).collect()
    }

    #[test]
    fn groups_of_both_sizes_become_words_and_scales() {
        let cols = 384;
        for (ty, of, pack) in [(TensorType::Q2_0, 64, q2_0 as fn(&[i8], &[f32], &mut Vec<u8>)), (TensorType::Q2_0G128, 128, q2_0_of_128)] {
            let (codes, scales) = in_groups(cols, of);
            let mut bytes = Vec::new();
            codes.chunks(cols).zip(scales.chunks(cols / 64)).for_each(|(row, scales)| pack(row, scales, &mut bytes));
            let (want, _) = flow_shaders::pack_ternary(&crate::format::ternary::masters(&codes, 0.25), cols, 0);
            assert!(rows(ty, &bytes, cols) == want, "{ty:?}");
            assert_eq!(group_scales(ty, &bytes), Some(halves(&scales)), "{ty:?}");
            for (at, value) in [(0, [0, 0x80]), (0, [0, 0x7c]), (0, [1, 0x7e]), (3, [0, 0b0011_0000])] {
                let mut damaged = bytes.clone();
                let last = damaged.len() - ty.block_bytes();
                damaged[last + at..last + at + 2].copy_from_slice(&value);
                assert_eq!(group_scales(ty, &damaged), None, "{ty:?} {value:?}");
            }
        }
    }

    #[test]
    fn scales_of_larger_blocks_repeat() {
        let (codes, scales) = in_groups(512, 256);
        for (ty, pack) in [(TensorType::Tq2_0, tq2_0 as fn(&[i8], f32, &mut Vec<u8>)), (TensorType::Tq1_0, tq1_0)] {
            let mut bytes = Vec::new();
            codes.chunks(256).zip(scales.chunks(4)).for_each(|(block, s)| pack(block, s[0], &mut bytes));
            assert_eq!(shared_scale(ty, &bytes), None);
            assert_eq!(group_scales(ty, &bytes), Some(halves(&scales)), "{ty:?}");
        }
        let mut bytes = vec![0; TQ2_0_BYTES];
        assert_eq!(group_scales(TensorType::Tq2_0, &bytes), Some(vec![0; 4]));
        bytes[7] = 3;
        assert_eq!(group_scales(TensorType::Tq2_0, &bytes), None);
        assert_eq!(group_scales(TensorType::F16, &[0; 64]), None);
    }

    #[test]
    fn words_are_those_that_the_kernels_pack() {
        let (cols, scale) = (512, 0.25f32);
        let codes: Vec<i8> = (0..3 * cols).map(|i| ((i * 7 + i / 13) % 3) as i8 - 1).collect();
        // Masters of magnitude 1.5 times the scale at two thirds of the places: their absmean is the scale.
        let (want, _) = flow_shaders::pack_ternary(&crate::format::ternary::masters(&codes, scale), cols, 0);
        for (ty, pack) in [(TensorType::Tq2_0, tq2_0 as fn(&[i8], f32, &mut Vec<u8>)), (TensorType::Tq1_0, tq1_0)] {
            let mut bytes = Vec::new();
            codes.chunks(cols).for_each(|row| pack(row, scale, &mut bytes));
            assert_eq!(shared_scale(ty, &bytes), Some(scale));
            assert!(rows(ty, &bytes, cols) == want, "{ty:?}");
            let last = bytes.len() - 1;
            bytes[last] ^= 1;
            assert_eq!(shared_scale(ty, &bytes), None);
        }
        let mut bytes = i2_s_x86(&codes);
        bytes.extend(scale.to_le_bytes());
        bytes.resize(bytes.len() + I2_S_TAIL - 4, 0);
        assert_eq!(shared_scale(TensorType::I2S, &bytes), Some(scale));
        assert!(rows(TensorType::I2S, &bytes, cols) == want, "I2_S");
        bytes[5] |= 0b1100;
        assert_eq!(shared_scale(TensorType::I2S, &bytes), None);
        assert_eq!(shared_scale(TensorType::F16, &[0; 64]), None);
    }
}
