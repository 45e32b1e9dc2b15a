//! f32 matrix products. Every output is one chain of fused multiply-adds over `k` in ascending order, from 0 or,
//! when `add` is set, from the old value: the same bits for every tiling, thread count and instruction set on a CPU.
//! (`gemm_nt` with one or two rows sums in 16 lanes along `k` instead, also in a fixed order.)

pub(crate) mod cpu;
pub(crate) mod tile;

use bytemuck::{Pod, Zeroable};

use crate::kernel::{Kernel, Params, read, update};

/// `C [m, n] (+)= A·B` over `k`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
pub struct Shape {
    /// Rows of C.
    pub m: u32,
    /// Columns of C.
    pub n: u32,
    /// Length of the sums.
    pub k: u32,
    /// 1: C += A·B, 0: C = A·B.
    pub add: u32,
    /// 1: C is known to be symmetric (`m == n`), a device may compute one triangle and mirror it.
    pub symmetric: u32,
}

fn grid(p: &Params) -> [u32; 3] {
    let s: Shape = p.get();
    [s.n.div_ceil(64), s.m.div_ceil(64), 1]
}

/// `A [m, k]`, `B [k, n]`. Bindings: `a`, `b`, `c`. Workgroups of 64 × 64 outputs (x over n, y over m).
pub static GEMM_NN: Kernel = Kernel {
    name: "gemm_nn",
    revision: 1,
    wgsl: &[include_str!("load_a_n.wgsl"), include_str!("load_b_n.wgsl"), include_str!("bind3.wgsl"), include_str!("tile.wgsl")],
    bindings: &[read("a"), read("b"), update("c")],
    grid,
    cpu: cpu::nn,
};

/// `A [m, k]`, `B [n, k]`. Bindings: `a`, `b`, `c`.
pub static GEMM_NT: Kernel = Kernel {
    name: "gemm_nt",
    revision: 1,
    wgsl: &[include_str!("load_a_n.wgsl"), include_str!("load_b_t.wgsl"), include_str!("bind3.wgsl"), include_str!("tile.wgsl")],
    bindings: &[read("a"), read("b"), update("c")],
    grid,
    cpu: cpu::nt,
};

/// `A [m, k]`, `B [n, k]` of float16, two in a word (the even column low); `k` is even. Bindings: `a`, `b`, `c`. Up to
/// [`cpu::HALF_DOT_ROWS`] rows sum in 16 lanes along `k`, as `gemm_nt` does for one or two.
pub static GEMM_NT_HALF: Kernel = Kernel {
    name: "gemm_nt_half",
    revision: 1,
    wgsl: &[
        include_str!("../half.wgsl"),
        include_str!("load_a_n.wgsl"),
        include_str!("load_b_half.wgsl"),
        include_str!("bind3_half.wgsl"),
        include_str!("tile.wgsl"),
    ],
    bindings: &[read("a"), read("b"), update("c")],
    grid,
    cpu: cpu::nt_half,
};

/// `A [k, m]`, `B [k, n]`. Bindings: `a`, `b`, `c`.
pub static GEMM_TN: Kernel = Kernel {
    name: "gemm_tn",
    revision: 1,
    wgsl: &[include_str!("load_a_t.wgsl"), include_str!("load_b_n.wgsl"), include_str!("bind3.wgsl"), include_str!("tile.wgsl")],
    bindings: &[read("a"), read("b"), update("c")],
    grid,
    cpu: cpu::tn,
};

/// Straight-through gradient of the input: `A [m, k] = dy`, `B[k, n] = (code[k, n] − 1)·scale[k]` (packed ternary rows
/// `[k, ceil(n/16)]`, see `ternary`). Bindings: `a`, `codes`, `scale`, `c`.
pub static GEMM_NN_TERNARY: Kernel = Kernel {
    name: "gemm_nn_ternary",
    revision: 1,
    wgsl: &[
        include_str!("load_a_n.wgsl"),
        include_str!("load_b_ternary.wgsl"),
        include_str!("bind4_ternary.wgsl"),
        include_str!("tile.wgsl"),
    ],
    bindings: &[read("a"), read("codes"), read("scale"), update("c")],
    grid,
    cpu: cpu::nn_ternary,
};

/// Straight-through gradient of the weight: `A [k, m] = dy`, `B[k, n] = q[k, n]·step[k]` (packed bytes
/// `[k, 4·ceil(n/16)]`, see `act_quant`). Bindings: `a`, `q`, `step_size`, `c`.
pub static GEMM_TN_Q8: Kernel = Kernel {
    name: "gemm_tn_q8",
    revision: 1,
    wgsl: &[include_str!("load_a_t.wgsl"), include_str!("load_b_q8.wgsl"), include_str!("bind4_q8.wgsl"), include_str!("tile.wgsl")],
    bindings: &[read("a"), read("q"), read("step_size"), update("c")],
    grid,
    cpu: cpu::tn_q8,
};
