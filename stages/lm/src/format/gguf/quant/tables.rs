//! Types whose 4-bit codes stand for the values of a table. In each 32 weights, byte j of the codes holds element j in its
//! low half and element j + 16 in its high half.

use super::half_at::half_at;

/// The values of the IQ4 types: close together near zero, where most weights lie.
const IQ4: [i8; 16] = [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113];

/// Twice the values of a 4-bit float with two bits of exponent and one of mantissa, so that they are whole.
const E2M1: [i8; 16] = [0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12];

/// y = d · table\[q\] of 32 weights.
fn looked_up(table: &[i8; 16], d: f32, codes: &[u8], out: &mut [f32]) {
    let value = |q: u8| d * f32::from(table[usize::from(q)]);
    for (j, byte) in codes.iter().enumerate() {
        out[j] = value(byte & 15);
        out[j + 16] = value(byte >> 4);
    }
}

/// d, codes.
pub fn iq4_nl(b: &[u8], out: &mut [f32]) {
    looked_up(&IQ4, half_at(b, 0), &b[2..18], out);
}

/// d, a word of 16 bits, 4 bytes, 128 bytes of codes: y = d · (scale − 32) · table\[q\], a scale for 32 weights. Scale j has
/// its low four bits in a half of byte j/2 and its upper two in the word at bit 2j.
pub fn iq4_xs(b: &[u8], out: &mut [f32]) {
    let (d, high, low) = (half_at(b, 0), u16::from_le_bytes([b[2], b[3]]), &b[4..8]);
    for (j, (out, codes)) in out.chunks_exact_mut(32).zip(b[8..136].chunks_exact(16)).enumerate() {
        let scale = low[j / 2] >> (4 * (j % 2)) & 15 | ((high >> (2 * j) & 3) as u8) << 4;
        looked_up(&IQ4, d * (f32::from(scale) - 32.0), codes, out);
    }
}

/// A byte e, codes: y = 2^(e − 128) · table\[q\], half of what e says since the table holds twice its values.
pub fn mxfp4(b: &[u8], out: &mut [f32]) {
    let e = u32::from(b[0]);
    // Below 2^-126 a float32 has no exponent left, only mantissa.
    let d = f32::from_bits(if e < 2 { 0x0020_0000 << e } else { (e - 1) << 23 });
    looked_up(&E2M1, d, &b[1..17], out);
}
