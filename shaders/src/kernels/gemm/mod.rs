//! f32 matrix products. Every output is one chain of fused multiply-adds over `k` in ascending order, from 0 or,
//! when `add` is set, from the old value: the same bits for every tiling, thread count and instruction set on a CPU.
//! (`gemm_nt` with one or two rows sums in 16 lanes along `k` instead, also in a fixed order.)

pub(crate) mod cpu;
mod cut;
pub(crate) mod half_rows;
pub(crate) mod pack;
pub(crate) mod tile;

use bytemuck::{Pod, Zeroable};

use crate::kernel::{Kernel, Params, Suits, Variant, grid_1d, read, update};

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
    /// 1: C is known to be symmetric (`m == n`; in `gemm_nt` B is A), a device may compute one triangle and mirror it.
    pub symmetric: u32,
}

/// Memory of a workgroup for which the deep tiles are taken; with 17 KiB they leave room for a second one.
const DEEP: u32 = 32 << 10;

/// A product of its pieces: the operands' loads and bindings, then the tiles of all adapters, of those with more memory for
/// a workgroup (half the barriers, the same bits), or of software ones. Cut and twin have one name.
macro_rules! product {
    ($(#[$doc:meta])* $kernel:ident, $name:literal, [$($piece:literal),*], [$($binding:expr),*], $twin:ident, $scratch:path) => {
        $(#[$doc])*
        pub static $kernel: Kernel = Kernel {
            name: $name,
            revision: 1,
            wgsl: &[$(include_str!($piece),)* include_str!("store.wgsl"), "const DEPTH: u32 = 16u;\n", include_str!("tile.wgsl")],
            bindings: &[$($binding),*],
            grid: |p| grid(p, 64, 64),
            cut: cut::$twin,
            variants: &[
                Variant {
                    suits: Suits::Software,
                    wgsl: &[$(include_str!($piece),)* include_str!("store.wgsl"), include_str!("tile_software.wgsl")],
                    grid: |p| grid(p, 8, 128),
                },
                Variant {
                    suits: Suits::WorkgroupMemory(DEEP),
                    wgsl: &[$(include_str!($piece),)* include_str!("store.wgsl"), "const DEPTH: u32 = 32u;\n", include_str!("tile.wgsl")],
                    grid: |p| grid(p, 64, 64),
                },
            ],
            scratch: $scratch,
            cpu: cpu::$twin,
        };
    };
}

/// Workgroups of `rows` × `columns` outputs, x over n, y over m.
fn grid(p: &Params, rows: u32, columns: u32) -> [u32; 3] {
    let s: Shape = p.get();
    [s.n.div_ceil(columns), s.m.div_ceil(rows), 1]
}

product!(
    /// `A [m, k]`, `B [k, n]`. Bindings: `a`, `b`, `c`.
    GEMM_NN,
    "gemm_nn",
    ["params.wgsl", "params_end.wgsl", "load_a_n.wgsl", "load_b_n.wgsl", "bind3.wgsl"],
    [read("a"), read("b"), update("c")],
    nn,
    cpu::scratch_of_rows
);

product!(
    /// `A [m, k]`, `B [n, k]`. Bindings: `a`, `b`, `c`.
    GEMM_NT,
    "gemm_nt",
    ["params.wgsl", "params_end.wgsl", "load_a_n.wgsl", "load_b_t.wgsl", "bind3.wgsl"],
    [read("a"), read("b"), update("c")],
    nt,
    cpu::scratch_of_rows
);

product!(
    /// `A [m, k]`, `B [n, k]` of float16, two in a word (the even column low); `k` is even. Bindings: `a`, `b`, `c`.
    GEMM_NT_HALF,
    "gemm_nt_half",
    ["params.wgsl", "params_end.wgsl", "../half_value.wgsl", "../half.wgsl", "load_a_n.wgsl", "load_b_half.wgsl", "bind3_half.wgsl"],
    [read("a"), read("b"), update("c")],
    nt_half,
    cpu::scratch_of_rows
);

product!(
    /// `A [k, m]`, `B [k, n]`. Bindings: `a`, `b`, `c`.
    GEMM_TN,
    "gemm_tn",
    ["params.wgsl", "params_end.wgsl", "load_a_t.wgsl", "load_b_n.wgsl", "bind3.wgsl"],
    [read("a"), read("b"), update("c")],
    tn,
    cpu::scratch_of_columns
);

product!(
    /// Straight-through gradient of the input: `A [m, k] = dy`, `B[k, n] = (code[k, n] − 1)·scale[k]` (packed ternary rows
    /// `[k, ceil(n/16)]`, see `ternary`). Bindings: `a`, `codes`, `scale`, `c`.
    GEMM_NN_TERNARY,
    "gemm_nn_ternary",
    ["params.wgsl", "params_end.wgsl", "load_a_n.wgsl", "load_b_ternary.wgsl", "bind4_ternary.wgsl"],
    [read("a"), read("codes"), read("scale"), update("c")],
    nn_ternary,
    cpu::scratch_of_rows
);

/// A product with packed ternary weights whose scales have one of two forms ([`super::ternary::groups`]).
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
pub struct TernaryShape {
    /// The product; never symmetric.
    pub shape: Shape,
    /// Of a part (see `cut.rs`); 0.
    part: [u32; 4],
    /// Scales of a row: 1, or one for every 64 weights.
    pub groups: u32,
}

impl TernaryShape {
    /// Of a whole product.
    pub fn new(shape: Shape, groups: usize) -> Self {
        Self { shape, part: [0; 4], groups: groups as u32 }
    }
}

product!(
    /// Float activations with packed ternary weights: `A [m, k]`, `B [n, k]` (rows `[n, ceil(k/16)]`, see `ternary`). On the CPU
    /// the bits of [`GEMM_NT`] over the weights' values. Shape: [`TernaryShape`]. Bindings: `a`, `codes`, `scale`, `c`.
    GEMM_NT_TERNARY,
    "gemm_nt_ternary",
    ["params.wgsl", "params_groups.wgsl", "params_end.wgsl", "../half_value.wgsl", "../ternary/weight.wgsl", "load_a_n.wgsl", "load_b_groups_t.wgsl", "bind4_groups.wgsl"],
    [read("a"), read("codes"), read("scale"), update("c")],
    nt_ternary,
    cpu::scratch_of_rows
);

product!(
    /// As [`GEMM_NN_TERNARY`], `B[k, n]` with scales in groups along n. Shape: [`TernaryShape`]. Bindings: `a`, `codes`, `scale`,
    /// `c`.
    GEMM_NN_GROUPS,
    "gemm_nn_groups",
    ["params.wgsl", "params_groups.wgsl", "params_end.wgsl", "../half_value.wgsl", "../ternary/weight.wgsl", "load_a_n.wgsl", "load_b_groups_n.wgsl", "bind4_groups.wgsl"],
    [read("a"), read("codes"), read("scale"), update("c")],
    nn_groups,
    cpu::scratch_of_rows
);

product!(
    /// Straight-through gradient of the weight: `A [k, m] = dy`, `B[k, n] = q[k, n]·step[k]` (packed bytes
    /// `[k, 4·ceil(n/16)]`, see `act_quant`). Bindings: `a`, `q`, `scales`, `c`.
    GEMM_TN_Q8,
    "gemm_tn_q8",
    ["params.wgsl", "params_end.wgsl", "load_a_t.wgsl", "load_b_q8.wgsl", "bind4_q8.wgsl"],
    [read("a"), read("q"), read("scales"), update("c")],
    tn_q8,
    cpu::scratch_of_columns
);

/// The products of a decoding step: their rows are sequences, and what comes out for one does not depend on how many there
/// are (on the CPU each output sums in 16 lanes along `k`, see `simd::math::dot`). Shapes and bindings as [`GEMM_NT`], and
/// its variant for software adapters. One workgroup per column.
pub static GEMV_NT: Kernel = Kernel {
    name: "gemv_nt",
    revision: 1,
    wgsl: &[
        include_str!("params.wgsl"),
        include_str!("params_end.wgsl"),
        include_str!("load_a_n.wgsl"),
        include_str!("load_b_t.wgsl"),
        include_str!("bind3.wgsl"),
        include_str!("store.wgsl"),
        include_str!("few.wgsl"),
        include_str!("../lanes.wgsl"),
    ],
    bindings: GEMM_NT.bindings,
    grid: |p| grid_1d(p.get::<Shape>().n as usize, 1),
    cut: cut::nt,
    variants: &[GEMM_NT.variants[0]],
    scratch: cpu::scratch_of_few,
    cpu: cpu::few_nt,
};

/// As [`GEMV_NT`], shapes as [`GEMM_NT_HALF`].
pub static GEMV_NT_HALF: Kernel = Kernel {
    name: "gemv_nt_half",
    revision: 1,
    wgsl: &[
        include_str!("params.wgsl"),
        include_str!("params_end.wgsl"),
        include_str!("../half_value.wgsl"),
        include_str!("../half.wgsl"),
        include_str!("load_a_n.wgsl"),
        include_str!("load_b_half.wgsl"),
        include_str!("bind3_half.wgsl"),
        include_str!("store.wgsl"),
        include_str!("few.wgsl"),
        include_str!("../lanes.wgsl"),
    ],
    bindings: GEMM_NT_HALF.bindings,
    grid: |p| grid_1d(p.get::<Shape>().n as usize, 1),
    cut: cut::nt_half,
    variants: &[GEMM_NT_HALF.variants[0]],
    scratch: cpu::scratch_of_few,
    cpu: cpu::few_nt_half,
};

/// As [`GEMV_NT`] with packed ternary weights; shape and bindings as [`GEMM_NT_TERNARY`].
pub static GEMV_NT_TERNARY: Kernel = Kernel {
    name: "gemv_nt_ternary",
    revision: 1,
    wgsl: &[
        include_str!("params.wgsl"),
        include_str!("params_groups.wgsl"),
        include_str!("params_end.wgsl"),
        include_str!("../half_value.wgsl"),
        include_str!("../ternary/weight.wgsl"),
        include_str!("load_a_n.wgsl"),
        include_str!("load_b_groups_t.wgsl"),
        include_str!("bind4_groups.wgsl"),
        include_str!("store.wgsl"),
        include_str!("few.wgsl"),
        include_str!("../lanes.wgsl"),
    ],
    bindings: GEMM_NT_TERNARY.bindings,
    grid: |p| grid_1d(p.get::<Shape>().n as usize, 1),
    cut: cut::nt_ternary,
    variants: &[GEMM_NT_TERNARY.variants[0]],
    scratch: cpu::scratch_of_few,
    cpu: cpu::few_nt_ternary,
};
