//! float16 as storage of what a training step keeps: activations for the backward pass, gradients until the update.
//!
//! Arithmetic stays in float32; a value is rounded to float16 (nearest, ties to even) when it is put away. What float16
//! cannot hold becomes an infinity and reaches the gradient norm: the step is skipped and the loss scale halved.

mod cpu;
pub(crate) mod rows;

use bytemuck::{Pod, Zeroable};

use crate::cut::{Cut, along_groups};
use crate::kernel::{Kernel, NO_SCRATCH, Params, grid_1d, read, update, write};

/// `n` values; float16 in `ceil(n/2)` words.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
pub struct Shape {
    /// Values.
    pub n: u32,
    /// 1: `pack_half` adds to what is stored.
    pub add: u32,
}

/// Cut along the words of two float16.
fn pairs(p: &Params, words: &[usize]) -> Vec<Cut> {
    let s: Shape = p.get();
    along_groups(s.n, 2, words, move |_, n| Params::new(&Shape { n, ..s }))
}

/// `y = x`, or `y += x`, rounded to float16. Bindings: `x`, `y` (updated). One thread per word of `y`.
pub static PACK_HALF: Kernel = Kernel {
    name: "pack_half",
    revision: 1,
    wgsl: &[include_str!("shape.wgsl"), include_str!("pack.wgsl"), include_str!("../half_value.wgsl"), include_str!("../half_bits.wgsl")],
    bindings: &[read("x"), update("y")],
    grid: |p| grid_1d((p.get::<Shape>().n as usize).div_ceil(2), 256),
    cut: |p| pairs(p, &[2, 1]),
    variants: &[],
    scratch: NO_SCRATCH,
    cpu: cpu::pack,
};

/// `y = x`, exactly. Bindings: `x`, `y`. One thread per word of `x`.
pub static UNPACK_HALF: Kernel = Kernel {
    name: "unpack_half",
    revision: 1,
    wgsl: &[include_str!("shape.wgsl"), include_str!("unpack.wgsl"), include_str!("../half_value.wgsl")],
    bindings: &[read("x"), write("y")],
    grid: |p| grid_1d((p.get::<Shape>().n as usize).div_ceil(2), 256),
    cut: |p| pairs(p, &[1, 2]),
    variants: &[],
    scratch: NO_SCRATCH,
    cpu: cpu::unpack,
};
