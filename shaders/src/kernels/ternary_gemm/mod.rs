//! Packed ternary product with exact integer accumulation: the forward pass of BitLinear.
//!
//! `acc = Σ_k q[r, k]·code[o, k] − sum[r]` in i32, then `y[r, o] (+)= (f32(acc) · step[r]) · scale[o]`, with step and sum of
//! the row from `act_quant::RowScale`.
//! Activations: packed bytes `[rows, 4·ceil(cols/16)] u32`; weights: packed 2-bit codes `[outs, ceil(cols/16)] u32`.

pub(crate) mod cpu;
#[cfg(target_arch = "x86_64")]
mod direct;
#[cfg(target_arch = "aarch64")]
mod neon;
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
mod packed;
pub(crate) mod product;
pub(crate) mod tile;
#[cfg(target_arch = "x86_64")]
mod vnni;

use bytemuck::{Pod, Zeroable};

use crate::cut::{Cut, along_first};
use crate::kernel::{Kernel, Params, Suits, Variant, grid_1d, read, update};
use crate::kernels::ternary::packed_words;

/// Shapes: `q [rows, 4·ceil(cols/16)]`, `codes [outs, ceil(cols/16)]`, `y [rows, outs]`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
pub struct Shape {
    /// Tokens.
    pub rows: u32,
    /// Output features.
    pub outs: u32,
    /// Input features.
    pub cols: u32,
    /// 1: `y += …`, 0: `y = …`.
    pub add: u32,
}

/// Bindings: `q`, `scales`, `codes`, `scale`, `y`. Workgroups of 16 rows × 64 outputs (x over outputs, y over rows).
pub static TERNARY_GEMM: Kernel = Kernel {
    name: "ternary_gemm",
    revision: 1,
    wgsl: &[include_str!("common.wgsl"), include_str!("../ternary/planes.wgsl"), include_str!("kernel.wgsl")],
    bindings: &[read("q"), read("scales"), read("codes"), read("scale"), update("y")],
    grid: |p| {
        let s: Shape = p.get();
        [s.outs.div_ceil(64), s.rows.div_ceil(16), 1]
    },
    cut: rows,
    variants: &[Variant {
        suits: Suits::Software,
        wgsl: &[include_str!("common.wgsl"), include_str!("../ternary/planes.wgsl"), include_str!("software.wgsl")],
        grid: |p| {
            let s: Shape = p.get();
            [s.outs.div_ceil(192), s.rows.div_ceil(8), 1]
        },
    }],
    scratch: cpu::scratch,
    cpu: cpu::ternary_gemm,
};

/// The same for a few rows (decoding). Bindings as [`TERNARY_GEMM`]; workgroups of 16 outputs.
pub static TERNARY_GEMV: Kernel = Kernel {
    name: "ternary_gemv",
    revision: 1,
    wgsl: &[include_str!("common.wgsl"), include_str!("../ternary/planes.wgsl"), include_str!("team.wgsl"), include_str!("gemv.wgsl")],
    bindings: TERNARY_GEMM.bindings,
    grid: sixteen_outputs,
    cut: rows,
    variants: &[
        TERNARY_GEMM.variants[0],
        Variant {
            suits: Suits::Subgroups,
            wgsl: &[
                include_str!("common.wgsl"),
                include_str!("../ternary/planes.wgsl"),
                include_str!("team.wgsl"),
                include_str!("gemv_subgroup.wgsl"),
            ],
            grid: sixteen_outputs,
        },
    ],
    scratch: cpu::scratch,
    cpu: cpu::ternary_gemm,
};

/// Cut along the rows.
fn rows(p: &Params) -> Vec<Cut> {
    let s: Shape = p.get();
    along_first(p, &[4 * packed_words(s.cols as usize), 2, 0, 0, s.outs as usize])
}

fn sixteen_outputs(p: &Params) -> [u32; 3] {
    grid_1d(p.get::<Shape>().outs as usize, 16)
}

/// Rows up to which reading the codes is what takes the time.
const FEW: usize = 4;

/// The kernel for a number of rows.
pub fn kernel(rows: usize) -> &'static Kernel {
    if rows <= FEW { &TERNARY_GEMV } else { &TERNARY_GEMM }
}
