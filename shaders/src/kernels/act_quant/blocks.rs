//! Activations in blocks of 64 with a step each: what a model that was trained with float activations takes at inference.

use rayon::prelude::*;

use super::Shape;
use crate::cut::along_first;
use crate::kernel::{Bufs, Kernel, NO_SCRATCH, Params, grid_1d, read, write};

/// Activations that share a step.
pub const BLOCK: usize = 64;

/// The largest code.
const QMAX: f32 = 127.0;

/// `step = max|x| / 127` of each block, `q = round_half_even(x / step)`. Shapes: `x [rows, cols]`, `q [rows, words]`, `steps
/// [rows, ceil(cols/64)]`. Bindings: `x`, `q`, `steps`. One thread per block.
pub static ACT_QUANT_BLOCKS: Kernel = Kernel {
    name: "act_quant_blocks",
    revision: 1,
    wgsl: &[include_str!("block_code.wgsl"), include_str!("blocks.wgsl"), include_str!("../divide.wgsl")],
    bindings: &[read("x"), write("q"), write("steps")],
    grid: blocks,
    cut: |p| {
        let s: Shape = p.get();
        let cols = s.cols as usize;
        along_first(p, &[cols, s.words as usize, cols.div_ceil(BLOCK)])
    },
    variants: &[],
    scratch: NO_SCRATCH,
    cpu: quantise,
};

/// The same as values again: `y = q · step`. Bindings: `x`, `y`. One thread per block.
pub static ACT_ROUND_BLOCKS: Kernel = Kernel {
    name: "act_round_blocks",
    revision: 1,
    wgsl: &[include_str!("block_code.wgsl"), include_str!("round.wgsl"), include_str!("../divide.wgsl")],
    bindings: &[read("x"), write("y")],
    grid: blocks,
    cut: |p| {
        let cols = p.get::<Shape>().cols as usize;
        along_first(p, &[cols, cols])
    },
    variants: &[],
    scratch: NO_SCRATCH,
    cpu: round,
};

fn blocks(p: &Params) -> [u32; 3] {
    let s: Shape = p.get();
    grid_1d(s.rows as usize * (s.cols as usize).div_ceil(BLOCK), 64)
}

fn quantise(p: &Params, bufs: Bufs<'_>) {
    let s: Shape = p.get();
    let [x, q, steps] = bufs.take();
    let (cols, words) = (s.cols as usize, s.words as usize);
    let rows = x.f32().par_chunks_exact(cols).zip(q.u32_mut().par_chunks_exact_mut(words));
    rows.zip(steps.f32_mut().par_chunks_exact_mut(cols.div_ceil(BLOCK))).take(s.rows as usize).for_each(|((x, q), steps)| {
        let q: &mut [i8] = bytemuck::cast_slice_mut(q);
        q[cols..].fill(0);
        for ((x, q), step) in x.chunks(BLOCK).zip(q.chunks_mut(BLOCK)).zip(steps) {
            *step = block(x, q);
        }
    });
}

fn round(p: &Params, bufs: Bufs<'_>) {
    let s: Shape = p.get();
    let [x, y] = bufs.take();
    let cols = s.cols as usize;
    y.f32_mut().par_chunks_exact_mut(cols).zip(x.f32().par_chunks_exact(cols)).take(s.rows as usize).for_each(|(y, x)| {
        let mut codes = [0i8; BLOCK];
        for (x, y) in x.chunks(BLOCK).zip(y.chunks_mut(BLOCK)) {
            let step = block(x, &mut codes);
            y.iter_mut().zip(codes).for_each(|(y, q)| *y = f32::from(q) * step);
        }
    });
}

crate::simd! {
    /// Codes of a block and their step.
    fn block(x: &[f32], q: &mut [i8]) -> f32 {
        let mut largest = 0f32;
        for v in x {
            largest = largest.max(v.abs());
        }
        let step = largest / QMAX;
        for (q, x) in q.iter_mut().zip(x) {
            // A block of zeros: 0 / 0 becomes 0.
            let v = x / step;
            let v = if v.is_nan() { 0.0 } else { v.clamp(-QMAX, QMAX) };
            // Adding 1.5·2^23 rounds ties to even and leaves the integer in the low bits.
            *q = (v + ROUND).to_bits().wrapping_sub(ROUND.to_bits()) as i8;
        }
        step
    }
}

const ROUND: f32 = 12_582_912.0;
