//! Codes of activations as the values that they stand for: what a product with weights that are no codes takes.

use rayon::prelude::*;

use super::{RowScale, Shape};
use crate::cut::along_first;
use crate::kernel::{Bufs, Kernel, NO_SCRATCH, Params, grid_1d, read, write};

/// `y = q · step`. Shapes: `q [rows, words]`, `scales [rows]` of [`RowScale`], `y [rows, cols]`. Bindings: `q`, `scales`, `y`.
/// One thread per element.
pub static ACT_VALUES: Kernel = Kernel {
    name: "act_values",
    revision: 1,
    wgsl: &[include_str!("values.wgsl")],
    bindings: &[read("q"), read("scales"), write("y")],
    grid: |p| {
        let s: Shape = p.get();
        grid_1d(s.rows as usize * s.cols as usize, 256)
    },
    cut: |p| {
        let s: Shape = p.get();
        along_first(p, &[s.words as usize, 2, s.cols as usize])
    },
    variants: &[],
    scratch: NO_SCRATCH,
    cpu: values,
};

fn values(p: &Params, bufs: Bufs<'_>) {
    let s: Shape = p.get();
    let [q, scales, y] = bufs.take();
    let scales: &[RowScale] = bytemuck::cast_slice(scales.u32());
    let rows = y.f32_mut().par_chunks_exact_mut(s.cols as usize).zip(q.u32().par_chunks_exact(s.words as usize)).zip(scales);
    rows.take(s.rows as usize).for_each(|((y, q), scale)| row(bytemuck::cast_slice(q), scale.step, y));
}

crate::simd! {
    fn row(q: &[i8], step: f32, y: &mut [f32]) {
        for (y, q) in y.iter_mut().zip(q) {
            *y = f32::from(*q) * step;
        }
    }
}
