//! A training session: the program of one optimizer step on a device, fed with micro-batches from the host.

use std::collections::BTreeMap;

use flow_shaders::device::{self, Device};
use flow_shaders::kernels::hyper;
use flow_shaders::program::BufferId;

use super::batch::MicroBatch;
use super::program::{Beside, Built, Micro, TrainShape, build};
use super::softening::Softness;
use super::taught::InLoop;
use crate::config::{Bits, ModelConfig, TensorSpec};
use crate::error::Result;
use crate::format::tensors::{PackedMatrix, half_pair};
use crate::graph::update::State;
use crate::graph::{LossScale, Optimizer, Storage, Tensor};
use crate::infer::session::within_window;
use crate::tokenizer::TokenId;

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
    /// How ternary the weights are.
    pub softness: Softness,
    /// Weight of the relations of one row, where they are learned: all rows of a step share the whole.
    pub relation: f32,
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
        (h[hyper::PRESSURE], h[hyper::INV_TEMPERATURE]) = (self.softness.pressure, self.softness.inv_temperature);
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
    /// The weighed KL of relations.
    pub relation: f32,
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
    /// KL + weighted CE + weighted format loss + weighted relations.
    pub fn total(&self) -> f32 {
        self.kl + self.ce + self.format + self.relation
    }
}

/// Name of the loss scale in the optimizer's state.
const LOSS_SCALE: &str = "loss_scale";

/// A model being trained on a device.
pub struct Trainer {
    device: device::Session,
    built: Built,
    shape: TrainShape,
    /// How ternary the weights of the present step are.
    softness: Softness,
    /// Weight of the relations of one of its rows.
    relation: f32,
    /// With float16 storage.
    loss_scale: Option<LossScale>,
}

impl Trainer {
    /// Builds and allocates the program.
    pub fn new(device: &Device, config: ModelConfig, shape: TrainShape, optimizer: Optimizer) -> Result<Self> {
        Self::beside(device, config, shape, optimizer, (false, None))
    }

    /// As [`Self::new`], where weights may be softened, and a teacher may run beside the student.
    pub fn beside(
        device: &Device,
        config: ModelConfig,
        shape: TrainShape,
        optimizer: Optimizer,
        (softens, teacher): (bool, Option<&InLoop>),
    ) -> Result<Self> {
        within_window(&config, shape.seq)?;
        let beside = Beside { softens, teacher: teacher.map(InLoop::shape) };
        let (mut built, program) = build(config, shape, optimizer, &beside);
        let mut session = device.load(program)?;
        built.graph.write_constants(&mut session)?;
        let pos: Vec<u32> = (0..built.batch.rows()).map(|r| (r % shape.seq) as u32).collect();
        session.write(built.batch.pos, &pos)?;
        for soft in built.graph.tensors.iter().filter_map(|t| t.soft) {
            session.write_f32(soft.factor, &[1.0])?;
        }
        if let (Some(graph), Some(teacher)) = (built.teacher.take(), teacher) {
            teacher.load(&graph, &mut session)?;
        }
        let loss_scale = (shape.storage == Storage::Float16).then(LossScale::default);
        Ok(Self { device: session, built, shape, softness: Softness::HARD, relation: 0.0, loss_scale })
    }

    /// Bytes that a session of [`Self::beside`] needs, without allocating anything.
    pub fn planned_bytes(config: ModelConfig, shape: TrainShape, optimizer: Optimizer, beside: &Beside) -> u64 {
        build(config, shape, optimizer, beside).1.plan().bytes()
    }

    /// Sets what the temperature of each ternary matrix is multiplied by, in the order of [`Self::softened`].
    pub fn set_temperatures(&mut self, factors: &[f32]) -> Result<()> {
        for (soft, factor) in self.built.graph.tensors.iter().filter_map(|t| t.soft).zip(factors) {
            self.device.write_f32(soft.factor, &[*factor])?;
        }
        Ok(())
    }

    /// Matrices that are softened.
    pub fn softened(&self) -> impl Iterator<Item = &TensorSpec> {
        self.built.graph.tensors.iter().filter(|t| t.soft.is_some()).map(|t| &t.spec)
    }

    /// Values of the softened matrices by name, as the last soft step took them.
    pub fn soft_values(&mut self) -> Result<BTreeMap<String, Vec<f32>>> {
        let mut all = BTreeMap::new();
        for (t, soft) in self.built.graph.tensors.iter().filter_map(|t| Some((t, t.soft?))) {
            all.insert(t.spec.name.clone(), self.device.read_f32(soft.values)?);
        }
        Ok(all)
    }

    /// Bytes that the planner predicted.
    pub fn session_bytes(&self) -> u64 {
        self.device.planned_bytes()
    }

    /// The model's shape.
    pub fn config(&self) -> &ModelConfig {
        &self.built.graph.config
    }

    /// Sets parameters by name; every tensor must be there with its size.
    pub fn load(&mut self, tensors: &BTreeMap<String, Vec<f32>>) -> Result<()> {
        for t in &self.built.graph.tensors {
            let values = &tensors[&t.spec.name];
            self.device.write_f32(t.master.expect("training keeps masters"), values)?;
        }
        Ok(())
    }

    /// Sets parameters that are made one by one: no copy of the model is held beside the session.
    pub fn load_with(&mut self, mut values: impl FnMut(&TensorSpec) -> Vec<f32>) -> Result<()> {
        for t in &self.built.graph.tensors {
            self.device.write_f32(t.master.expect("training keeps masters"), &values(&t.spec))?;
        }
        Ok(())
    }

    /// Parameters by name.
    pub fn tensors(&mut self) -> Result<BTreeMap<String, Vec<f32>>> {
        self.parameter_parts().into_iter().map(|(name, part)| Ok((name, self.read_part(part)?))).collect()
    }

    /// Where parameters are, by name.
    pub(super) fn parameter_parts(&self) -> Vec<(String, Part)> {
        let master = |t: &Tensor| Part::Buffer(t.master.expect("training keeps masters"));
        self.built.graph.tensors.iter().map(|t| (t.spec.name.clone(), master(t))).collect()
    }

    /// Where the optimizer's state is, by `tensor.part`.
    pub(super) fn optimizer_parts(&self) -> Vec<(String, Part)> {
        let states = self.built.graph.tensors.iter().zip(&self.built.states);
        let of = |(t, s): (&Tensor, &State)| {
            let name = t.spec.name.clone();
            s.buffers().into_iter().map(move |(part, buffer)| (format!("{name}.{part}"), Part::Buffer(buffer)))
        };
        states.flat_map(of).chain(self.loss_scale.map(|_| (LOSS_SCALE.into(), Part::LossScale))).collect()
    }

    /// Numbers of a part.
    pub(super) fn part_len(&self, part: Part) -> usize {
        match part {
            Part::Buffer(buffer) => self.device.program().words(buffer),
            Part::LossScale => 2,
        }
    }

    /// Its numbers.
    pub(super) fn read_part(&mut self, part: Part) -> Result<Vec<f32>> {
        match part {
            Part::Buffer(buffer) => Ok(self.device.read_f32(buffer)?),
            Part::LossScale => Ok(self.loss_scale.map_or_else(Vec::new, |s| vec![s.factor, s.good as f32])),
        }
    }

    /// Sets them, as many as there are.
    pub(super) fn write_part(&mut self, part: Part, values: &[f32]) -> Result<()> {
        match part {
            Part::Buffer(buffer) => Ok(self.device.write_f32(buffer, values)?),
            Part::LossScale => {
                if let (Some(s), [factor, good]) = (&mut self.loss_scale, values) {
                    (s.factor, s.good) = (*factor, *good as u32);
                }
                Ok(())
            }
        }
    }

    /// Gradients of the last step, before clipping.
    pub fn gradients(&mut self) -> Result<BTreeMap<String, Vec<f32>>> {
        let mut all = BTreeMap::new();
        let scale = self.loss_scale();
        for ((t, g), half) in self.built.graph.tensors.iter().zip(&self.built.gradients.grads).zip(&self.built.gradients.half) {
            let mut values = if *half { half_values(&self.device.read(*g)?, t.spec.len()) } else { self.device.read_f32(*g)? };
            values.iter_mut().for_each(|v| *v /= scale);
            all.insert(t.spec.name.clone(), values);
        }
        Ok(all)
    }

    /// Codes and scales of the ternary matrices by name, as the last step took them.
    pub fn packed(&mut self) -> Result<BTreeMap<String, PackedMatrix>> {
        let mut all = BTreeMap::new();
        for (t, packed) in self.built.graph.tensors.iter().filter_map(|t| Some((t, t.packed?))) {
            let (codes, scale) = (self.device.read(packed.codes)?, self.device.read(packed.scale)?);
            all.insert(t.spec.name.clone(), PackedMatrix { codes, scale, groups: packed.groups, cols: t.spec.shape[1] });
        }
        Ok(all)
    }

    /// Optimizer state by `tensor.part`.
    pub fn optimizer_state(&mut self) -> Result<BTreeMap<String, Vec<f32>>> {
        self.optimizer_parts().into_iter().map(|(name, part)| Ok((name, self.read_part(part)?))).collect()
    }

    /// Restores what [`Self::optimizer_state`] gave; `false` if a part is missing or has another size.
    pub fn load_optimizer_state(&mut self, state: &BTreeMap<String, Vec<f32>>) -> Result<bool> {
        let parts = self.optimizer_parts();
        let fits = |(name, part): &(String, Part)| state.get(name).is_some_and(|v| v.len() == self.part_len(*part));
        if !parts.iter().all(fits) {
            return Ok(false);
        }
        for (name, part) in parts {
            self.write_part(part, &state[&name])?;
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
        let (starts, order) = scatter_order(&micro.ids, self.built.graph.config.vocab);
        self.device.write(self.built.batch.ids, TokenId::words(&micro.ids))?;
        self.device.write(self.built.batch.mask, &micro.mask)?;
        self.device.write(self.built.gradients.starts, &starts)?;
        self.device.write(self.built.gradients.order, &order)?;
        self.device.write_i32(self.built.io.labels, &micro.labels)?;
        if self.shape.top_k > 0 {
            self.device.write_i32(self.built.io.topk_ids, &micro.topk_ids)?;
            self.device.write_f32(self.built.io.targets, &micro.targets)?;
        }
        // The weights carry the loss scale into every gradient.
        let scale = self.loss_scale();
        let meta: Vec<[f32; 4]> = micro.meta.iter().map(|m| [m[0], m[1] * scale, m[2] * scale, m[3] * scale]).collect();
        if let Some(r) = self.built.io.relations {
            for (buffer, heads) in r.meta.into_iter().zip(r.heads) {
                let weight = self.relation * scale / heads as f32;
                let of_rows: Vec<[f32; 4]> = micro.mask.iter().map(|real| [0.0, weight * *real as f32, 0.0, 0.0]).collect();
                self.device.write_f32(buffer, bytemuck::cast_slice(&of_rows))?;
            }
        }
        Ok(self.device.write_f32(self.built.io.meta, bytemuck::cast_slice(&meta))?)
    }

    /// Adds the gradients of micro-batches, whose rows are weighed over the whole step ([`super::LossWeights::weigh`]), to those of the step; the first call
    /// of a step (`begins`) starts them anew. The parameters stay.
    pub fn accumulate(&mut self, micros: &[MicroBatch], hyper: &Hyper, begins: bool) -> Result<()> {
        if begins {
            (self.softness, self.relation) = (hyper.softness, hyper.relation);
            let scale = self.loss_scale();
            self.device.write_f32(self.built.graph.hyper, &hyper.slots(scale))?;
        }
        // One of several may have nothing in its part of the step.
        let nothing = (begins && micros.is_empty()).then(|| MicroBatch::of_nothing(self.shape.batch * self.shape.seq, self.shape.top_k));
        for (i, micro) in micros.iter().chain(&nothing).enumerate() {
            let first = begins && i == 0;
            self.feed(micro)?;
            // After the write: a step of one micro-batch is then a single submission.
            let micro = self.micro_lists();
            if first {
                self.device.run(self.built.lists.begin)?;
                if let Some(soften) = micro.soften {
                    self.device.run(soften)?;
                }
            }
            self.device.run(if first { micro.first } else { micro.more })?;
        }
        Ok(())
    }

    /// Hands what was accumulated to `sum`, buffer by buffer (losses `[4]`, relations `[4]` where they are learned, then the gradient of every tensor in the order of
    /// the model), and takes what it gives: the sum over all who train this model, where they are several.
    pub fn reduce(&mut self, mut sum: impl FnMut(&str, &mut [f32]) -> Result<()>) -> Result<()> {
        let mut losses = self.device.read_f32(self.built.io.loss_sum)?;
        sum("losses", &mut losses)?;
        self.device.write_f32(self.built.io.loss_sum, &losses)?;
        if let Some(r) = self.built.io.relations {
            let mut relations = self.device.read_f32(r.sum)?;
            sum("relations", &mut relations)?;
            self.device.write_f32(r.sum, &relations)?;
        }
        for (i, t) in self.built.graph.tensors.iter().enumerate() {
            let (buffer, half) = (self.built.gradients.grads[i], self.built.gradients.half[i]);
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

    /// The weighed KL of relations of what was accumulated; 0 where they are not learned.
    pub fn relations(&mut self) -> Result<f32> {
        let scale = self.loss_scale();
        let sum = self.built.io.relations.map(|r| self.device.read_f32(r.sum)).transpose()?;
        Ok(sum.map_or(0.0, |sum| sum[0]) / scale)
    }

    /// Clips what was accumulated and updates the parameters with it.
    pub fn apply(&mut self) -> Result<StepStats> {
        let scale = self.loss_scale();
        self.device.run(self.micro_lists().update)?;
        let sums = self.device.read_f32(self.built.io.loss_sum)?;
        let clip = self.device.read_f32(self.built.io.clip)?;
        let relation = self.relations()?;
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
            relation,
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

    /// The lists of a step whose weights are as ternary as this one's.
    fn micro_lists(&self) -> Micro {
        let lists = &self.built.lists;
        lists.soft.filter(|_| !self.softness.is_hard()).unwrap_or(lists.hard)
    }

    /// Losses `(kl, ce)` of every row without training; `bits` and `tau` as in [`Hyper`]. The shape must say that it
    /// `evaluates`.
    pub fn evaluate(&mut self, micro: &MicroBatch, tau: f32, bits: Bits) -> Result<Vec<(f32, f32)>> {
        self.evaluate_at(std::slice::from_ref(micro), tau, bits, Softness::HARD)
    }

    /// As [`Self::evaluate`] over several micro-batches, with weights that are so ternary.
    pub fn evaluate_at(&mut self, micros: &[MicroBatch], tau: f32, bits: Bits, softness: Softness) -> Result<Vec<(f32, f32)>> {
        let lists = self.built.lists.evaluate.expect("a shape that evaluates");
        let soft = lists.soft.filter(|_| !softness.is_hard());
        let mut h = vec![0f32; hyper::LEN];
        h[hyper::INV_TAU] = 1.0 / tau;
        h[hyper::QMAX] = bits.qmax();
        (h[hyper::PRESSURE], h[hyper::INV_TEMPERATURE]) = (softness.pressure, softness.inv_temperature);
        self.device.write_f32(self.built.graph.hyper, &h)?;
        self.device.run(lists.quantise)?;
        if let Some((soften, _)) = soft {
            self.device.run(soften)?;
        }
        let evaluate = soft.map_or(lists.evaluate, |(_, evaluate)| evaluate);
        let mut all = Vec::new();
        for micro in micros {
            self.feed(micro)?;
            self.device.run(evaluate)?;
            let losses = self.device.read_f32(self.built.io.losses)?;
            all.extend(losses.chunks_exact(4).map(|l| (l[0], l[1])));
        }
        Ok(all)
    }
}

/// Where a part of a training's state is.
#[derive(Clone, Copy, Debug)]
pub(super) enum Part {
    /// On the device.
    Buffer(BufferId),
    /// Of float16 storage: the factor, and steps since it last changed.
    LossScale,
}

/// The first `n` float16 of packed words.
fn half_values(words: &[u32], n: usize) -> Vec<f32> {
    let halves: &[u16] = bytemuck::cast_slice(words);
    halves[..n].iter().map(|h| half::f16::from_bits(*h).to_f32()).collect()
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
