//! Weights on their way to ternary: a mix of masters and of what their codes stand for, hard or softly assigned.
//!
//! With `u = w / s`, the scale and the code `q` that [`super::groups::TERNARISE_GROUPS`] or [`super::TERNARISE`] made of the
//! same masters, pressure `p = hyper[PRESSURE]` and temperature `T`:
//! `y = (1 − p)·w + p·w̃`, `w̃ = s·Σ_q q·softmax_q(−(u − q)² / T)` over q ∈ {−1, 0, 1} (Hestia, arXiv 2601.20745), or `w̃ = s·q`
//! where `hyper[INV_TEMPERATURE]` is 0. At `p = 1` and `T = 0` these are the values of the codes, bit for bit.

use bytemuck::{Pod, Zeroable};
use rayon::prelude::*;

use super::groups::{GROUP, Scales, row_scale_words, values};
use super::packed_words;
use crate::cut::along_first;
use crate::kernel::{Bufs, Kernel, NO_SCRATCH, Params, grid_1d, read, update, write};
use crate::kernels::hyper;
use crate::simd::math::exp;

/// Shapes: `w`, `y`, `dw [rows, cols]`, `codes [rows, ceil(cols/16)]`, `scale` in the form of `groups`, `factor [1]`: what the
/// temperature of this tensor is multiplied by.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
pub struct Shape {
    /// Output features.
    pub rows: u32,
    /// Input features.
    pub cols: u32,
    /// Scales of a row in the buffer: 1, or `cols / 64`.
    pub groups: u32,
}

/// `y` as the module says. Bindings: `w`, `codes`, `scale`, `hyper`, `factor`, `y`. One thread per element.
pub static SOFTEN: Kernel = Kernel {
    name: "soften",
    revision: 1,
    wgsl: &[
        hyper::WGSL,
        include_str!("../exp_low.wgsl"),
        include_str!("soften_head.wgsl"),
        include_str!("scale_of.wgsl"),
        include_str!("soften.wgsl"),
        include_str!("../half_value.wgsl"),
        include_str!("weight.wgsl"),
    ],
    bindings: &[read("w"), read("codes"), read("scale"), read("hyper"), read("factor"), write("y")],
    grid: elements,
    cut: |p| {
        let s: Shape = p.get();
        let cols = s.cols as usize;
        along_first(p, &[cols, packed_words(cols), row_scale_words(s.groups as usize), 0, 0, cols])
    },
    variants: &[],
    scratch: NO_SCRATCH,
    cpu: soften,
};

/// The gradient of `w` from that of `y`, in place: `dw ← dw·((1 − p) + p·f'(u))`, `f'(u) = 2/T·(E[q²] − E[q]²)`; where the
/// temperature is 0 it is passed straight through. Scales count as constants, as they do for the straight-through estimator.
/// Bindings: `w`, `scale`, `hyper`, `factor`, `dw`. One thread per element.
pub static SOFTEN_GRAD: Kernel = Kernel {
    name: "soften_grad",
    revision: 1,
    wgsl: &[
        hyper::WGSL,
        include_str!("../exp_low.wgsl"),
        include_str!("soften_head.wgsl"),
        include_str!("scale_of.wgsl"),
        include_str!("soften_grad.wgsl"),
        include_str!("../half_value.wgsl"),
    ],
    bindings: &[read("w"), read("scale"), read("hyper"), read("factor"), update("dw")],
    grid: elements,
    cut: |p| {
        let s: Shape = p.get();
        let cols = s.cols as usize;
        along_first(p, &[cols, row_scale_words(s.groups as usize), 0, 0, cols])
    },
    variants: &[],
    scratch: NO_SCRATCH,
    cpu: soften_grad,
};

fn elements(p: &Params) -> [u32; 3] {
    let s: Shape = p.get();
    grid_1d(s.rows as usize * s.cols as usize, 256)
}

/// Pressure, and 1 / T of a tensor: 0 where its weights are hard.
fn how(hyper: &[f32], factor: &[f32]) -> (f32, f32) {
    (hyper[hyper::PRESSURE], hyper[hyper::INV_TEMPERATURE] / factor[0])
}

fn soften(p: &Params, bufs: Bufs<'_>) {
    let s: Shape = p.get();
    let [w, codes, scale, hyper, factor, y] = bufs.take();
    let (cols, scales, codes) = (s.cols as usize, Scales::of(scale.u32(), s.groups), codes.u32());
    let (pressure, inv_t) = how(hyper.f32(), factor.f32());
    let rows = y.f32_mut().par_chunks_exact_mut(cols).zip(w.f32().par_chunks_exact(cols)).take(s.rows as usize).enumerate();
    rows.for_each(|(r, (y, w))| {
        values(codes, scales, cols, r, 0, y);
        for (g, (y, w)) in y.chunks_mut(GROUP).zip(w.chunks(GROUP)).enumerate() {
            if inv_t != 0.0 {
                soft(w, scales.at(r, g * GROUP), inv_t, y);
            }
            if pressure != 1.0 {
                mix(w, pressure, y);
            }
        }
    });
}

fn soften_grad(p: &Params, bufs: Bufs<'_>) {
    let s: Shape = p.get();
    let [w, scale, hyper, factor, dw] = bufs.take();
    let (cols, scales) = (s.cols as usize, Scales::of(scale.u32(), s.groups));
    let (pressure, inv_t) = how(hyper.f32(), factor.f32());
    if inv_t == 0.0 {
        return;
    }
    let rows = dw.f32_mut().par_chunks_exact_mut(cols).zip(w.f32().par_chunks_exact(cols)).take(s.rows as usize).enumerate();
    rows.for_each(|(r, (dw, w))| {
        for (g, (dw, w)) in dw.chunks_mut(GROUP).zip(w.chunks(GROUP)).enumerate() {
            slopes(w, scales.at(r, g * GROUP), (pressure, inv_t), dw);
        }
    });
}

/// What the three values weigh, relative to the likeliest: of −1, of 0, of +1.
#[inline(always)]
fn shares(u: f32, inv_t: f32) -> (f32, f32, f32) {
    let (plus, minus) = (2.0f32.mul_add(u, -1.0) * inv_t, (-2.0f32).mul_add(u, -1.0) * inv_t);
    let top = if plus > minus { plus } else { minus };
    let top = if top > 0.0 { top } else { 0.0 };
    (exp(minus - top), exp(-top), exp(plus - top))
}

crate::simd! {
    /// s·Σ q·softmax of weights that share a scale.
    fn soft(w: &[f32], s: f32, inv_t: f32, y: &mut [f32]) {
        for (y, w) in y.iter_mut().zip(w) {
            let (minus, zero, plus) = shares(w / s, inv_t);
            *y = s * ((plus - minus) / (minus + zero + plus));
        }
    }

    fn mix(w: &[f32], pressure: f32, y: &mut [f32]) {
        let rest = 1.0 - pressure;
        for (y, w) in y.iter_mut().zip(w) {
            *y = pressure.mul_add(*y, rest * w);
        }
    }

    /// Gradients of `y` become those of `w`.
    fn slopes(w: &[f32], s: f32, how: (f32, f32), dw: &mut [f32]) {
        let (pressure, inv_t) = how;
        for (dw, w) in dw.iter_mut().zip(w) {
            let (minus, zero, plus) = shares(w / s, inv_t);
            let all = minus + zero + plus;
            let (mean, square) = ((plus - minus) / all, (plus + minus) / all);
            let slope = 2.0 * inv_t * (-mean).mul_add(mean, square);
            *dw *= pressure.mul_add(slope, 1.0 - pressure);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Differences of the soft values at a fixed scale give the slope.
    #[test]
    fn slopes_are_differences() {
        let s = 0.37f32;
        for inv_t in [2.0f32, 10.0, 40.0] {
            for i in -40..=40 {
                let w = i as f32 * 0.05 * s;
                let f = |w: f32| {
                    let u = f64::from(w) / f64::from(s);
                    let e = |q: f64| (-(u - q) * (u - q) * f64::from(inv_t)).exp();
                    f64::from(s) * (e(1.0) - e(-1.0)) / (e(1.0) + e(0.0) + e(-1.0))
                };
                let mut y = [0f32];
                soft(&[w], s, inv_t, &mut y);
                assert!((f64::from(y[0]) - f(w)).abs() < 1e-5, "{w} {inv_t}: {} {}", y[0], f(w));
                let (h, pressure) = (1e-4f32, 0.8f32);
                let difference = (f(w + h) - f(w - h)) / (f64::from(w + h) - f64::from(w - h));
                let mut dw = [1f32];
                slopes(&[w], s, (pressure, inv_t), &mut dw);
                let want = 0.2 + 0.8 * difference;
                assert!((f64::from(dw[0]) - want).abs() < 1e-3 * want.abs().max(1.0), "{w} {inv_t}: {} {want}", dw[0]);
            }
        }
    }
}
