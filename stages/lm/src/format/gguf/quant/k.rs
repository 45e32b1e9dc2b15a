//! The "k" types: super-blocks of 256 weights whose sub-blocks have small integer scales of their own.

use super::half_at::half_at;

/// Element `i` out of 64 bytes of pairs of bits: in each half of 128, byte l holds elements l, l+32, l+64, l+96 at bits 0,
/// 2, 4, 6.
fn pair(codes: &[u8], i: usize) -> u8 {
    codes[32 * (i / 128) + i % 32] >> (2 * (i / 32 % 4)) & 3
}

/// 16 bytes of scales (low half) and minima (high half), a byte for 16 weights, 64 bytes of codes, d, dmin:
/// y = d · scale · q − dmin · min.
pub fn q2_k(b: &[u8], out: &mut [f32]) {
    let (scales, codes, d, dmin) = (&b[..16], &b[16..80], half_at(b, 80), half_at(b, 82));
    for (j, (out, s)) in out.chunks_exact_mut(16).zip(scales).enumerate() {
        let (d, m) = (d * f32::from(s & 15), dmin * f32::from(s >> 4));
        out.iter_mut().enumerate().for_each(|(l, y)| *y = d * f32::from(pair(codes, 16 * j + l)) - m);
    }
}

/// 32 bytes of third bits (bit j of byte l: element 32j + l), 64 bytes of codes, 12 bytes of scales, d:
/// y = d · (scale − 32) · (q − 4), a scale for 16 weights. Scale j has its low four bits in a half of byte j mod 8 and its
/// upper two in byte 8 + j mod 4.
pub fn q3_k(b: &[u8], out: &mut [f32]) {
    let (third, codes, scales, d) = (&b[..32], &b[32..96], &b[96..108], half_at(b, 108));
    for (j, out) in out.chunks_exact_mut(16).enumerate() {
        let scale = scales[j % 8] >> (4 * (j / 8)) & 15 | (scales[8 + j % 4] >> (2 * (j / 4)) & 3) << 4;
        let d = d * (f32::from(scale) - 32.0);
        for (l, y) in out.iter_mut().enumerate() {
            let i = 16 * j + l;
            let q = pair(codes, i) | (third[i % 32] >> (i / 32) & 1) << 2;
            *y = d * (f32::from(q) - 4.0);
        }
    }
}

/// Scale and minimum (6 bits each) of sub-block `j` out of the 12 packed bytes of Q4_K and Q5_K: the first four lie in
/// the low six bits, the last four in the halves of the last four bytes and the two bits that the others leave.
fn scale_min(s: &[u8], j: usize) -> (f32, f32) {
    let (scale, min) =
        if j < 4 { (s[j] & 63, s[j + 4] & 63) } else { ((s[j + 4] & 15) | (s[j - 4] >> 6 << 4), (s[j + 4] >> 4) | (s[j] >> 6 << 4)) };
    (f32::from(scale), f32::from(min))
}

/// d, dmin, 12 bytes of scales, 128 bytes of codes: y = d · scale · q − dmin · min. Each 32 bytes hold two sub-blocks,
/// the first in the low halves.
pub fn q4_k(b: &[u8], out: &mut [f32]) {
    let (d, dmin, scales, codes) = (half_at(b, 0), half_at(b, 2), &b[4..16], &b[16..144]);
    for (j, out) in out.chunks_exact_mut(32).enumerate() {
        let (scale, min) = scale_min(scales, j);
        let (d, m) = (d * scale, dmin * min);
        let shift = 4 * (j % 2);
        let codes = &codes[32 * (j / 2)..32 * (j / 2) + 32];
        out.iter_mut().zip(codes).for_each(|(y, q)| *y = d * f32::from((q >> shift) & 15) - m);
    }
}

/// As [`q4_k`], with 32 bytes before the codes: bit j of byte l is the fifth bit of element l of sub-block j.
pub fn q5_k(b: &[u8], out: &mut [f32]) {
    let (d, dmin, scales, high, codes) = (half_at(b, 0), half_at(b, 2), &b[4..16], &b[16..48], &b[48..176]);
    for (j, out) in out.chunks_exact_mut(32).enumerate() {
        let (scale, min) = scale_min(scales, j);
        let (d, m) = (d * scale, dmin * min);
        let shift = 4 * (j % 2);
        let codes = &codes[32 * (j / 2)..32 * (j / 2) + 32];
        for ((y, q), h) in out.iter_mut().zip(codes).zip(high) {
            *y = d * f32::from((q >> shift) & 15 | ((h >> j) & 1) << 4) - m;
        }
    }
}

/// 128 bytes of low halves, 64 bytes of high pairs of bits, 16 signed scales, d: y = d · scale · (q − 32), a scale for
/// 16 weights. In each half of 128: elements l, l+32 are the low halves of bytes l, l+32 and elements l+64, l+96 their
/// high halves; byte l of the pairs holds their upper bits at 0, 2, 4, 6.
pub fn q6_k(b: &[u8], out: &mut [f32]) {
    let (low, high, scales, d) = (&b[..128], &b[128..192], &b[192..208], half_at(b, 208));
    for (i, y) in out.iter_mut().enumerate() {
        let (half, part, l) = (i / 128, i / 32 % 4, i % 32);
        let low = low[64 * half + 32 * (part % 2) + l] >> (4 * (part / 2)) & 15;
        let high = high[32 * half + l] >> (2 * part) & 3;
        let q = f32::from(low | high << 4) - 32.0;
        *y = d * f32::from(scales[i / 16] as i8) * q;
    }
}
