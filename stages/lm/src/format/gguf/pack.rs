//! Ternary codes (−1, 0, +1) as bytes: TQ2_0, TQ1_0 and Q2_0 of llama.cpp, I2_S of bitnet.cpp on x86, and Hugging Face's.

use half::f16;

/// Weights of a TQ block.
pub const BLOCK: usize = 256;
/// Bytes of a TQ2_0 block.
pub const TQ2_0_BYTES: usize = 66;
/// Bytes of a TQ1_0 block.
pub const TQ1_0_BYTES: usize = 54;

/// Weights of a Q2_0 block as it is written; a fork of llama.cpp writes twice as many.
pub const Q2_0_GROUP: usize = 64;

/// Bytes of a Q2_0 block of `group` weights.
pub const fn q2_0_bytes(group: usize) -> usize {
    2 + group / 4
}

/// Weights of an I2_S group.
pub const I2_S_BLOCK: usize = 128;
/// Bytes after the codes of an I2_S tensor: the float32 scale, padded.
pub const I2_S_TAIL: usize = 32;

fn trit(code: i8) -> u8 {
    (code + 1) as u8
}

/// One row in TQ2_0: in each half of 128, byte m holds elements m, m+32, m+64, m+96 at bits 0, 2, 4, 6; then d as f16.
/// The row's length is a multiple of 256.
pub fn tq2_0(row: &[i8], scale: f32, out: &mut Vec<u8>) {
    for block in row.chunks_exact(BLOCK) {
        for half in block.chunks_exact(128) {
            out.extend((0..32).map(|m| (0..4).fold(0u8, |byte, n| byte | (trit(half[m + 32 * n]) << (2 * n)))));
        }
        out.extend(f16::from_f32(scale).to_bits().to_le_bytes());
    }
}

/// Five trits, most significant first, as ceil(v · 256 / 243).
fn five(trits: impl Iterator<Item = u8>) -> u8 {
    let v = trits.fold(0u16, |v, t| v * 3 + u16::from(t));
    ((v * 256).div_ceil(243)) as u8
}

/// One row in TQ1_0: bytes 0–31 elements m + 32n, bytes 32–47 elements 160 + m + 16n, the last 4 bytes four trits of
/// elements 240 + m + 4n with a zero fifth; then d as f16.
pub fn tq1_0(row: &[i8], scale: f32, out: &mut Vec<u8>) {
    for block in row.chunks_exact(BLOCK) {
        out.extend((0..32).map(|m| five((0..5).map(|n| trit(block[m + 32 * n])))));
        out.extend((0..16).map(|m| five((0..5).map(|n| trit(block[160 + m + 16 * n])))));
        out.extend((0..4).map(|m| five((0..4).map(|n| trit(block[240 + m + 4 * n])).chain([0]))));
        out.extend(f16::from_f32(scale).to_bits().to_le_bytes());
    }
}

/// Codes and scales of TQ2_0 bytes.
pub fn unpack_tq2_0(bytes: &[u8]) -> (Vec<i8>, Vec<f32>) {
    let mut codes = Vec::with_capacity(bytes.len() / TQ2_0_BYTES * BLOCK);
    let mut scales = Vec::new();
    for block in bytes.chunks_exact(TQ2_0_BYTES) {
        for half in block[..64].chunks_exact(32) {
            codes.extend((0..128).map(|i| ((half[i % 32] >> (2 * (i / 32))) & 3) as i8 - 1));
        }
        scales.push(f16::from_bits(u16::from_le_bytes([block[64], block[65]])).to_f32());
    }
    (codes, scales)
}

/// Codes and scales of TQ1_0 bytes: digit n of a byte is ((byte · 3ⁿ mod 256) · 3) >> 8.
pub fn unpack_tq1_0(bytes: &[u8]) -> (Vec<i8>, Vec<f32>) {
    const POWERS: [u8; 5] = [1, 3, 9, 27, 81];
    let digit = |byte: u8, n: usize| ((u16::from(byte.wrapping_mul(POWERS[n])) * 3) >> 8) as i8 - 1;
    let mut codes = Vec::with_capacity(bytes.len() / TQ1_0_BYTES * BLOCK);
    let mut scales = Vec::new();
    for block in bytes.chunks_exact(TQ1_0_BYTES) {
        codes.extend((0..160).map(|i| digit(block[i % 32], i / 32)));
        codes.extend((0..80).map(|i| digit(block[32 + i % 16], i / 16)));
        codes.extend((0..16).map(|i| digit(block[48 + i % 4], i / 4)));
        scales.push(f16::from_bits(u16::from_le_bytes([block[52], block[53]])).to_f32());
    }
    (codes, scales)
}

/// One row in Q2_0, with a scale for each 64 weights: d as f16, then byte m holds elements 4m … 4m + 3 at bits 0, 2, 4, 6.
/// The row's length is a multiple of 64.
pub fn q2_0(row: &[i8], scales: &[f32], out: &mut Vec<u8>) {
    for (block, scale) in row.chunks_exact(Q2_0_GROUP).zip(scales) {
        out.extend(f16::from_f32(*scale).to_bits().to_le_bytes());
        out.extend(block.chunks_exact(4).map(|four| (0..4).fold(0u8, |byte, n| byte | (trit(four[n]) << (2 * n)))));
    }
}

/// Codes and scales of Q2_0 bytes in blocks of `group` weights; `None` where a code is 3.
pub fn unpack_q2_0(bytes: &[u8], group: usize) -> Option<(Vec<i8>, Vec<f32>)> {
    let size = q2_0_bytes(group);
    let mut codes = Vec::with_capacity(bytes.len() / size * group);
    let mut scales = Vec::with_capacity(bytes.len() / size);
    for block in bytes.chunks_exact(size) {
        if !is_ternary(&block[2..]) {
            return None;
        }
        codes.extend((0..group).map(|j| ((block[2 + j / 4] >> (2 * (j % 4))) & 3) as i8 - 1));
        scales.push(f16::from_bits(u16::from_le_bytes([block[0], block[1]])).to_f32());
    }
    Some((codes, scales))
}

/// A whole tensor in I2_S as bitnet.cpp packs it on x86: each 128 weights in 32 bytes, byte m holding elements m, m+32,
/// m+64, m+96 at bits 6, 4, 2, 0. The f32 scale that a GGUF file stores after the codes is not part of it.
pub fn i2_s_x86(codes: &[i8]) -> Vec<u8> {
    let group = |g: &[i8], m: usize| (0..4).fold(0u8, |byte, n| byte | (trit(g[m + 32 * n]) << (6 - 2 * n)));
    codes.chunks_exact(I2_S_BLOCK).flat_map(|g| (0..32).map(move |m| group(g, m))).collect()
}

/// Codes and scale of an I2_S tensor with its tail.
pub fn unpack_i2_s_x86(bytes: &[u8]) -> (Vec<i8>, f32) {
    let (groups, tail) = bytes.split_at(bytes.len().saturating_sub(I2_S_TAIL));
    let scale = tail.first_chunk().map_or(0.0, |b| f32::from_le_bytes(*b));
    let of_group = |g: &[u8]| (0..I2_S_BLOCK).map(|i| ((g[i % 32] >> (6 - 2 * (i / 32))) & 3) as i8 - 1).collect::<Vec<_>>();
    (groups.chunks_exact(I2_S_BLOCK / 4).flat_map(of_group).collect(), scale)
}

/// A linear in Hugging Face's layout: uint8 `[rows/4, cols]`, row i·(rows/4) + r at bits 2i of byte `[r, column]`.
pub fn hf(codes: &[i8], rows: usize, cols: usize) -> Vec<u8> {
    let quarter = rows / 4;
    let mut out = vec![0u8; quarter * cols];
    for i in 0..4 {
        let part = &codes[i * quarter * cols..(i + 1) * quarter * cols];
        out.iter_mut().zip(part).for_each(|(byte, code)| *byte |= trit(*code) << (2 * i));
    }
    out
}

/// Codes of Hugging Face's layout; `None` where a code is 3.
pub fn unpack_hf(bytes: &[u8], rows: usize, cols: usize) -> Option<Vec<i8>> {
    let mut codes = Vec::with_capacity(rows * cols);
    for i in 0..4 {
        codes.extend(bytes.iter().map(|byte| ((byte >> (2 * i)) & 3) as i8 - 1));
    }
    is_ternary(bytes).then_some(codes)
}

/// Whether none of the four fields of each byte is 3.
pub fn is_ternary(bytes: &[u8]) -> bool {
    bytes.iter().all(|b| b & (b >> 1) & 0x55 == 0)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use safetensors::SafeTensors;

    use super::*;

    /// Codes, scales and bytes of one matrix: those of llama.cpp's layout.
    #[test]
    fn q2_0_is_packed_as_its_golden() {
        let dir = std::env::var_os("FLOW_GOLDEN_DIR")
            .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden"), Into::into);
        let bytes = std::fs::read(dir.join("gguf/q2_0-packing.safetensors")).expect("golden file");
        let file = SafeTensors::deserialize(&bytes).expect("safetensors");
        for group in [Q2_0_GROUP, 2 * Q2_0_GROUP] {
            let tensor = |what: &str| file.tensor(&format!("g{group}.{what}")).expect("in the file");
            let codes: Vec<i8> = bytemuck::pod_collect_to_vec(tensor("codes").data());
            let scales: Vec<f32> = bytemuck::pod_collect_to_vec(tensor("scales").data());
            let packed = tensor("bytes").data().to_vec();
            assert_eq!(unpack_q2_0(&packed, group), Some((codes.clone(), scales.clone())));
            if group == Q2_0_GROUP {
                let cols = tensor("codes").shape()[1];
                let mut out = Vec::new();
                codes.chunks(cols).zip(scales.chunks(cols / group)).for_each(|(row, scales)| q2_0(row, scales, &mut out));
                assert!(out == packed);
            }
        }
    }

    #[test]
    fn a_code_of_3_is_not_ternary() {
        let mut bytes = Vec::new();
        q2_0(&[1; 128], &[0.5, 2.0], &mut bytes);
        assert_eq!(unpack_q2_0(&bytes, Q2_0_GROUP), Some((vec![1; 128], vec![0.5, 2.0])));
        bytes[18 + 2] |= 0b11_0000;
        assert_eq!(unpack_q2_0(&bytes, Q2_0_GROUP), None);
    }
}
