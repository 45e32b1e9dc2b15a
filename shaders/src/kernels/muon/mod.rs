//! Muon for hidden matrices (K. Jordan and others, 2024): momentum orthogonalised by Newton–Schulz steps.
//!
//! `b ← μ b + g·clip.factor`, `u = g·clip.factor + μ b` (Nesterov), `X = u/(‖u‖_F + 1e-7)`, then `iterations` times
//! `X ← (a I + b G + c G²) X` with `G = X Xᵀ` (or `Xᵀ X` when rows > cols), `a, b, c = 3.4445, −4.7750, 2.0315`, and
//! `W ← W(1 − lr·wd) − lr·√max(1, rows/cols)·X`. All factors are polynomials of the first `G` and commute, so the
//! program iterates on the small Gram matrix and touches `u` twice: for the Gram matrix, and in the product that is added to
//! `W`, whose factor carries rate and norm (`scale`).
//!
//! Steps with coefficients of their own ([`polar`]) reach in two or three what five of those do, if the largest singular value
//! is near 1 at the start. ‖u‖_F is far above it where there are many alike. The Gram matrix and its square are there anyway,
//! and bound it better: by (Σ σ⁴)^¼ = √‖G‖_F, and by (Σ σ⁸)^⅛ = ‖G²‖_F^¼. So `G` of `u` itself is divided by
//! `‖G‖_F + `[`GRAM_EPS`], the first polynomial by the powers of ρ = ‖G²‖_F^½ that `X ← X/√ρ` means, and `scale` by the rest.

mod cpu;
mod polar;

pub use polar::polar;

use bytemuck::{Pod, Zeroable};

use super::hyper;
use crate::cut::{self, along_first};
use crate::kernel::{Kernel, NO_SCRATCH, grid_1d, read, update, write};

/// What is added to ‖u‖_F.
pub const EPS: f32 = 1e-7;
/// What is added to ‖G‖_F, the square of a gradient's size: above the least that is left of it where its squares underflow.
pub const GRAM_EPS: f32 = 1e-18;

/// Coefficients of the quintic step that is taken again and again.
pub const NS: [f32; 3] = [3.4445, -4.7750, 2.0315];

/// `n` elements.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
pub struct Momentum {
    /// Elements.
    pub n: u32,
}

/// Bindings: `hyper` (MUON_MOMENTUM, MUON_LR, MUON_DECAY), `clip`, `g`, `momentum` (updated), `w` (decayed: `w ← w(1 − lr·wd)`,
/// not touched without decay), `u`. With `clip.skip` momentum and `w` stay and `u = 0`. One thread per element.
pub static MUON_MOMENTUM: Kernel = Kernel {
    name: "muon_momentum",
    revision: 2,
    wgsl: &[hyper::WGSL, include_str!("momentum.wgsl")],
    bindings: &[read("hyper"), read("clip"), read("g"), update("momentum"), update("w"), write("u")],
    grid: |p| grid_1d(p.get::<Momentum>().n as usize, 256),
    cut: |p| along_first(p, &[0, 0, 1, 1, 1, 1]),
    variants: &[],
    scratch: NO_SCRATCH,
    cpu: cpu::momentum,
};

/// `x ← u / (√Σ partials + eps)`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
pub struct Normalise {
    /// Elements.
    pub n: u32,
    /// Partial sums of squares (`sum_sq` with offset 0).
    pub partials: u32,
    /// Added to the root.
    pub eps: f32,
}

/// Bindings: `u`, `partials`, `x`. One thread per element; every thread adds the few partials in order.
pub static MUON_NORMALISE: Kernel = Kernel {
    name: "muon_normalise",
    revision: 2,
    wgsl: &[include_str!("normalise.wgsl")],
    bindings: &[read("u"), read("partials"), write("x")],
    grid: |p| grid_1d(p.get::<Normalise>().n as usize, 256),
    cut: |p| along_first(p, &[1, 0, 1]),
    variants: &[],
    scratch: NO_SCRATCH,
    cpu: cpu::normalise,
};

/// `p = (a·I + b·g/ρ + c·g2/ρ²) / √ρ` for `[n, n]` matrices, with ρ = (Σ partials)^¼ + 1e-6; without partials ρ is 1.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
pub struct Poly {
    /// Side.
    pub n: u32,
    /// Coefficient of the identity.
    pub a: f32,
    /// Coefficient of `g`.
    pub b: f32,
    /// Coefficient of `g2`.
    pub c: f32,
    /// Partial sums of squares of `g2`, where its norm says how large `g` may be; else 0.
    pub partials: u32,
}

/// Bindings: `g`, `g2`, `partials`, `p_out`. One thread per element; every thread adds the few partials in order.
pub static MUON_POLY: Kernel = Kernel {
    name: "muon_poly",
    revision: 2,
    wgsl: &[include_str!("poly.wgsl")],
    bindings: &[read("g"), read("g2"), read("partials"), write("p_out")],
    grid: |p| {
        let n = p.get::<Poly>().n as usize;
        grid_1d(n * n, 256)
    },
    // The identity is added where row and column are equal: a part would not know its first row.
    cut: cut::NEVER,
    variants: &[],
    scratch: NO_SCRATCH,
    cpu: cpu::poly,
};

/// `q_out = −lr·factor·q / (√Σ partials + 1e-18)^½`; without partials the divisor is 1. With `clip.skip` it is 0.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
pub struct Scale {
    /// Elements.
    pub n: u32,
    /// √max(1, rows/cols).
    pub factor: f32,
    /// Partial sums of squares of the Gram matrix, where the steps ran on `G/‖G‖_F`; else 0.
    pub partials: u32,
}

/// Bindings: `hyper` (MUON_LR), `clip`, `partials`, `q`, `q_out`. One thread per element; every thread adds the few partials in
/// order.
pub static MUON_SCALE: Kernel = Kernel {
    name: "muon_scale",
    revision: 1,
    wgsl: &[hyper::WGSL, include_str!("scale.wgsl")],
    bindings: &[read("hyper"), read("clip"), read("partials"), read("q"), write("q_out")],
    grid: |p| grid_1d(p.get::<Scale>().n as usize, 256),
    cut: |p| along_first(p, &[0, 0, 0, 1, 1]),
    variants: &[],
    scratch: NO_SCRATCH,
    cpu: cpu::scale,
};
