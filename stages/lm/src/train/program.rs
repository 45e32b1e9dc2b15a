//! The program of one optimizer step: its buffers, and the lists that begin it, take a micro-batch, update, evaluate.

use flow_shaders::kernel::Kernel;
use flow_shaders::kernels::elementwise::{self, ZERO};
use flow_shaders::kernels::kd_loss;
use flow_shaders::program::{BufferId, ListId, Program};

use super::recipe::Recipe;
use super::taught::TeacherShape;
use crate::config::{ModelConfig, Weights};
use crate::graph::backward::{Pass, Relations};
use crate::graph::by_rows::{HeadGradients, LossBuffers, Read};
use crate::graph::tape::{Gradients, Keep};
use crate::graph::update::State;
use crate::graph::{Batch, Graph, Hold, Moments, NewtonSchulz, Optimizer, Storage};

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

impl TrainShape {
    /// Of a recipe's steps, in windows of `seq` tokens whose rows have `top_k` candidates.
    pub fn of(r: &Recipe, seq: usize, top_k: usize, evaluates: bool) -> Self {
        Self {
            batch: r.batch,
            seq,
            top_k,
            ns: r.newton_schulz(),
            recompute: r.recompute,
            moments: r.moments,
            storage: r.storage,
            evaluates,
        }
    }
}

/// What a training does beside its steps on codes and a batch's own targets.
#[derive(Clone, Debug, Default)]
pub struct Beside {
    /// There are steps whose ternary weights are softened.
    pub softens: bool,
    /// A teacher reads every batch on the same device.
    pub teacher: Option<TeacherShape>,
}

/// The lists of a step's micro-batches and its end.
#[derive(Clone, Copy)]
pub(super) struct Micro {
    /// Softens the weights whose codes were made.
    pub soften: Option<ListId>,
    /// A step's first micro-batch: it overwrites the gradients of matrices.
    pub first: ListId,
    /// The others: they add to them.
    pub more: ListId,
    pub update: ListId,
}

/// The lists of an evaluation.
#[derive(Clone, Copy)]
pub(super) struct Evaluation {
    /// Codes.
    pub quantise: ListId,
    /// Forward pass and losses.
    pub evaluate: ListId,
    /// What softens, and the same with softened weights.
    pub soft: Option<(ListId, ListId)>,
}

pub(super) struct Lists {
    pub begin: ListId,
    pub hard: Micro,
    pub soft: Option<Micro>,
    pub evaluate: Option<Evaluation>,
}

/// Inputs and results of a step; `rows` are those of a micro-batch.
pub(super) struct Io {
    /// `[rows, top_k]`.
    pub topk_ids: BufferId,
    /// `[rows, top_k]`.
    pub targets: BufferId,
    /// `[rows, 4]`.
    pub meta: BufferId,
    /// `[rows]`.
    pub labels: BufferId,
    /// `[rows, 4]`.
    pub losses: BufferId,
    /// KL, CE, format loss, rows that are not finite.
    pub loss_sum: BufferId,
    /// Norm, factor, whether the step is skipped.
    pub clip: BufferId,
    /// Where relations are learned.
    pub relations: Option<RelationIo>,
}

/// Weights and sum of relations.
#[derive(Clone, Copy)]
pub(super) struct RelationIo {
    /// Weights of rows in the second of four words `[rows, 4]`: of queries, and of keys and values.
    pub meta: [BufferId; 2],
    /// Relation heads of both.
    pub heads: [usize; 2],
    /// The weighed KL in the first of four words.
    pub sum: BufferId,
}

/// A training's program beside its buffers and lists.
pub(super) struct Built {
    pub graph: Graph,
    pub batch: Batch,
    pub io: Io,
    pub lists: Lists,
    pub gradients: Gradients,
    pub states: Vec<State>,
    /// The teacher's parameters, until they are loaded.
    pub teacher: Option<Graph>,
}

/// The kernels of a training program, by name.
pub fn kernels(config: ModelConfig, shape: TrainShape, optimizer: Optimizer, beside: &Beside) -> Vec<&'static Kernel> {
    build(config, shape, optimizer, beside).1.kernels()
}

/// Declares everything and appends every list.
pub(super) fn build(config: ModelConfig, shape: TrainShape, optimizer: Optimizer, beside: &Beside) -> (Built, Program) {
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
        relations: None,
    };
    let (starts, order) = (p.persistent("scatter.starts", vocab + 1), p.persistent("scatter.order", rows));
    let (grads, half) = graph.declare_gradients(shape.storage);
    let gradients = Gradients { grads, half, starts, order };
    let states = graph.declare_state(optimizer, shape.moments);
    let teacher = beside.teacher.as_ref().map(|t| declare(&mut graph, t, shape.seq));
    let relations = beside.teacher.as_ref().filter(|t| t.relation_layer.is_some()).map(|t| relation_io(&mut graph, &t.config, rows));
    let io = Io { relations, ..io };
    let mut step = Step { graph, batch, io, gradients, states, shape, teacher, taught: beside.teacher.clone() };
    let begin = step.begin();
    let hard = step.micro("");
    // What softened weights need comes after what all trainings have.
    let soft = beside.softens.then(|| step.softened());
    let evaluate = shape.evaluates.then(|| step.evaluation(beside.softens));
    let lists = Lists { begin, hard, soft, evaluate };
    let Step { mut graph, batch, io, gradients, states, teacher, .. } = step;
    let program = std::mem::take(&mut graph.program);
    (Built { graph, batch, io, lists, gradients, states, teacher }, program)
}

/// A teacher's parameters in the program of its student.
fn declare(student: &mut Graph, t: &TeacherShape, positions: usize) -> Graph {
    let program = std::mem::take(&mut student.program);
    let mut teacher = Graph::within((program, "teacher."), t.config.clone(), positions, Hold::Half, &t.packed);
    student.program = std::mem::take(&mut teacher.program);
    teacher
}

/// Buffers of relations; heads of both models fall into as many relation heads as both can be split into.
fn relation_io(student: &mut Graph, teacher: &ModelConfig, rows: usize) -> RelationIo {
    let (ours, program) = (&student.config, &mut student.program);
    let heads = [gcd(ours.heads, teacher.heads), gcd(ours.kv_heads, teacher.kv_heads)];
    let meta = ["relation.q", "relation.kv"].map(|name| program.persistent(name, rows * 4));
    RelationIo { meta, heads, sum: program.persistent("relation.sum", 4) }
}

fn gcd(a: usize, b: usize) -> usize {
    if b == 0 { a } else { gcd(b, a % b) }
}

/// What the lists are appended from.
struct Step {
    graph: Graph,
    batch: Batch,
    io: Io,
    gradients: Gradients,
    states: Vec<State>,
    shape: TrainShape,
    teacher: Option<Graph>,
    taught: Option<TeacherShape>,
}

impl Step {
    fn rows(&self) -> usize {
        self.shape.batch * self.shape.seq
    }

    /// What a step starts with: gradients that are added to, and the codes.
    fn begin(&mut self) -> ListId {
        let list = self.graph.program.list("begin");
        let grads = self.graph.tensors.iter().zip(&self.gradients.grads);
        let added_to: Vec<BufferId> = grads.filter(|(t, _)| !self.graph.is_matrix(t.spec.role)).map(|(_, g)| *g).collect();
        let sums = [self.io.loss_sum].into_iter().chain(self.io.relations.map(|r| r.sum));
        for b in added_to.into_iter().chain(sums) {
            let n = self.graph.program.words(b) as u32;
            self.graph.program.push(list, &ZERO, &[b], &elementwise::Shape { n });
        }
        self.ternarise(list);
        list
    }

    fn ternarise(&mut self, list: ListId) {
        if self.graph.config.weights != Weights::Float {
            self.graph.ternarise(list);
        }
    }

    /// The lists of micro-batches, and the update.
    fn micro(&mut self, prefix: &str) -> Micro {
        let first = self.graph.program.list(format!("{prefix}first micro-batch"));
        let more = self.graph.program.list(format!("{prefix}micro-batch"));
        let update = self.graph.program.list(format!("{prefix}update"));
        for (list, add) in [(first, false), (more, true)] {
            self.forth_and_back(list, add);
        }
        self.graph.update(update, &self.gradients, &self.states, self.io.clip, self.shape.ns);
        Micro { soften: None, first, more, update }
    }

    /// The same with softened weights.
    fn softened(&mut self) -> Micro {
        self.graph.declare_soft();
        let soften = self.graph.program.list("soften");
        self.graph.soften(soften);
        self.graph.soft = true;
        let micro = self.micro("soft ");
        self.graph.soft = false;
        Micro { soften: Some(soften), ..micro }
    }

    /// Forward pass, losses, backward pass of a micro-batch.
    fn forth_and_back(&mut self, list: ListId, add: bool) {
        let keep = Keep { storage: self.shape.storage, inputs_only: self.shape.recompute };
        let pass = Pass { add, keep, relations: None };
        if self.teacher.is_none() {
            let tape = self.graph.forward_keeping(list, &self.batch, None, None, keep);
            self.loss(list, tape.logits);
            self.sum(list);
            self.graph.backward(list, &self.batch, &tape, &self.gradients, pass);
            return;
        }
        let (normed_t, relations) = self.read(list).unzip();
        let (blocks, x_last) = self.graph.hidden(list, &self.batch, None, keep);
        let rows = self.rows();
        let (normed, rstd) = self.graph.norm(list, x_last, "norm", rows);
        let d_normed = self.graph.program.transient("d.normed", rows * self.graph.config.dim);
        let buffers = self.loss_buffers();
        let by_ce = self.taught.as_ref().is_some_and(|t| t.by_ce);
        let read = self.teacher.as_mut().zip(normed_t).map(|(graph, normed)| Read { graph, normed, by_ce });
        let to = HeadGradients { normed: d_normed, all: &self.gradients, add };
        self.graph.loss_by_rows(list, normed, (rows, buffers), read, Some(to));
        self.sum(list);
        self.graph.backward_below(
            list,
            &self.batch,
            (&blocks, x_last, rstd),
            d_normed,
            &self.gradients,
            Pass { relations: relations.flatten(), ..pass },
        );
    }

    /// The teacher reads the batch: what its head takes, and the relations of its layer.
    fn read(&mut self, list: ListId) -> Option<(BufferId, Option<Relations>)> {
        let (rows, batch) = (self.rows(), self.batch);
        let (layer, io) = (self.taught.as_ref()?.relation_layer, self.io.relations);
        let ours = self.graph.config.layers;
        let teacher = self.teacher.as_mut()?;
        Some(self.graph.lend_program(teacher, |t| {
            let (blocks, x_last) = t.hidden(list, &batch, None, Keep::FLOATS);
            let relations = layer.zip(io).map(|(layer, io)| {
                // Of the layer at the same depth.
                let theirs = &blocks[((layer + 1) * blocks.len() / ours).saturating_sub(1)].tape;
                let ([q, kv], [of_q, of_kv]) = (io.heads, io.meta);
                Relations { layer, teacher: [theirs.q, theirs.k, theirs.v], heads: [q, kv, kv], meta: [of_q, of_kv, of_kv], sum: io.sum }
            });
            (t.norm(list, x_last, "norm", rows).0, relations)
        }))
    }

    fn loss_buffers(&self) -> LossBuffers {
        LossBuffers { meta: self.io.meta, labels: self.io.labels, losses: self.io.losses }
    }

    fn sum(&mut self, list: ListId) {
        let shape = kd_loss::Shape { rows: self.rows() as u32, vocab: self.graph.config.vocab as u32, k: self.shape.top_k as u32 };
        self.graph.program.push(list, &kd_loss::LOSS_SUM, &[self.io.losses, self.io.meta, self.io.loss_sum], &shape);
    }

    fn loss(&mut self, list: ListId, logits: BufferId) {
        let (io, rows, k) = (&self.io, self.shape.batch * self.shape.seq, self.shape.top_k);
        let shape = kd_loss::Shape { rows: rows as u32, vocab: self.graph.config.vocab as u32, k: k as u32 };
        let kept = self.graph.program.transient("kept", rows * k);
        let buffers = [logits, io.topk_ids, io.targets, io.meta, io.labels, self.graph.hyper, io.losses, kept];
        self.graph.program.push(list, &kd_loss::KD_LOSS, &buffers, &shape);
    }

    fn evaluation(&mut self, softens: bool) -> Evaluation {
        let quantise = self.graph.program.list("quantise");
        self.ternarise(quantise);
        let evaluate = self.evaluate("evaluate");
        let soft = softens.then(|| {
            let soften = self.graph.program.list("soften to evaluate");
            self.graph.soften(soften);
            self.graph.soft = true;
            let evaluate = self.evaluate("evaluate softened");
            self.graph.soft = false;
            (soften, evaluate)
        });
        Evaluation { quantise, evaluate, soft }
    }

    fn evaluate(&mut self, name: &str) -> ListId {
        let list = self.graph.program.list(name);
        if self.teacher.is_none() {
            let tape = self.graph.forward(list, &self.batch, None, None);
            self.loss(list, tape.logits);
            return list;
        }
        let rows = self.rows();
        let (_, x_last) = self.graph.hidden(list, &self.batch, None, Keep::FLOATS);
        let (normed, _) = self.graph.norm(list, x_last, "norm", rows);
        let buffers = self.loss_buffers();
        self.graph.loss_by_rows(list, normed, (rows, buffers), None, None);
        list
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Activations, Group, Preset};
    use crate::graph::HeldPacked;

    /// No buffer of the plan is as large as the logits of a batch, and weights of the teacher take two bytes.
    #[test]
    fn with_a_teacher_in_the_loop_nothing_is_as_large_as_the_logits_of_a_batch() {
        let config = ModelConfig {
            vocab: 40_000,
            dim: 64,
            layers: 2,
            mlp: 192,
            heads: 4,
            kv_heads: 2,
            head_dim: 16,
            seq: 64,
            group: Group::Of(64),
            sub_norm: false,
            activations: Activations::Float,
            ..Preset::Poc.config()
        };
        let of = ModelConfig {
            dim: 80,
            heads: 5,
            kv_heads: 5,
            mlp: 96,
            weights: Weights::Float,
            group: Group::Tensor,
            activations: Activations::default(),
            ..config.clone()
        };
        let parameters = of.parameters() as u64;
        let teacher = TeacherShape { config: of, packed: HeldPacked::new(), by_ce: false, relation_layer: Some(1) };
        let shape = TrainShape::of(&Recipe { batch: 8, ..Recipe::default() }, 64, 0, true);
        let logits = (shape.batch * shape.seq * config.vocab * 4) as u64;
        let plan = |teacher| build(config.clone(), shape, Optimizer::Adamw, &Beside { softens: true, teacher }).1;
        let (with, without) = (plan(Some(teacher)), plan(None));
        let largest = |program: &Program| program.buffers.iter().map(|b| b.words as u64 * 4).max();
        assert!(largest(&without) >= Some(logits), "the logits of a batch are what is avoided");
        assert!(largest(&with) <= Some(logits / 2), "{:?} of {logits}", largest(&with));
        // Two chunks of half of them in their place, and two bytes for each of the teacher's parameters.
        let (with, without) = (with.plan().bytes(), without.plan().bytes());
        assert!(with < without + 2 * parameters + parameters / 5 + (16 << 20), "{with} {without} {parameters}");
    }
}
