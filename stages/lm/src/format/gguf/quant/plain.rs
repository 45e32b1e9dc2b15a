//! Plain floats, and the ternary types by way of their codes.

use half::{bf16, f16};

use crate::format::gguf::pack;

pub fn f32(b: &[u8], out: &mut [f32]) {
    out[0] = f32::from_le_bytes([b[0], b[1], b[2], b[3]]);
}

pub fn f16(b: &[u8], out: &mut [f32]) {
    out[0] = f16::from_le_bytes([b[0], b[1]]).to_f32();
}

pub fn bf16(b: &[u8], out: &mut [f32]) {
    out[0] = bf16::from_le_bytes([b[0], b[1]]).to_f32();
}

pub fn tq1_0(b: &[u8], out: &mut [f32]) {
    scaled(pack::unpack_tq1_0(b), out);
}

pub fn tq2_0(b: &[u8], out: &mut [f32]) {
    scaled(pack::unpack_tq2_0(b), out);
}

fn scaled((codes, scales): (Vec<i8>, Vec<f32>), out: &mut [f32]) {
    out.iter_mut().zip(codes).for_each(|(y, code)| *y = f32::from(code) * scales[0]);
}
