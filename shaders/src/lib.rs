//! WGSL kernels, their CPU twins and the device runtime of `flow`.
//!
//! A model becomes a [`program::Program`]: lists of dispatches over planned buffers. A [`device::Device`] (a wgpu
//! adapter or the CPU) loads it into a [`device::Session`], which plays the lists. In reading order:
//!
//! - [`kernel`]: what a kernel declares; [`cut`]: its dispatches in parts; [`kernels`]: all of them, each with module and twin;
//! - [`program`]: buffers, dispatches, the memory planner;
//! - [`device`]: choosing a device, sessions; [`cpu`] and [`gpu`]: the two backends, `backend`: what they share;
//! - [`fingerprint`]: the hash of a module's arithmetic that enters action keys;
//! - [`simd`]: runtime dispatch and the exact float functions of the twins.

#![deny(missing_docs)]

mod backend;
pub mod cpu;
pub mod cut;
pub mod device;
pub mod fingerprint;
pub mod gpu;
pub mod kernel;
pub mod kernels;
mod params;
pub mod pipelines;
pub mod program;
pub mod simd;

/// Packs a matrix `[rows, cols]` into 2-bit codes on the host: (codes `[rows, ceil(cols/16)]`, scale), see [`kernels::ternary`].
/// `rule` 0 is absmean, 1 threshold (whose scale is learned apart: 1 here).
pub fn pack_ternary(w: &[f32], cols: usize, rule: u32) -> (Vec<u32>, f32) {
    kernels::ternary::cpu::pack(w, cols, rule)
}

/// Packs a matrix `[rows, cols]` into codes and float16 scales as training does: (codes, scales `[rows, …]` in the form of
/// `groups`), see [`kernels::ternary::groups`]. `per`: weights of a scale, 0 for one of all.
pub fn pack_ternary_groups(w: &[f32], cols: usize, per: usize, groups: usize) -> (Vec<u32>, Vec<u32>) {
    kernels::ternary::groups::pack(w, cols, per, groups)
}

/// Values `[rows, cols]` of packed codes and their scales, so many a row.
pub fn unpack_ternary(codes: &[u32], scale: &[u32], cols: usize, groups: usize) -> Vec<f32> {
    kernels::ternary::groups::unpack(codes, scale, cols, groups)
}
