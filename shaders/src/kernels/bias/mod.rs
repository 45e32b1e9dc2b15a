//! The bias of a linear: its rows are what the product is added to, its gradient the sum over rows.

use bytemuck::{Pod, Zeroable};
use rayon::prelude::*;

use crate::cut::along_first;
use crate::kernel::{Bufs, Kernel, NO_SCRATCH, Params, grid_1d, read, update, write};

/// Shapes: `y, dy [rows, cols]`, `b, db [cols]`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
pub struct Shape {
    /// Tokens.
    pub rows: u32,
    /// Output features.
    pub cols: u32,
}

/// `y[r, c] = b[c]`. Bindings: `b`, `y`. One thread per element of `y`.
pub static BIAS: Kernel = Kernel {
    name: "bias",
    revision: 1,
    wgsl: &[include_str!("spread.wgsl")],
    bindings: &[read("b"), write("y")],
    grid: |p| {
        let s: Shape = p.get();
        grid_1d(s.rows as usize * s.cols as usize, 256)
    },
    cut: |p| along_first(p, &[0, p.get::<Shape>().cols as usize]),
    variants: &[],
    scratch: NO_SCRATCH,
    cpu: spread,
};

/// `db[c] += Σ_r dy[r, c]`, rows in ascending order. Bindings: `dy`, `db` (added to). One thread per column.
pub static BIAS_GRAD: Kernel = Kernel {
    name: "bias_grad",
    revision: 1,
    wgsl: &[include_str!("grad.wgsl")],
    bindings: &[read("dy"), update("db")],
    grid: |p| grid_1d(p.get::<Shape>().cols as usize, 64),
    // The later parts of the sum go on from what is there.
    cut: |p| along_first(p, &[p.get::<Shape>().cols as usize, 0]),
    variants: &[],
    scratch: NO_SCRATCH,
    cpu: grad,
};

fn spread(p: &Params, bufs: Bufs<'_>) {
    let s: Shape = p.get();
    let [b, y] = bufs.take();
    let (b, cols) = (b.f32(), s.cols as usize);
    y.f32_mut().par_chunks_exact_mut(cols).take(s.rows as usize).for_each(|y| y.copy_from_slice(&b[..cols]));
}

fn grad(p: &Params, bufs: Bufs<'_>) {
    let s: Shape = p.get();
    let [dy, db] = bufs.take();
    let (dy, cols) = (dy.f32(), s.cols as usize);
    // Columns in parallel, rows ascending: the order of every sum is that of the formula.
    db.f32_mut()[..cols].par_chunks_mut(64).enumerate().for_each(|(i, db)| {
        for dy in dy.chunks_exact(cols).take(s.rows as usize) {
            db.iter_mut().zip(&dy[i * 64..]).for_each(|(d, dy)| *d += dy);
        }
    });
}
