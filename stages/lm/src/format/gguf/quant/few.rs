//! One and two bits a weight: float16 scale `d`, then codes in the order of the weights, lowest bits first.

use super::half_at::half_at;

/// y = d where the bit is set, −d elsewhere.
pub fn q1_0(b: &[u8], out: &mut [f32]) {
    let d = half_at(b, 0);
    for (eight, byte) in out.chunks_exact_mut(8).zip(&b[2..]) {
        eight.iter_mut().enumerate().for_each(|(j, y)| *y = if byte >> j & 1 == 1 { d } else { -d });
    }
}

/// y = d · (q − 1), in blocks of any size. A code of 3 is no ternary one, but has its value.
pub fn q2_0(b: &[u8], out: &mut [f32]) {
    let d = half_at(b, 0);
    for (four, byte) in out.chunks_exact_mut(4).zip(&b[2..]) {
        four.iter_mut().enumerate().for_each(|(j, y)| *y = (f32::from(byte >> (2 * j) & 3) - 1.0) * d);
    }
}
