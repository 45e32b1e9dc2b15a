//! RMSNorm with weight and its gradients (eps inside the root).
//!
//! `rstd[r] = 1 / sqrt(mean_c x[r, c]² + eps)`, `y = x · rstd · g`.

pub(crate) mod cpu;

use bytemuck::{Pod, Zeroable};

use crate::cut::along_first;
use crate::kernel::{Kernel, NO_SCRATCH, grid_1d, read, update, write};

/// Shapes: `x, y, dy, dx [rows, cols]`, `g, dg [cols]`, `rstd [rows]`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
pub struct Shape {
    /// Tokens.
    pub rows: u32,
    /// Normalised size.
    pub cols: u32,
    /// Added to the mean square.
    pub eps: f32,
    /// Gradient of x: 1: `dx += …`, 0: `dx = …`.
    pub add: u32,
}

/// Bindings: `x`, `g`, `y`, `rstd`. One workgroup per row.
pub static RMSNORM: Kernel = Kernel {
    name: "rmsnorm",
    revision: 1,
    wgsl: &[include_str!("forward.wgsl"), include_str!("../lanes.wgsl")],
    bindings: &[read("x"), read("g"), write("y"), write("rstd")],
    grid: |p| grid_1d(p.get::<Shape>().rows as usize, 1),
    cut: |p| {
        let cols = p.get::<Shape>().cols as usize;
        along_first(p, &[cols, 0, cols, 1])
    },
    variants: &[],
    scratch: NO_SCRATCH,
    cpu: cpu::forward,
};

/// `dx (+)= rstd·dy·g − x·rstd³/cols · Σ_c dy·g·x`. Bindings: `x`, `g`, `rstd`, `dy`, `dx`. One workgroup per row.
pub static RMSNORM_GRAD_X: Kernel = Kernel {
    name: "rmsnorm_grad_x",
    revision: 1,
    wgsl: &[include_str!("grad_x.wgsl"), include_str!("../lanes.wgsl")],
    bindings: &[read("x"), read("g"), read("rstd"), read("dy"), update("dx")],
    grid: |p| grid_1d(p.get::<Shape>().rows as usize, 1),
    cut: |p| {
        let cols = p.get::<Shape>().cols as usize;
        along_first(p, &[cols, 0, 1, cols, cols])
    },
    variants: &[],
    scratch: NO_SCRATCH,
    cpu: cpu::grad_x,
};

/// `dg[c] += Σ_r dy·x·rstd`, rows in ascending order. Bindings: `x`, `rstd`, `dy`, `dg` (added to). One thread per column.
pub static RMSNORM_GRAD_G: Kernel = Kernel {
    name: "rmsnorm_grad_g",
    revision: 1,
    wgsl: &[include_str!("grad_g.wgsl")],
    bindings: &[read("x"), read("rstd"), read("dy"), update("dg")],
    grid: |p| grid_1d(p.get::<Shape>().cols as usize, 64),
    // The later parts of the sum go on from what is there.
    cut: |p| {
        let cols = p.get::<Shape>().cols as usize;
        along_first(p, &[cols, 1, cols, 0])
    },
    variants: &[],
    scratch: NO_SCRATCH,
    cpu: cpu::grad_g,
};
