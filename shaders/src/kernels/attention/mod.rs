//! Causal + key-padding attention with grouped KV heads, forward and backward.
//!
//! Row `r` of `q` belongs to sequence `b = r / q_len` and stands at position `pos[r]` (gradients: `pos = r mod q_len`,
//! `kv_len = q_len`); it sees keys `j ≤ pos[r]` with `mask[b, j] = 1`. Query head `h` reads KV head `h / (heads / kv_heads)`.
//! `s_j = scale·q·k_j`, `p = softmax(s)`, `o = Σ p_j v_j`; `stats [rows, heads, 2]` keeps `lse` and, for the backward
//! pass, `delta = Σ_d do·o`. `ds_j = p_j (do·v_j − delta)`.

mod cpu;

use bytemuck::{Pod, Zeroable};

use crate::kernel::{Kernel, grid_1d, read, update, write};

/// Shapes: `q, o [rows, heads·head_dim]`, `k, v [sequences, kv_len, kv_heads·head_dim]`, `mask [sequences, kv_len] u32`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
pub struct Shape {
    /// Tokens in the batch.
    pub rows: u32,
    /// Rows of one sequence.
    pub q_len: u32,
    /// Keys of one sequence (capacity of the cache).
    pub kv_len: u32,
    /// Query heads.
    pub heads: u32,
    /// KV heads.
    pub kv_heads: u32,
    /// Size of a head, at most 256.
    pub head_dim: u32,
    /// 1/√head_dim.
    pub scale: f32,
}

/// Bindings: `q`, `k`, `v`, `mask`, `pos [rows] u32`, `o`, `stats` (writes lse at [.., 0]; [.., 1] is unspecified).
/// One workgroup per (row, head), flat index `r·heads + h`.
pub static ATTENTION: Kernel = Kernel {
    name: "attention",
    revision: 1,
    wgsl: &[include_str!("forward.wgsl")],
    bindings: &[read("q"), read("k"), read("v"), read("mask"), read("pos"), write("o"), write("stats")],
    grid: |p| {
        let s: Shape = p.get();
        grid_1d((s.rows * s.heads) as usize, 1)
    },
    variants: &[],
    cpu: cpu::forward,
};

/// `stats[r, h, 1] = Σ_d do·o`. Bindings: `do_`, `o`, `stats` (updated). One thread per (row, head).
pub static ATTENTION_DELTA: Kernel = Kernel {
    name: "attention_delta",
    revision: 1,
    wgsl: &[include_str!("delta.wgsl")],
    bindings: &[read("do_"), read("o"), update("stats")],
    grid: |p| {
        let s: Shape = p.get();
        grid_1d((s.rows * s.heads) as usize, 64)
    },
    variants: &[],
    cpu: cpu::delta,
};

/// `dq = scale·Σ_j ds_j k_j`. Bindings: `q`, `k`, `v`, `mask`, `do_`, `stats`, `dq`. One workgroup per (row, head).
pub static ATTENTION_GRAD_Q: Kernel = Kernel {
    name: "attention_grad_q",
    revision: 1,
    wgsl: &[include_str!("grad_q.wgsl")],
    bindings: &[read("q"), read("k"), read("v"), read("mask"), read("do_"), read("stats"), write("dq")],
    grid: |p| {
        let s: Shape = p.get();
        grid_1d((s.rows * s.heads) as usize, 1)
    },
    variants: &[],
    cpu: cpu::grad_q,
};

/// `dk_j = scale·Σ_i ds_ij q_i`, `dv_j = Σ_i p_ij do_i`, over the query heads of the group (ascending) and rows `i ≥ j`
/// (ascending). Bindings: `q`, `k`, `v`, `mask`, `do_`, `stats`, `dk`, `dv`. One workgroup per (key row, KV head).
pub static ATTENTION_GRAD_KV: Kernel = Kernel {
    name: "attention_grad_kv",
    revision: 1,
    wgsl: &[include_str!("grad_kv.wgsl")],
    bindings: &[read("q"), read("k"), read("v"), read("mask"), read("do_"), read("stats"), write("dk"), write("dv")],
    grid: |p| {
        let s: Shape = p.get();
        grid_1d((s.rows * s.kv_heads) as usize, 1)
    },
    variants: &[],
    cpu: cpu::grad_kv,
};
