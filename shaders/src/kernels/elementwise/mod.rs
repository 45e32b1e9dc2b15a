//! Copy and fill.

mod cpu;

use bytemuck::{Pod, Zeroable};

use crate::cut::along_first;
use crate::kernel::{Kernel, NO_SCRATCH, grid_1d, read, write};

/// `n` words.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
pub struct Shape {
    /// Elements.
    pub n: u32,
}

/// `y = x`. Bindings: `x`, `y`. One thread per element.
pub static COPY: Kernel = Kernel {
    name: "copy",
    revision: 1,
    wgsl: &[include_str!("copy.wgsl")],
    bindings: &[read("x"), write("y")],
    grid: |p| grid_1d(p.get::<Shape>().n as usize, 256),
    cut: |p| along_first(p, &[1, 1]),
    variants: &[],
    scratch: NO_SCRATCH,
    cpu: cpu::copy,
};

/// `y = 0`. Bindings: `y`. One thread per element.
pub static ZERO: Kernel = Kernel {
    name: "zero",
    revision: 1,
    wgsl: &[include_str!("zero.wgsl")],
    bindings: &[write("y")],
    grid: |p| grid_1d(p.get::<Shape>().n as usize, 256),
    cut: |p| along_first(p, &[1]),
    variants: &[],
    scratch: NO_SCRATCH,
    cpu: cpu::zero,
};
