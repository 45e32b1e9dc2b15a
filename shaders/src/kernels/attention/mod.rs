//! Causal + key-padding attention with grouped KV heads, forward and backward.
//!
//! Row `r` of `q` belongs to sequence `b = r / q_len` and stands at position `pos[r]` (gradients: `pos = r mod q_len`,
//! `kv_len = q_len`); it sees keys `j ≤ pos[r]` with `mask[b, j] = 1`. Query head `h` reads KV head `h / (heads / kv_heads)`.
//! `s_j = scale·q·k_j`, `p = softmax(s)`, `o = Σ p_j v_j`; `stats [rows, heads, 2]` keeps `lse` and, for the backward
//! pass, `delta = Σ_d do·o`. `ds_j = p_j (do·v_j − delta)`.

mod cached;
mod cpu;
mod cut;
mod dims;
mod half_rows;

use bytemuck::{Pod, Zeroable};

use crate::cut::along_first;
use crate::kernel::{Binding, Kernel, NO_SCRATCH, Params, grid_1d, read, update, write};

/// Declares the parameters for Rust, and as the WGSL of a whole dispatch and of a part of one.
macro_rules! parameters {
    ($(#[$meta:meta])* pub struct $name:ident { $($(#[$doc:meta])* $field:ident: $ty:ident,)* }) => {
        $(#[$meta])*
        #[repr(C)]
        #[derive(Clone, Copy, Debug, Pod, Zeroable)]
        pub struct $name {
            $($(#[$doc])* pub $field: $ty,)*
        }
        /// The parameters of a dispatch that binds what it works on.
        const PARAMS: &str = concat!("struct Params {\n", $(stringify!($field), ": ", stringify!($ty), ",\n",)* "}\n");
        /// The same with the first row of a part that binds its sequences' keys and values, and the rest whole (`cut::Part`).
        const PARAMS_OF_PART: &str = concat!("struct Params {\n", $(stringify!($field), ": ", stringify!($ty), ",\n",)* "first: u32,\n}\n");
    };
}

parameters! {
    /// Shapes: `q, o [rows, heads·head_dim]`, `k, v [sequences, kv_len, kv_heads·head_dim]`, `mask [sequences, kv_len] u32`.
    pub struct Shape {
        /// Tokens in the batch.
        rows: u32,
        /// Rows of one sequence.
        q_len: u32,
        /// Keys of one sequence (capacity of the cache).
        kv_len: u32,
        /// Query heads.
        heads: u32,
        /// KV heads.
        kv_heads: u32,
        /// Size of a head, at most 256.
        head_dim: u32,
        /// 1/√head_dim.
        scale: f32,
    }
}

/// How keys and values are held.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Cached {
    /// float32.
    Float,
    /// float16, two in a word: heads of even size.
    #[default]
    Half,
    /// Signed bytes with a step for each position and head (absmax / 127), `head_dim / 4 + 1` words: heads of a size that
    /// four divides.
    Int8,
}

impl Cached {
    /// The form for heads of a size: itself, or the next larger one that can hold them.
    pub fn fitting(self, head_dim: usize) -> Self {
        match self {
            Cached::Int8 if !head_dim.is_multiple_of(4) => Cached::Half.fitting(head_dim),
            Cached::Half if !head_dim.is_multiple_of(2) => Cached::Float,
            form => form,
        }
    }
    /// Words of a head at a position.
    pub fn words(self, head_dim: usize) -> usize {
        match self {
            Cached::Float => head_dim,
            Cached::Half => head_dim / 2,
            Cached::Int8 => head_dim / 4 + 1,
        }
    }
    /// The forward kernel.
    pub fn attention(self) -> &'static Kernel {
        match self {
            Cached::Float => &ATTENTION,
            Cached::Half => &ATTENTION_HALF,
            Cached::Int8 => &ATTENTION_INT8,
        }
    }
}

/// Workgroups of the forward pass: one per (row, head), flat index `r·heads + h`.
fn per_head(p: &Params) -> [u32; 3] {
    let s: Shape = p.get();
    grid_1d((s.rows * s.heads) as usize, 1)
}

const FORWARD: &[Binding] = &[read("q"), read("k"), read("v"), read("mask"), read("pos"), write("o"), write("stats")];

/// Bindings: `q`, `k`, `v`, `mask`, `pos [rows] u32`, `o`, `stats` (writes lse at [.., 0]; [.., 1] is unspecified).
pub static ATTENTION: Kernel = Kernel {
    name: "attention",
    revision: 1,
    wgsl: &[PARAMS_OF_PART, include_str!("kv_float.wgsl"), include_str!("forward.wgsl")],
    bindings: FORWARD,
    grid: per_head,
    cut: |p| cut::over_cache(p, Cached::Float),
    variants: &[],
    scratch: NO_SCRATCH,
    cpu: |p, bufs| cpu::forward(p, bufs, Cached::Float),
};

/// As [`ATTENTION`], keys and values as [`Cached::Half`].
pub static ATTENTION_HALF: Kernel = Kernel {
    name: "attention_half",
    revision: 1,
    wgsl: &[
        PARAMS_OF_PART,
        include_str!("../half_value.wgsl"),
        include_str!("../half.wgsl"),
        include_str!("kv_half.wgsl"),
        include_str!("forward.wgsl"),
    ],
    bindings: FORWARD,
    grid: per_head,
    cut: |p| cut::over_cache(p, Cached::Half),
    variants: &[],
    scratch: NO_SCRATCH,
    cpu: |p, bufs| cpu::forward(p, bufs, Cached::Half),
};

/// As [`ATTENTION`], keys and values as [`Cached::Int8`].
pub static ATTENTION_INT8: Kernel = Kernel {
    name: "attention_int8",
    revision: 1,
    wgsl: &[PARAMS_OF_PART, include_str!("kv_int8.wgsl"), include_str!("forward.wgsl")],
    bindings: FORWARD,
    grid: per_head,
    cut: |p| cut::over_cache(p, Cached::Int8),
    variants: &[],
    scratch: NO_SCRATCH,
    cpu: |p, bufs| cpu::forward(p, bufs, Cached::Int8),
};

/// `stats[r, h, 1] = Σ_d do·o`. Bindings: `do_`, `o`, `stats` (updated). One thread per (row, head).
pub static ATTENTION_DELTA: Kernel = Kernel {
    name: "attention_delta",
    revision: 1,
    wgsl: &[PARAMS, include_str!("delta.wgsl")],
    bindings: &[read("do_"), read("o"), update("stats")],
    grid: |p| {
        let s: Shape = p.get();
        grid_1d((s.rows * s.heads) as usize, 64)
    },
    cut: |p| {
        let s: Shape = p.get();
        let row = (s.heads * s.head_dim) as usize;
        along_first(p, &[row, row, 2 * s.heads as usize])
    },
    variants: &[],
    scratch: NO_SCRATCH,
    cpu: cpu::delta,
};

/// `dq = scale·Σ_j ds_j k_j`. Bindings: `q`, `k`, `v`, `mask`, `do_`, `stats`, `dq`. One workgroup per (row, head).
pub static ATTENTION_GRAD_Q: Kernel = Kernel {
    name: "attention_grad_q",
    revision: 1,
    wgsl: &[PARAMS, include_str!("grad_q.wgsl")],
    bindings: &[read("q"), read("k"), read("v"), read("mask"), read("do_"), read("stats"), write("dq")],
    grid: |p| {
        let s: Shape = p.get();
        grid_1d((s.rows * s.heads) as usize, 1)
    },
    cut: cut::grad_q,
    variants: &[],
    scratch: NO_SCRATCH,
    cpu: cpu::grad_q,
};

/// `dk_j = scale·Σ_i ds_ij q_i`, `dv_j = Σ_i p_ij do_i`, over the query heads of the group (ascending) and rows `i ≥ j`
/// (ascending). Bindings: `q`, `k`, `v`, `mask`, `do_`, `stats`, `dk`, `dv`. One workgroup per (key row, KV head).
pub static ATTENTION_GRAD_KV: Kernel = Kernel {
    name: "attention_grad_kv",
    revision: 1,
    wgsl: &[PARAMS, include_str!("grad_kv.wgsl")],
    bindings: &[read("q"), read("k"), read("v"), read("mask"), read("do_"), read("stats"), write("dk"), write("dv")],
    grid: |p| {
        let s: Shape = p.get();
        grid_1d((s.rows * s.kv_heads) as usize, 1)
    },
    cut: cut::grad_kv,
    variants: &[],
    scratch: NO_SCRATCH,
    cpu: cpu::grad_kv,
};
