//! Blocks of 32 weights: float16 scale `d`, for the `_1` types a float16 minimum `m`, then codes. Byte j of the 4-bit
//! codes holds element j in its low half and element j + 16 in its high half.

use super::half_at::half_at;

/// y = d · (q − 8).
pub fn q4_0(b: &[u8], out: &mut [f32]) {
    let d = half_at(b, 0);
    for (j, byte) in b[2..18].iter().enumerate() {
        out[j] = (f32::from(byte & 15) - 8.0) * d;
        out[j + 16] = (f32::from(byte >> 4) - 8.0) * d;
    }
}

/// y = d · q + m.
pub fn q4_1(b: &[u8], out: &mut [f32]) {
    let (d, m) = (half_at(b, 0), half_at(b, 2));
    for (j, byte) in b[4..20].iter().enumerate() {
        out[j] = f32::from(byte & 15) * d + m;
        out[j + 16] = f32::from(byte >> 4) * d + m;
    }
}

/// y = d · (q − 16); bit j of a little-endian word of 32 is the fifth bit of element j.
pub fn q5_0(b: &[u8], out: &mut [f32]) {
    let d = half_at(b, 0);
    five_bits(&b[2..6], &b[6..22], |j, q| out[j] = (f32::from(q) - 16.0) * d);
}

/// y = d · q + m, bits as in [`q5_0`].
pub fn q5_1(b: &[u8], out: &mut [f32]) {
    let (d, m) = (half_at(b, 0), half_at(b, 2));
    five_bits(&b[4..8], &b[8..24], |j, q| out[j] = f32::from(q) * d + m);
}

fn five_bits(high: &[u8], low: &[u8], mut put: impl FnMut(usize, u8)) {
    let high = u32::from_le_bytes([high[0], high[1], high[2], high[3]]);
    let fifth = |j: usize| ((high >> j) as u8 & 1) << 4;
    for (j, byte) in low.iter().enumerate() {
        put(j, (byte & 15) | fifth(j));
        put(j + 16, (byte >> 4) | fifth(j + 16));
    }
}

/// y = d · q.
pub fn q8_0(b: &[u8], out: &mut [f32]) {
    let d = half_at(b, 0);
    out.iter_mut().zip(&b[2..34]).for_each(|(y, q)| *y = f32::from(*q as i8) * d);
}
