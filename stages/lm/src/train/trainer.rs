//! A training session: the program of one optimizer step on a device, fed with micro-batches from the host.

use std::collections::BTreeMap;

use flow_shaders::device::{self, Device};
use flow_shaders::kernels::{hyper, kd_loss};
use flow_shaders::program::{BufferId, ListId};

use super::batch::MicroBatch;
use crate::config::{Bits, ModelConfig, TensorSpec, Weights};
use crate::error::Result;
use crate::format::tensors::{PackedMatrix, half_pair};
use crate::graph::backward::{Gradients, Pass};
use crate::graph::tape::Keep;
use crate::graph::update::State;
use crate::graph::{Batch, Graph, Hold, LossScale, Moments, NewtonSchulz, Optimizer, Storage};
use crate::infer::session::within_window;
use crate::tokenizer::TokenId;

/// Sizes of a training program.
#[derive(Clone, Copy, Debug)]
pub struct TrainShape {
    /// Sequences of a micro-batch.
    pub batch: usize,
    /// Tokens of a sequence.
    pub seq: usize,
    /// Top-K buckets of the targets; 0 for cross-entropy only.
    pub top_k: usize,
    /// How Muon makes updates orthogonal.
    pub ns: NewtonSchulz,
    /// Compute a block's activations again in the backward pass: the same bits, less memory, a fourth more work.
    pub recompute: bool,
    /// How AdamW's moments are held.
    pub moments: Moments,
    /// How activations and gradients are kept.
    pub storage: Storage,
    /// Whether [`Trainer::evaluate`] is asked for: without it nothing is compiled for it.
    pub evaluates: bool,
}

/// Scalars of one step.
#[derive(Clone, Copy, Debug)]
pub struct Hyper {
    /// Optimizer step, from 1.
    pub step: u64,
    /// AdamW's learning rate.
    pub lr: f32,
    /// Muon's learning rate.
    pub muon_lr: f32,
    /// AdamW β1, β2, eps.
    pub betas: (f32, f32, f32),
    /// AdamW's weight decay.
    pub weight_decay: f32,
    /// Muon's momentum and weight decay.
    pub muon: (f32, f32),
    /// Largest gradient norm.
    pub clip: f32,
    /// Temperature of the KL.
    pub tau: f32,
    /// Activation bits.
    pub bits: Bits,
}

impl Hyper {
    /// The slots of the buffer `hyper`.
    fn slots(&self, loss_scale: f32) -> Vec<f32> {
        let power = |b: f32| (0..self.step).fold(1.0f64, |p, _| p * f64::from(b));
        let mut h = vec![0f32; hyper::LEN];
        h[hyper::LR] = self.lr;
        (h[hyper::BETA1], h[hyper::BETA2], h[hyper::EPS]) = self.betas;
        h[hyper::WEIGHT_DECAY] = self.weight_decay;
        h[hyper::BIAS1] = (1.0 - power(self.betas.0)) as f32;
        h[hyper::BIAS2] = (1.0 - power(self.betas.1)) as f32;
        h[hyper::CLIP] = self.clip;
        h[hyper::INV_TAU] = 1.0 / self.tau;
        h[hyper::QMAX] = self.bits.qmax();
        h[hyper::INV_LOSS_SCALE] = 1.0 / loss_scale;
        h[hyper::MUON_LR] = self.muon_lr;
        (h[hyper::MUON_MOMENTUM], h[hyper::MUON_DECAY]) = self.muon;
        h
    }
}

/// What one step did.
#[derive(Clone, Copy, Debug, Default)]
pub struct StepStats {
    /// Σ w_kd·kl over the step's micro-batches.
    pub kl: f32,
    /// Σ w_ce·ce.
    pub ce: f32,
    /// Σ w_format·ce.
    pub format: f32,
    /// Gradient norm before clipping.
    pub grad_norm: f32,
    /// Gradient norm after clipping.
    pub grad_norm_clipped: f32,
    /// Rows whose loss was not finite.
    pub non_finite: f32,
    /// Whether the update was skipped because the norm was not finite.
    pub skipped: bool,
    /// Whether it was skipped because a scaled gradient passed what float16 holds: the loss scale was halved.
    pub overflowed: bool,
}

impl StepStats {
    /// KL + weighted CE + weighted format loss.
    pub fn total(&self) -> f32 {
        self.kl + self.ce + self.format
    }
}

struct Lists {
    begin: ListId,
    /// A step's first micro-batch: it overwrites the gradients of matrices.
    first: ListId,
    /// The others: they add to them.
    micro: ListId,
    update: ListId,
    /// Codes, then forward pass and losses.
    evaluate: Option<(ListId, ListId)>,
}

/// Inputs and results of a step; `rows` are those of a micro-batch.
struct Io {
    /// `[rows, top_k]`.
    topk_ids: BufferId,
    /// `[rows, top_k]`.
    targets: BufferId,
    /// `[rows, 4]`.
    meta: BufferId,
    /// `[rows]`.
    labels: BufferId,
    /// `[rows, 4]`.
    losses: BufferId,
    /// KL, CE, format loss, rows that are not finite.
    loss_sum: BufferId,
    /// Norm, factor, whether the step is skipped.
    clip: BufferId,
}

/// Name of the loss scale in the optimizer's state.
const LOSS_SCALE: &str = "loss_scale";

/// A model being trained on a device.
pub struct Trainer {
    device: device::Session,
    graph: Graph,
    shape: TrainShape,
    batch: Batch,
    io: Io,
    lists: Lists,
    gradients: Gradients,
    states: Vec<State>,
    /// With float16 storage.
    loss_scale: Option<LossScale>,
}

impl Trainer {
    /// Builds and allocates the program.
    pub fn new(device: &Device, config: ModelConfig, shape: TrainShape, optimizer: Optimizer) -> Result<Self> {
        within_window(&config, shape.seq)?;
        let (graph, parts) = build(config, shape, optimizer);
        let Parts { batch, io, lists, gradients, states, program } = parts;
        let mut session = device.load(program)?;
        graph.write_constants(&mut session)?;
        let pos: Vec<u32> = (0..batch.rows()).map(|r| (r % shape.seq) as u32).collect();
        session.write(batch.pos, &pos)?;
        let loss_scale = (shape.storage == Storage::Float16).then(LossScale::default);
        Ok(Self { device: session, graph, shape, batch, io, lists, gradients, states, loss_scale })
    }

    /// Bytes that such a session needs, without allocating anything.
    pub fn planned_bytes(config: ModelConfig, shape: TrainShape, optimizer: Optimizer) -> u64 {
        build(config, shape, optimizer).1.program.plan().bytes()
    }

    /// Bytes that the planner predicted.
    pub fn session_bytes(&self) -> u64 {
        self.device.planned_bytes()
    }

    /// The model's shape.
    pub fn config(&self) -> &ModelConfig {
        &self.graph.config
    }

    /// Sets parameters by name; every tensor must be there with its size.
    pub fn load(&mut self, tensors: &BTreeMap<String, Vec<f32>>) -> Result<()> {
        for t in &self.graph.tensors {
            let values = &tensors[&t.spec.name];
            self.device.write_f32(t.master.expect("training keeps masters"), values)?;
        }
        Ok(())
    }

    /// Sets parameters that are made one by one: no copy of the model is held beside the session.
    pub fn load_with(&mut self, mut values: impl FnMut(&TensorSpec) -> Vec<f32>) -> Result<()> {
        for t in &self.graph.tensors {
            self.device.write_f32(t.master.expect("training keeps masters"), &values(&t.spec))?;
        }
        Ok(())
    }

    /// Parameters by name.
    pub fn tensors(&mut self) -> Result<BTreeMap<String, Vec<f32>>> {
        let mut all = BTreeMap::new();
        for t in &self.graph.tensors {
            all.insert(t.spec.name.clone(), self.device.read_f32(t.master.expect("training keeps masters"))?);
        }
        Ok(all)
    }

    /// Gradients of the last step, before clipping.
    pub fn gradients(&mut self) -> Result<BTreeMap<String, Vec<f32>>> {
        let mut all = BTreeMap::new();
        let scale = self.loss_scale();
        for ((t, g), half) in self.graph.tensors.iter().zip(&self.gradients.grads).zip(&self.gradients.half) {
            let mut values = if *half { half_values(&self.device.read(*g)?, t.spec.len()) } else { self.device.read_f32(*g)? };
            values.iter_mut().for_each(|v| *v /= scale);
            all.insert(t.spec.name.clone(), values);
        }
        Ok(all)
    }

    /// Codes and scales of the ternary matrices by name, as the last step took them.
    pub fn packed(&mut self) -> Result<BTreeMap<String, PackedMatrix>> {
        let mut all = BTreeMap::new();
        for (t, packed) in self.graph.tensors.iter().filter_map(|t| Some((t, t.packed?))) {
            let (codes, scale) = (self.device.read(packed.codes)?, self.device.read(packed.scale)?);
            all.insert(t.spec.name.clone(), PackedMatrix { codes, scale, groups: packed.groups, cols: t.spec.shape[1] });
        }
        Ok(all)
    }

    /// Optimizer state by `tensor.part`.
    pub fn optimizer_state(&mut self) -> Result<BTreeMap<String, Vec<f32>>> {
        let mut all = BTreeMap::new();
        for (t, s) in self.graph.tensors.iter().zip(&self.states) {
            for (part, buffer) in s.buffers() {
                all.insert(format!("{}.{part}", t.spec.name), self.device.read_f32(buffer)?);
            }
        }
        if let Some(s) = self.loss_scale {
            all.insert(LOSS_SCALE.into(), vec![s.factor, s.good as f32]);
        }
        Ok(all)
    }

    /// Restores what [`Self::optimizer_state`] gave; `false` if a part is missing or has another size.
    pub fn load_optimizer_state(&mut self, state: &BTreeMap<String, Vec<f32>>) -> Result<bool> {
        for (t, s) in self.graph.tensors.iter().zip(&self.states) {
            for (part, buffer) in s.buffers() {
                match state.get(&format!("{}.{part}", t.spec.name)) {
                    Some(values) if values.len() == self.device.program().words(buffer) => self.device.write_f32(buffer, values)?,
                    _ => return Ok(false),
                }
            }
        }
        if let Some(s) = &mut self.loss_scale {
            match state.get(LOSS_SCALE).map(Vec::as_slice) {
                Some([factor, good]) => (s.factor, s.good) = (*factor, *good as u32),
                _ => return Ok(false),
            }
        }
        Ok(true)
    }

    /// The factor of the loss: 1 without float16 storage.
    pub fn loss_scale(&self) -> f32 {
        self.loss_scale.map_or(1.0, |s| s.factor)
    }

    /// Sets the loss scale of float16 storage.
    pub fn set_loss_scale(&mut self, scale: LossScale) {
        self.loss_scale = self.loss_scale.map(|_| scale);
    }

    fn feed(&mut self, micro: &MicroBatch) -> Result<()> {
        let (starts, order) = scatter_order(&micro.ids, self.graph.config.vocab);
        self.device.write(self.batch.ids, TokenId::words(&micro.ids))?;
        self.device.write(self.batch.mask, &micro.mask)?;
        self.device.write(self.gradients.starts, &starts)?;
        self.device.write(self.gradients.order, &order)?;
        self.device.write_i32(self.io.labels, &micro.labels)?;
        if self.shape.top_k > 0 {
            self.device.write_i32(self.io.topk_ids, &micro.topk_ids)?;
            self.device.write_f32(self.io.targets, &micro.targets)?;
        }
        // The weights carry the loss scale into every gradient.
        let scale = self.loss_scale();
        let meta: Vec<[f32; 4]> = micro.meta.iter().map(|m| [m[0], m[1] * scale, m[2] * scale, m[3] * scale]).collect();
        Ok(self.device.write_f32(self.io.meta, bytemuck::cast_slice(&meta))?)
    }

    /// Adds the gradients of micro-batches, whose rows are weighed over the whole step ([`super::LossWeights::weigh`]), to those of the step; the first call
    /// of a step (`begins`) starts them anew. The parameters stay.
    pub fn accumulate(&mut self, micros: &[MicroBatch], hyper: &Hyper, begins: bool) -> Result<()> {
        if begins {
            let scale = self.loss_scale();
            self.device.write_f32(self.graph.hyper, &hyper.slots(scale))?;
        }
        // One of several may have nothing in its part of the step.
        let nothing = (begins && micros.is_empty()).then(|| MicroBatch::of_nothing(self.shape.batch * self.shape.seq, self.shape.top_k));
        for (i, micro) in micros.iter().chain(&nothing).enumerate() {
            let first = begins && i == 0;
            self.feed(micro)?;
            // After the write: a step of one micro-batch is then a single submission.
            if first {
                self.device.run(self.lists.begin)?;
            }
            self.device.run(if first { self.lists.first } else { self.lists.micro })?;
        }
        Ok(())
    }

    /// Hands what was accumulated to `sum`, buffer by buffer (losses `[4]`, then the gradient of every tensor in the order of
    /// the model), and takes what it gives: the sum over all who train this model, where they are several.
    pub fn reduce(&mut self, mut sum: impl FnMut(&str, &mut [f32]) -> Result<()>) -> Result<()> {
        let mut losses = self.device.read_f32(self.io.loss_sum)?;
        sum("losses", &mut losses)?;
        self.device.write_f32(self.io.loss_sum, &losses)?;
        for (i, t) in self.graph.tensors.iter().enumerate() {
            let (buffer, half) = (self.gradients.grads[i], self.gradients.half[i]);
            let mut values = if half { half_values(&self.device.read(buffer)?, t.spec.len()) } else { self.device.read_f32(buffer)? };
            sum(&t.spec.name, &mut values)?;
            if half {
                let words: Vec<u32> = values.chunks(2).map(|v| half_pair(v[0], v.get(1).copied().unwrap_or(0.0))).collect();
                self.device.write(buffer, &words)?;
            } else {
                self.device.write_f32(buffer, &values)?;
            }
        }
        Ok(())
    }

    /// Clips what was accumulated and updates the parameters with it.
    pub fn apply(&mut self) -> Result<StepStats> {
        let scale = self.loss_scale();
        self.device.run(self.lists.update)?;
        let sums = self.device.read_f32(self.io.loss_sum)?;
        let clip = self.device.read_f32(self.io.clip)?;
        let skipped = clip[2] != 0.0;
        // A loss that is not finite, or a gradient that is too large without any scale, is the training's own fault.
        let overflowed = skipped && sums[3] == 0.0 && scale > 1.0;
        if let Some(s) = self.loss_scale.as_mut().filter(|_| overflowed || !skipped) {
            s.update(overflowed);
        }
        Ok(StepStats {
            kl: sums[0] / scale,
            ce: sums[1] / scale,
            format: sums[2] / scale,
            non_finite: sums[3],
            grad_norm: clip[0],
            grad_norm_clipped: clip[0] * clip[1] * scale,
            skipped,
            overflowed,
        })
    }

    /// One optimizer step over micro-batches whose weights already sum to one.
    pub fn step(&mut self, micros: &[MicroBatch], hyper: &Hyper) -> Result<StepStats> {
        self.accumulate(micros, hyper, true)?;
        self.apply()
    }

    /// Losses `(kl, ce)` of every row without training; `bits` and `tau` as in [`Hyper`]. The shape must say that it
    /// `evaluates`.
    pub fn evaluate(&mut self, micro: &MicroBatch, tau: f32, bits: Bits) -> Result<Vec<(f32, f32)>> {
        let (quantise, evaluate) = self.lists.evaluate.expect("a shape that evaluates");
        let mut h = vec![0f32; hyper::LEN];
        h[hyper::INV_TAU] = 1.0 / tau;
        h[hyper::QMAX] = bits.qmax();
        self.device.write_f32(self.graph.hyper, &h)?;
        self.device.run(quantise)?;
        self.feed(micro)?;
        self.device.run(evaluate)?;
        let losses = self.device.read_f32(self.io.losses)?;
        Ok(losses.chunks_exact(4).map(|l| (l[0], l[1])).collect())
    }
}

/// The first `n` float16 of packed words.
fn half_values(words: &[u32], n: usize) -> Vec<f32> {
    let halves: &[u16] = bytemuck::cast_slice(words);
    halves[..n].iter().map(|h| half::f16::from_bits(*h).to_f32()).collect()
}

/// The kernels of a training program, by name.
pub fn kernels(config: ModelConfig, shape: TrainShape, optimizer: Optimizer) -> Vec<&'static flow_shaders::kernel::Kernel> {
    build(config, shape, optimizer).1.program.kernels()
}

struct Parts {
    batch: Batch,
    io: Io,
    lists: Lists,
    gradients: Gradients,
    states: Vec<State>,
    program: flow_shaders::program::Program,
}

fn build(config: ModelConfig, shape: TrainShape, optimizer: Optimizer) -> (Graph, Parts) {
    let mut graph = Graph::new(config, shape.seq, Hold::Masters);
    let rows = shape.batch * shape.seq;
    let batch = graph.batch("batch", shape.batch, shape.seq, shape.seq);
    let vocab = graph.config.vocab;
    let p = &mut graph.program;
    let io = Io {
        topk_ids: p.persistent("topk_ids", rows * shape.top_k),
        targets: p.persistent("targets", rows * shape.top_k),
        meta: p.persistent("meta", rows * 4),
        labels: p.persistent("labels", rows),
        losses: p.persistent("losses", rows * 4),
        loss_sum: p.persistent("loss_sum", 4),
        clip: p.persistent("clip", 4),
    };
    let (starts, order) = (p.persistent("scatter.starts", vocab + 1), p.persistent("scatter.order", rows));
    let (grads, half) = graph.declare_gradients(shape.storage);
    let gradients = Gradients { grads, half, starts, order };
    let states = graph.declare_state(optimizer, shape.moments);
    let lists = Lists {
        begin: graph.program.list("begin"),
        first: graph.program.list("first micro-batch"),
        micro: graph.program.list("micro-batch"),
        update: graph.program.list("update"),
        evaluate: shape.evaluates.then(|| (graph.program.list("quantise"), graph.program.list("evaluate"))),
    };
    let ternary = graph.config.weights != Weights::Float;
    let added_to = graph.tensors.iter().zip(&gradients.grads).filter(|(t, _)| !graph.is_matrix(t.spec.role)).map(|(_, g)| *g);
    for b in added_to.chain([io.loss_sum]).collect::<Vec<_>>() {
        let n = graph.program.words(b) as u32;
        graph.program.push(lists.begin, &flow_shaders::kernels::elementwise::ZERO, &[b], &flow_shaders::kernels::elementwise::Shape { n });
    }
    if ternary {
        graph.ternarise(lists.begin);
    }
    let sum = kd_loss::Shape { rows: rows as u32, vocab: vocab as u32, k: shape.top_k as u32 };
    for (list, add) in [(lists.first, false), (lists.micro, true)] {
        let keep = Keep { storage: shape.storage, inputs_only: shape.recompute };
        let tape = graph.forward_keeping(list, &batch, None, None, keep);
        loss(&mut graph, list, &io, tape.logits, shape);
        graph.program.push(list, &kd_loss::LOSS_SUM, &[io.losses, io.meta, io.loss_sum], &sum);
        graph.backward(list, &batch, &tape, &gradients, Pass { add, keep });
    }
    graph.update(lists.update, &gradients, &states, io.clip, shape.ns);
    if let Some((quantise, evaluate)) = lists.evaluate {
        if ternary {
            graph.ternarise(quantise);
        }
        let tape = graph.forward(evaluate, &batch, None, None);
        loss(&mut graph, evaluate, &io, tape.logits, shape);
    }
    let program = std::mem::take(&mut graph.program);
    (graph, Parts { batch, io, lists, gradients, states, program })
}

fn loss(graph: &mut Graph, list: ListId, io: &Io, logits: BufferId, shape: TrainShape) {
    let s = kd_loss::Shape { rows: (shape.batch * shape.seq) as u32, vocab: graph.config.vocab as u32, k: shape.top_k as u32 };
    let kept = graph.program.transient("kept", shape.batch * shape.seq * shape.top_k);
    let buffers = [logits, io.topk_ids, io.targets, io.meta, io.labels, graph.hyper, io.losses, kept];
    graph.program.push(list, &kd_loss::KD_LOSS, &buffers, &s);
}

/// Rows sorted by token id (ascending rows within an id), and where each id starts.
fn scatter_order(ids: &[TokenId], vocab: usize) -> (Vec<u32>, Vec<u32>) {
    let mut starts = vec![0u32; vocab + 1];
    for id in ids {
        starts[id.index() + 1] += 1;
    }
    for v in 0..vocab {
        starts[v + 1] += starts[v];
    }
    let mut next = starts.clone();
    let mut order = vec![0u32; ids.len()];
    for (r, id) in ids.iter().enumerate() {
        order[next[id.index()] as usize] = r as u32;
        next[id.index()] += 1;
    }
    (starts, order)
}
