//! Gated activation `y = act(gate)·up`: SwiGLU (act = SiLU) and ReLU² (act = max(x, 0)²), with gradients.

pub(crate) mod cpu;

use bytemuck::{Pod, Zeroable};

use crate::cut::along_first;
use crate::kernel::{Kernel, NO_SCRATCH, grid_1d, read, write};

/// All buffers hold `n` floats.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
pub struct Shape {
    /// Elements.
    pub n: u32,
    /// 0: SiLU, 1: ReLU².
    pub act: u32,
}

/// Bindings: `gate`, `up`, `y`. One thread per element.
pub static GATED: Kernel = Kernel {
    name: "gated",
    revision: 1,
    wgsl: &[include_str!("activate.wgsl"), include_str!("forward.wgsl")],
    bindings: &[read("gate"), read("up"), write("y")],
    grid: |p| grid_1d(p.get::<Shape>().n as usize, 256),
    cut: |p| along_first(p, &[1, 1, 1]),
    variants: &[],
    scratch: NO_SCRATCH,
    cpu: cpu::forward,
};

/// `dup = dy·act(gate)`, `dgate = dy·up·act'(gate)`. Bindings: `gate`, `up`, `dy`, `dgate`, `dup`. One thread per element.
pub static GATED_GRAD: Kernel = Kernel {
    name: "gated_grad",
    revision: 1,
    wgsl: &[include_str!("backward.wgsl")],
    bindings: &[read("gate"), read("up"), read("dy"), write("dgate"), write("dup")],
    grid: |p| grid_1d(p.get::<Shape>().n as usize, 256),
    cut: |p| along_first(p, &[1, 1, 1, 1, 1]),
    variants: &[],
    scratch: NO_SCRATCH,
    cpu: cpu::backward,
};
