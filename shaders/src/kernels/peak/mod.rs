//! What a device can do at most: loops that do nothing but multiply and add, against which `flow bench` holds the others.
//!
//! `peak_fma`: `rounds` times `x ← fma(x, 0.999, 0.001)`, from `x = i/n`. `peak_dot`: `rounds` times
//! `s ← s + dot(codes, q ⊕ flip)` over four signed bytes, where `codes` is `0x02010201`, `q` is `0x7f40c103` and `flip`
//! is `0x01010101` in odd rounds.

mod cpu;

use bytemuck::{Pod, Zeroable};

use crate::cut;
use crate::kernel::{Kernel, NO_SCRATCH, Params, write};

/// Shapes: `out [n]`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
pub struct Shape {
    /// Chains.
    pub n: u32,
    /// Length of each.
    pub rounds: u32,
}

/// Chains that one invocation of the WGSL runs side by side.
pub const TOGETHER: usize = 8;

fn grid(p: &Params) -> [u32; 3] {
    crate::kernel::grid_1d((p.get::<Shape>().n as usize).div_ceil(TOGETHER), 256)
}

/// Bindings: `out [n]` f32. 2·n·rounds operations.
pub static PEAK_FMA: Kernel = Kernel {
    name: "peak_fma",
    revision: 1,
    wgsl: &[include_str!("fma.wgsl")],
    bindings: &[write("out")],
    grid,
    // Its values begin with their index; a benchmark chooses how many.
    cut: cut::NEVER,
    variants: &[],
    scratch: NO_SCRATCH,
    cpu: cpu::fma,
};

/// Bindings: `out [n]` i32. 8·n·rounds operations.
pub static PEAK_DOT: Kernel = Kernel {
    name: "peak_dot",
    revision: 1,
    wgsl: &[include_str!("dot.wgsl")],
    bindings: &[write("out")],
    grid,
    // A benchmark chooses how many chains there are.
    cut: cut::NEVER,
    variants: &[],
    scratch: NO_SCRATCH,
    cpu: cpu::dot,
};
