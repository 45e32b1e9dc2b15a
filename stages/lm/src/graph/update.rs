//! Global-norm clip and the optimizer step as operations: AdamW everywhere, or Muon for the hidden matrices.

use flow_shaders::kernels::{adamw, clip, gemm, muon, ternary};
use flow_shaders::program::{BufferId, ListId, Program};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::declare::{Graph, Packed};
use super::tape::{Gradients, Storage};
use crate::config::{Role, TensorSpec, Weights};

/// Which optimizer updates the block linears; everything else is AdamW's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Optimizer {
    /// AdamW (arXiv 1711.05101).
    Adamw,
    /// Muon (K. Jordan and others, 2024), with AdamW for embeddings, norms and head.
    Muon,
}

/// How AdamW's moments are held.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Moments {
    /// 32-bit floats.
    #[default]
    Float32,
    /// One byte each, with scales per block of 256 (tensors of fewer than 4,096 elements stay float32).
    Int8,
}

/// How Muon makes an update nearly orthogonal.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct NewtonSchulz {
    /// Steps.
    pub steps: usize,
    /// Coefficients of each step for singular values from here to the largest one ([`muon::polar`]); none: the one quintic.
    pub low: Option<f32>,
}

impl NewtonSchulz {
    /// So many steps of the one quintic.
    pub const fn quintic(steps: usize) -> Self {
        Self { steps, low: None }
    }
    fn coefficients(&self) -> Vec<[f32; 3]> {
        match self.low {
            None => vec![muon::NS; self.steps],
            Some(low) => muon::polar(f64::from(low), self.steps),
        }
    }
}

/// Tensors of fewer elements keep their moments as floats: there is nothing to gain.
const SMALL: usize = 4096;

/// Optimizer state of one tensor.
#[derive(Clone, Copy, Debug)]
pub(crate) enum State {
    /// First and second moment.
    Adamw(BufferId, BufferId),
    /// First and second moment in bytes, and their scales.
    AdamwInt8(BufferId, BufferId, BufferId),
    /// Momentum.
    Muon(BufferId),
}

impl State {
    /// Its buffers with their names in checkpoints.
    pub fn buffers(&self) -> Vec<(&'static str, BufferId)> {
        match self {
            State::Adamw(m, v) => vec![("m", *m), ("v", *v)],
            State::AdamwInt8(m, v, scales) => vec![("m8", *m), ("v8", *v), ("scales", *scales)],
            State::Muon(b) => vec![("momentum", *b)],
        }
    }
}

impl Graph {
    /// Declares gradients: their buffers, and which of them are float16.
    pub(crate) fn declare_gradients(&mut self, storage: Storage) -> (Vec<BufferId>, Vec<bool>) {
        let specs: Vec<_> = self.tensors.iter().map(|t| t.spec.clone()).collect();
        let declare = |s: &TensorSpec| {
            let half = self.is_half_gradient(s.role, storage);
            let words = if half { s.len().div_ceil(2) } else { s.len() };
            (self.program.persistent(format!("grad.{}", s.name), words), half)
        };
        specs.iter().map(declare).unzip()
    }

    /// A gradient as floats.
    fn gradient(&mut self, list: ListId, g: &Gradients, i: usize) -> BufferId {
        if !g.half[i] {
            return g.grads[i];
        }
        let values = self.unpack_half(list, g.grads[i], self.tensors[i].spec.len());
        self.soften_gradients(list, |j| (j == i).then_some(values));
        values
    }

    /// Declares optimizer state.
    pub(crate) fn declare_state(&mut self, optimizer: Optimizer, moments: Moments) -> Vec<State> {
        let specs: Vec<_> = self.tensors.iter().map(|t| t.spec.clone()).collect();
        specs
            .iter()
            .map(|s| match (optimizer, s.role) {
                (Optimizer::Muon, Role::Linear) => State::Muon(self.program.persistent(format!("momentum.{}", s.name), s.len())),
                _ if moments == Moments::Int8 && s.len() >= SMALL => {
                    let (bytes, scales) = adamw::int8_words(s.len());
                    let [m, v] = ["m8", "v8"].map(|part| self.program.persistent(format!("{part}.{}", s.name), bytes));
                    State::AdamwInt8(m, v, self.program.persistent(format!("scales.{}", s.name), scales))
                }
                _ => State::Adamw(
                    self.program.persistent(format!("m.{}", s.name), s.len()),
                    self.program.persistent(format!("v.{}", s.name), s.len()),
                ),
            })
            .collect()
    }

    /// Appends clip and update. `clip` `[4]` receives norm, factor and skip.
    pub(crate) fn update(&mut self, list: ListId, g: &Gradients, states: &[State], clip_out: BufferId, ns: NewtonSchulz) {
        if self.config.weights == Weights::Threshold {
            self.threshold_gradients(list, &g.grads);
        }
        // Those that are float16 are turned each time that they are read.
        self.soften_gradients(list, |i| (!g.half[i]).then_some(g.grads[i]));
        let total: usize = self.tensors.iter().map(|t| clip::partials(t.spec.len())).sum();
        let partials = self.program.transient("clip.partials", total);
        let mut offset = 0;
        for i in 0..self.tensors.len() {
            let n = self.tensors[i].spec.len();
            let gradient = self.gradient(list, g, i);
            self.program.push(list, &clip::SUM_SQ, &[gradient, partials], &clip::SumSq { n: n as u32, offset });
            offset += clip::partials(n) as u32;
        }
        self.program.push(list, &clip::CLIP_FINISH, &[partials, self.hyper, clip_out], &clip::Finish { n: total as u32 });
        let hidden = states.iter().filter(|s| matches!(s, State::Muon(_))).count();
        let mut chains = 0;
        let mut from = self.program.len_of(list);
        // AdamW's tensors first, then Muon's: those of a layer step together, as their products are small.
        let muon_last = |i: &usize| matches!(states[*i], State::Muon(_));
        let mut order: Vec<usize> = (0..self.tensors.len()).collect();
        order.sort_by_key(muon_last);
        for (done, i) in order.into_iter().enumerate() {
            let spec = self.tensors[i].spec.clone();
            let w = self.tensors[i].master.expect("training keeps masters");
            let gradient = self.gradient(list, g, i);
            let decay = if matches!(spec.role, Role::Linear | Role::Head) { 1.0 } else { 0.0 };
            let shape = adamw::Shape { n: spec.len() as u32, decay };
            match states[i] {
                State::Adamw(m, v) => {
                    self.program.push(list, &adamw::ADAMW, &[self.hyper, clip_out, gradient, w, m, v], &shape);
                    from = self.program.len_of(list);
                }
                State::AdamwInt8(m, v, scales) => {
                    self.program.push(list, &adamw::ADAMW_INT8, &[self.hyper, clip_out, gradient, w, m, v, scales], &shape);
                    from = self.program.len_of(list);
                }
                State::Muon(b) => {
                    self.muon(list, gradient, w, b, clip_out, (spec.shape[0], spec.shape[1]), ns);
                    chains += 1;
                    if chains == hidden / self.config.layers || done + 1 == states.len() {
                        self.program.interleave(list, from, chains);
                        (chains, from) = (0, self.program.len_of(list));
                    }
                }
            }
        }
    }

    /// Turns the gradient of scaled codes into those of master and learned scale.
    fn threshold_gradients(&mut self, list: ListId, grads: &[BufferId]) {
        for i in 0..self.tensors.len() {
            let t = &self.tensors[i];
            let Some(Packed { codes, .. }) = t.packed else { continue };
            let shape = ternary::Shape { rows: t.spec.shape[0] as u32, cols: t.spec.shape[1] as u32, rule: 1 };
            let scale_name = format!("{}_scale", t.spec.name);
            let (scale, dscale) = (self.values(&scale_name), grads[self.tensor(&scale_name)]);
            self.program.push(list, &ternary::THRESHOLD_GRAD, &[codes, scale, grads[i], dscale], &shape);
        }
    }

    /// One matrix `[rows, cols]`: the steps run on the Gram matrix of the smaller side (see `muon`).
    #[allow(clippy::too_many_arguments)]
    pub fn muon(
        &mut self,
        list: ListId,
        grad: BufferId,
        w: BufferId,
        momentum: BufferId,
        clip_out: BufferId,
        (rows, cols): (usize, usize),
        ns: NewtonSchulz,
    ) {
        let (n, side) = (rows * cols, rows.min(cols));
        let p = &mut self.program;
        let u = p.transient("muon.u", n);
        p.push(list, &muon::MUON_MOMENTUM, &[self.hyper, clip_out, grad, momentum, w, u], &muon::Momentum { n: n as u32 });
        // Steps with coefficients of their own run on the normed Gram matrix of `u` itself.
        let x = if ns.low.is_some() { u } else { Self::divided_by_norm(p, list, u, n, muon::EPS).0 };
        let mut gram = p.transient("muon.gram", side * side);
        let (r, c, s) = (rows as u32, cols as u32, side as u32);
        let symmetric = gemm::Shape { m: s, n: s, k: s, add: 0, symmetric: 1 };
        if rows <= cols {
            p.push(list, &gemm::GEMM_NT, &[x, x, gram], &gemm::Shape { k: c, ..symmetric });
        } else {
            p.push(list, &gemm::GEMM_TN, &[x, x, gram], &gemm::Shape { k: r, ..symmetric });
        }
        let mut squares = None;
        if ns.low.is_some() {
            let (scaled, partials) = Self::divided_by_norm(p, list, gram, side * side, muon::GRAM_EPS);
            (gram, squares) = (scaled, Some(partials));
        }
        let q = Self::newton_schulz(p, list, gram, side, ns);
        // Rate, norm and sign are in the small factor: the last product is the update.
        let (scaled, factor) = (p.transient("muon.scaled", side * side), (rows as f32 / cols as f32).max(1.0).sqrt());
        let partials = squares.map_or(0, |_| clip::partials(side * side) as u32);
        let shape = muon::Scale { n: (side * side) as u32, factor, partials };
        p.push(list, &muon::MUON_SCALE, &[self.hyper, clip_out, squares.unwrap_or(clip_out), q, scaled], &shape);
        let update = gemm::Shape { m: r, n: c, k: s, add: 1, symmetric: 0 };
        if rows <= cols {
            p.push(list, &gemm::GEMM_TN, &[scaled, x, w], &update);
        } else {
            p.push(list, &gemm::GEMM_NN, &[x, scaled, w], &update);
        }
    }

    /// The product of the steps' polynomials of a Gram matrix.
    fn newton_schulz(p: &mut Program, list: ListId, gram: BufferId, side: usize, ns: NewtonSchulz) -> BufferId {
        let (n, s) = (side * side, side as u32);
        let symmetric = gemm::Shape { m: s, n: s, k: s, add: 0, symmetric: 1 };
        // Left factors are symmetric: read transposed, their rows are packed without a gather.
        let product = |p: &mut Program, a, b, name| {
            let out = p.transient(name, n);
            p.push(list, &gemm::GEMM_TN, &[a, b, out], &symmetric);
            out
        };
        let (mut g, mut q) = (gram, None);
        let steps = ns.coefficients();
        for (step, [a, b, c]) in steps.iter().copied().enumerate() {
            let g2 = product(p, g, g, "muon.g2");
            // The norm of the first square bounds the largest singular value better than that of the Gram matrix.
            let bounded = step == 0 && ns.low.is_some();
            let (partials, count) = if bounded { (p.transient("muon.bound", clip::partials(n)), clip::partials(n)) } else { (g2, 0) };
            if bounded {
                p.push(list, &clip::SUM_SQ, &[g2, partials], &clip::SumSq { n: n as u32, offset: 0 });
            }
            let poly = p.transient("muon.poly", n);
            p.push(list, &muon::MUON_POLY, &[g, g2, partials, poly], &muon::Poly { n: s, a, b, c, partials: count as u32 });
            if step + 1 < steps.len() {
                let t = product(p, poly, g, "muon.pg");
                g = product(p, t, poly, "muon.pgp");
            }
            q = Some(match q {
                None => poly,
                Some(q) => product(p, poly, q, "muon.q"),
            });
        }
        q.unwrap_or(gram)
    }

    /// Values divided by the root of their sum of squares, and the partial sums of that.
    fn divided_by_norm(p: &mut Program, list: ListId, values: BufferId, n: usize, eps: f32) -> (BufferId, BufferId) {
        let partials = p.transient("muon.partials", clip::partials(n));
        let normed = p.transient("muon.normed", n);
        p.push(list, &clip::SUM_SQ, &[values, partials], &clip::SumSq { n: n as u32, offset: 0 });
        let shape = muon::Normalise { n: n as u32, partials: clip::partials(n) as u32, eps };
        p.push(list, &muon::MUON_NORMALISE, &[values, partials, normed], &shape);
        (normed, partials)
    }
}
