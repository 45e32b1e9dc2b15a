//! Appends keys or values to a cache: `cache[r / q_len, pos[r], :] = x[r, :]`, as floats or in the other forms of
//! `attention::Cached`.

mod cpu;

use bytemuck::{Pod, Zeroable};

use super::attention::Cached;
use crate::cut::{Cut, along_sequences};
use crate::kernel::{Kernel, NO_SCRATCH, Params, grid_1d, read, update};

/// Shapes: `x [rows, cols]`, `pos [rows] u32`, `cache [sequences, kv_len, cols]`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
pub struct Shape {
    /// Tokens.
    pub rows: u32,
    /// Rows of one sequence.
    pub q_len: u32,
    /// Capacity of one sequence.
    pub kv_len: u32,
    /// KV heads · head size.
    pub cols: u32,
    /// Head size.
    pub head_dim: u32,
}

/// A dispatch, or a part of one that binds its sequences' cache, and the rest whole.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Part {
    shape: Shape,
    /// Its first row.
    first: u32,
}

/// Cut along whole sequences; or only their cache, where a few rows do not begin where a binding may.
fn into_cache(p: &Params, form: Cached) -> Vec<Cut> {
    let Part { shape: s, first } = p.get();
    let heads = s.cols / s.head_dim;
    let kv = (s.kv_len * heads) as usize * form.words(s.head_dim as usize);
    let part = move |from, rows| Params::new(&Part { shape: Shape { rows, ..s }, first: first + from });
    let cache = along_sequences(s.rows, s.q_len, &[0, 0, kv], part);
    // What already begins at a later row than its bindings stays so.
    if first > 0 {
        return vec![cache];
    }
    let words = [(s.q_len * s.cols) as usize, s.q_len as usize, kv];
    vec![along_sequences(s.rows, s.q_len, &words, move |_, rows| Params::new(&Shape { rows, ..s })), cache]
}

/// Bindings: `x`, `pos`, `cache` (updated). One thread per element of `x`.
pub static KV_STORE: Kernel = Kernel {
    name: "kv_store",
    revision: 1,
    wgsl: &[include_str!("rows.wgsl"), include_str!("kernel.wgsl")],
    bindings: &[read("x"), read("pos"), update("cache")],
    grid: |p| {
        let s: Shape = p.get();
        grid_1d((s.rows * s.cols) as usize, 256)
    },
    cut: |p| into_cache(p, Cached::Float),
    variants: &[],
    scratch: NO_SCRATCH,
    cpu: cpu::kv_store,
};

/// float16, rounded to nearest (what is too large becomes the largest). Bindings as [`KV_STORE`]; one thread per word.
pub static KV_STORE_HALF: Kernel = Kernel {
    name: "kv_store_half",
    revision: 1,
    wgsl: &[include_str!("../half_bits.wgsl"), include_str!("rows.wgsl"), include_str!("half.wgsl")],
    bindings: &[read("x"), read("pos"), update("cache")],
    grid: |p| {
        let s: Shape = p.get();
        grid_1d((s.rows * s.cols / 2) as usize, 256)
    },
    cut: |p| into_cache(p, Cached::Half),
    variants: &[],
    scratch: NO_SCRATCH,
    cpu: cpu::kv_store_half,
};

/// Bytes with a step: quantised as by `act_quant` (absmax) with 127. Bindings as [`KV_STORE`]; one thread per head.
pub static KV_STORE_INT8: Kernel = Kernel {
    name: "kv_store_int8",
    revision: 1,
    wgsl: &[include_str!("rows.wgsl"), include_str!("int8.wgsl"), include_str!("../divide.wgsl")],
    bindings: &[read("x"), read("pos"), update("cache")],
    grid: |p| {
        let s: Shape = p.get();
        grid_1d((s.rows * s.cols / s.head_dim) as usize, 64)
    },
    cut: |p| into_cache(p, Cached::Int8),
    variants: &[],
    scratch: NO_SCRATCH,
    cpu: cpu::kv_store_int8,
};

/// The kernel that stores in a form.
pub fn store(form: Cached) -> &'static Kernel {
    match form {
        Cached::Float => &KV_STORE,
        Cached::Half => &KV_STORE_HALF,
        Cached::Int8 => &KV_STORE_INT8,
    }
}
