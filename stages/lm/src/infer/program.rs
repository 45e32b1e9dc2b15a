//! The program of a session: parameters, and the lists that score and decode.

use flow_shaders::device::{DeviceError, Session};
use flow_shaders::kernel::Kernel;
use flow_shaders::kernels::attention::Cached;
use flow_shaders::kernels::{kd_loss, sample, topk};
use flow_shaders::program::{BufferId, ListId, Program};

use super::takes::Takes;
use crate::config::ModelConfig;
use crate::format::tensors::TensorSource;
use crate::format::ternary::pack;
use crate::graph::{Batch, Cache, Graph, HeldPacked, Hold};

/// What a session must be able to do.
#[derive(Clone, Debug, Default)]
pub struct Uses {
    /// Windows scored together and their length.
    pub score: Option<(usize, usize)>,
    /// Top-K kept when scoring (0: none) and the temperatures of the tail.
    pub top_k: usize,
    /// Temperatures of `other_lse`, at most three.
    pub taus: Vec<f32>,
    /// Buckets of distillation targets that scoring may be given (KL against a teacher), 0: none.
    pub targets: usize,
    /// Slots, sequences that are decoded together, and the positions that fit into each.
    pub decode: Option<(usize, usize)>,
    /// Whether tokens may be chosen otherwise than greedily ([`super::Sampling`]).
    pub draws: bool,
    /// Whether the logits of scored rows can be read back, instead of being thrown away.
    pub logits: bool,
    /// Tokens of a sequence that are read together ([`super::Session::prefill`]), 0: none.
    pub prefill: usize,
    /// How the KV cache is held (a larger form where the model's heads do not fit).
    pub cache: Cached,
    /// Embedding and head as float16. A model whose file has them so is held so, whatever this says.
    pub half_tables: bool,
    /// Float activations are rounded to int8 in blocks of 64 before linears and head. A model whose linears take codes keeps
    /// those.
    pub block8: bool,
    /// Matrices that the model's file holds packed: set by [`Self::for_tensors`].
    pub packed: HeldPacked,
}

impl Uses {
    /// For a model whose linears take this ([`Takes::fitting`]).
    #[must_use]
    pub fn taking(self, takes: Takes) -> Self {
        Self { block8: takes == Takes::Block8, ..self }
    }

    /// With tables held as the model's file has them.
    #[must_use]
    pub fn for_tensors(mut self, config: &ModelConfig, tensors: &impl TensorSource) -> Self {
        self.half_tables |= tensors.is_half("embed") && (config.tied || tensors.is_half("head"));
        let held = config.tensors().into_iter().filter_map(|t| tensors.packed_groups(&t.name).map(|groups| (t.name, groups)));
        self.packed = held.collect();
        self
    }
}

/// Buffers and lists of scoring; `rows` are windows times their length.
pub(super) struct Score {
    pub batch: Batch,
    /// `[rows]`.
    pub labels: BufferId,
    /// `[rows, 4]`.
    pub meta: BufferId,
    /// `[rows, targets]`.
    pub target_ids: BufferId,
    /// `[rows, targets]`.
    pub target_logprobs: BufferId,
    /// (KL, CE, …) `[rows, 4]`.
    pub losses: BufferId,
    /// `[rows, top_k]`.
    pub ids: BufferId,
    /// `[rows, top_k]`.
    pub logprobs: BufferId,
    /// `[rows, 1 + taus]`.
    pub other: BufferId,
    /// `[rows]`.
    pub best: BufferId,
    /// `[rows, vocab]`.
    pub logits: Option<BufferId>,
    pub nll: ListId,
    pub top: ListId,
    pub values: Option<ListId>,
}

/// Buffers and lists of decoding; the first dimension of every buffer is the slot.
pub(super) struct Decode {
    pub slots: usize,
    /// Positions of a slot in the cache.
    pub kv_len: usize,
    /// `[slots]`.
    pub ids: BufferId,
    /// `[slots]`.
    pub pos: BufferId,
    /// `[slots, kv_len]`, all ones: a position is seen by those that come later in its sequence.
    pub mask: BufferId,
    /// Random numbers in [0, 1) `[slots]`.
    pub uniform: BufferId,
    /// `[slots]`.
    pub chosen: BufferId,
    /// `[slots, vocab]`, where tokens may be drawn.
    pub logits: Option<BufferId>,
    /// Passes over slots in a row, from few to all.
    pub passes: Vec<Pass>,
    /// Reading prompts into all slots at once.
    pub prefill: Option<Prefill>,
    /// Reading a prompt into one slot, where there are several.
    pub prefill_one: Option<PrefillOne>,
    /// Words of a slot in the keys, or the values, of a layer.
    pub slot_words: usize,
    /// Keys and values of every layer, of all slots.
    pub cache: Vec<BufferId>,
}

/// Lists over `slots` slots in a row, from slot `first` on.
pub(super) struct Pass {
    pub slots: usize,
    /// Where `windows` are placed.
    pub first: usize,
    /// Windows on keys and values of every layer.
    pub windows: Vec<BufferId>,
    /// Forward pass and the most likely token.
    pub greedy: ListId,
    /// Forward pass into the logits, and two ways to choose from these.
    pub draws: Option<Draws>,
}

#[derive(Clone, Copy)]
pub(super) struct Draws {
    pub forward: ListId,
    pub argmax: ListId,
    /// One operation, whose parameters are those of a [`super::Sampling`].
    pub sample: ListId,
}

/// A chunk of tokens of each sequence.
pub(super) struct Prefill {
    pub batch: Batch,
    /// Row of each sequence whose next token is chosen.
    pub rows: BufferId,
    pub list: ListId,
}

/// The same for the sequence of one slot, whose cache its windows show.
pub(super) struct PrefillOne {
    pub read: Prefill,
    /// Windows on keys and values of every layer.
    pub windows: Vec<BufferId>,
}

/// The kernels of everything that a session may do, by name.
pub fn kernels(config: ModelConfig, half_tables: bool, cache: Cached) -> Vec<&'static Kernel> {
    let uses = Uses {
        // More rows than the product of a few takes; decoding has few.
        score: Some((2, 4)),
        top_k: 1,
        targets: 1,
        decode: Some((1, 4)),
        draws: true,
        prefill: 2,
        half_tables,
        cache,
        ..Uses::default()
    };
    build(config, &uses).program.kernels()
}

pub(super) struct Built {
    pub program: Program,
    pub graph: Graph,
    pub score: Option<Score>,
    pub decode: Option<Decode>,
}

pub(super) fn build(config: ModelConfig, uses: &Uses) -> Built {
    let decode = uses.decode.map(|(slots, kv_len)| (slots, positions(&config, uses, slots, kv_len)));
    let positions = uses.score.map_or(0, |s| s.1).max(decode.map_or(0, |d| d.1)).max(1);
    let hold = if uses.half_tables { Hold::PackedHalf } else { Hold::Packed };
    let block8 = uses.block8 && !config.quantises();
    let mut graph = Graph::holding(config, positions, hold, &uses.packed);
    graph.block8 = block8;
    let score = uses.score.map(|(n, seq)| build_score(&mut graph, uses, n, seq));
    let decode = decode.map(|(slots, kv_len)| build_decode(&mut graph, uses, slots, kv_len));
    let program = std::mem::take(&mut graph.program);
    Built { program, graph, score, decode }
}

/// Words between which a binding may begin (256 bytes, WebGPU's default).
const ALIGNMENT: usize = 64;

/// Positions of a slot: those that are asked for, or a few more where the cache of every slot must begin where a binding may.
fn positions(config: &ModelConfig, uses: &Uses, slots: usize, kv_len: usize) -> usize {
    if slots == 1 || uses.prefill == 0 {
        return kv_len;
    }
    let words = config.kv_heads * uses.cache.fitting(config.head_dim).words(config.head_dim);
    kv_len.next_multiple_of(ALIGNMENT >> words.trailing_zeros().min(ALIGNMENT.trailing_zeros()))
}

/// Numbers of slots that have a pass of their own: few sequences do not compute the rows of many.
fn sizes(slots: usize) -> Vec<usize> {
    (0..).map(|i| 1 << (2 * i)).take_while(|n| *n < slots).chain([slots]).collect()
}

fn build_score(g: &mut Graph, uses: &Uses, n: usize, seq: usize) -> Score {
    let (rows, vocab) = (n * seq, g.config.vocab);
    let batch = g.batch("score", n, seq, seq);
    let p = &mut g.program;
    let k = uses.top_k;
    let mut s = Score {
        batch,
        labels: p.persistent("labels", rows),
        meta: p.persistent("meta", rows * 4),
        target_ids: p.persistent("target_ids", rows * uses.targets),
        target_logprobs: p.persistent("target_logprobs", rows * uses.targets),
        losses: p.persistent("losses", rows * 4),
        ids: p.persistent("topk.ids", rows * k),
        logprobs: p.persistent("topk.logprobs", rows * k),
        other: p.persistent("topk.other", if k > 0 { rows * (1 + uses.taus.len()) } else { 0 }),
        best: p.persistent("best", rows),
        logits: uses.logits.then(|| p.persistent("logits", rows * vocab)),
        nll: p.list("nll"),
        top: p.list("top"),
        values: uses.logits.then(|| p.list("logits")),
    };
    if !uses.logits {
        let tape = g.forward(s.nll, &batch, None, None);
        let shape = sample::Shape { rows: rows as u32, vocab: vocab as u32, temperature: 1.0, top_p: 1.0 };
        g.program.push(s.nll, &sample::ARGMAX, &[tape.logits, s.best], &shape);
        let shape = kd_loss::Shape { rows: rows as u32, vocab: vocab as u32, k: uses.targets as u32 };
        let kept = g.program.transient("kept", rows * uses.targets);
        let buffers = [tape.logits, s.target_ids, s.target_logprobs, s.meta, s.labels, g.hyper, s.losses, kept];
        g.program.push(s.nll, &kd_loss::KD_LOSS, &buffers, &shape);
    }
    if k > 0 {
        let tape = g.forward(s.top, &batch, None, None);
        let mut taus = [1.0; 3];
        taus[..uses.taus.len()].copy_from_slice(&uses.taus);
        let shape = topk::Shape { rows: rows as u32, vocab: vocab as u32, k: k as u32, n_tau: uses.taus.len() as u32, taus };
        g.program.push(s.top, &topk::TOPK, &[tape.logits, s.ids, s.logprobs, s.other], &shape);
    }
    if let (Some(list), Some(logits)) = (s.values, s.logits) {
        g.forward(list, &batch, None, Some(logits));
    }
    s.values = s.values.filter(|_| uses.logits);
    s
}

fn build_decode(g: &mut Graph, uses: &Uses, slots: usize, kv_len: usize) -> Decode {
    let batch = g.batch("decode", slots, 1, kv_len);
    let cache = g.cache("cache", slots, kv_len, uses.cache);
    let vocab = g.config.vocab;
    let mut d = Decode {
        slots,
        kv_len,
        ids: batch.ids,
        pos: batch.pos,
        mask: batch.mask,
        uniform: g.program.persistent("uniform", slots),
        chosen: g.program.persistent("chosen", slots),
        logits: uses.draws.then(|| g.program.persistent("logits", slots * vocab)),
        passes: Vec::new(),
        prefill: None,
        prefill_one: None,
        slot_words: g.program.words(cache.layers[0].0) / slots,
        cache: windows_of(&cache),
    };
    for n in sizes(slots) {
        // What the first slots hold: an adapter binds no more than that.
        let first = Batch { sequences: n, mask: g.program.window(batch.mask, n * kv_len), ..batch };
        let cache = slots_of(g, &cache, slots, n);
        let pass = build_pass(g, &d, &first, &cache);
        d.passes.push(pass);
    }
    if uses.prefill > 0 {
        d.prefill = Some(build_prefill(g, "prefill", slots, uses.prefill, &cache, d.chosen));
    }
    if uses.prefill > 0 && slots > 1 {
        let one = slots_of(g, &cache, slots, 1);
        d.prefill_one =
            Some(PrefillOne { read: build_prefill(g, "prefill one", 1, uses.prefill, &one, d.chosen), windows: windows_of(&one) });
    }
    d
}

/// Windows on so many slots of a cache.
fn slots_of(g: &mut Graph, cache: &Cache, slots: usize, n: usize) -> Cache {
    let window = |g: &mut Graph, buffer: BufferId| {
        let words = g.program.words(buffer) / slots * n;
        g.program.window(buffer, words)
    };
    let layers = cache.layers.iter().map(|(k, v)| (window(g, *k), window(g, *v))).collect();
    Cache { layers, ..*cache }
}

fn windows_of(cache: &Cache) -> Vec<BufferId> {
    cache.layers.iter().flat_map(|(k, v)| [*k, *v]).collect()
}

fn build_pass(g: &mut Graph, d: &Decode, batch: &Batch, cache: &Cache) -> Pass {
    let shape = sample::Shape { rows: batch.sequences as u32, vocab: g.config.vocab as u32, temperature: 1.0, top_p: 1.0 };
    let greedy = g.program.list("greedy");
    let tape = g.forward(greedy, batch, Some(cache), None);
    g.program.push(greedy, &sample::ARGMAX, &[tape.logits, d.chosen], &shape);
    let draws = d.logits.map(|logits| {
        let lists = Draws { forward: g.program.list("forward"), argmax: g.program.list("argmax"), sample: g.program.list("sample") };
        g.forward(lists.forward, batch, Some(cache), Some(logits));
        g.program.push(lists.argmax, &sample::ARGMAX, &[logits, d.chosen], &shape);
        g.program.push(lists.sample, &sample::SAMPLE, &[logits, d.uniform, d.chosen], &shape);
        lists
    });
    Pass { slots: batch.sequences, first: 0, windows: windows_of(cache), greedy, draws }
}

fn build_prefill(g: &mut Graph, name: &str, sequences: usize, chunk: usize, cache: &Cache, chosen: BufferId) -> Prefill {
    let p = Prefill {
        batch: g.batch(name, sequences, chunk, cache.kv_len),
        rows: g.program.persistent(format!("{name}.rows"), sequences),
        list: g.program.list(name),
    };
    let logits = g.prefill(p.list, &p.batch, cache, p.rows);
    let shape = sample::Shape { rows: sequences as u32, vocab: g.config.vocab as u32, temperature: 1.0, top_p: 1.0 };
    g.program.push(p.list, &sample::ARGMAX, &[logits, chosen], &shape);
    p
}

impl Graph {
    /// Writes parameters into a session of this graph's program, packing the ternary linears.
    pub(crate) fn load(&self, session: &mut Session, tensors: &impl TensorSource) -> Result<(), DeviceError> {
        for t in &self.tensors {
            let name = &t.spec.name;
            if let Some(master) = t.master {
                session.write_f32(master, &tensors.tensor(name))?;
            }
            if let Some(half) = t.half {
                session.write(half, &tensors.halves(name))?;
            }
            if let Some(to) = t.packed {
                let from = tensors.packed(name).unwrap_or_else(|| pack(&self.config, &tensors.tensor(name), t.spec.shape[1]));
                debug_assert_eq!(from.groups, to.groups);
                session.write(to.codes, &from.codes)?;
                session.write(to.scale, &from.scale)?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Preset;

    /// Tokens seldom show a rounding: what decides is which products decoding takes.
    #[test]
    fn decoding_takes_products_whose_sums_no_other_sequence_changes() {
        use crate::config::Weights;
        for (weights, half_tables) in [Weights::Float, Weights::Absmean].into_iter().flat_map(|w| [(w, false), (w, true)]) {
            let config = ModelConfig { weights, ..Preset::Poc.config() };
            let uses = Uses { decode: Some((3, 8)), draws: true, prefill: 4, half_tables, ..Uses::default() };
            let program = build(config, &uses).program;
            for (name, ops) in program.lists.iter().filter(|(name, _)| name == "greedy" || name == "forward") {
                let names: Vec<&str> = ops.iter().map(|op| op.kernel.name).filter(|k| k.starts_with("gem")).collect();
                assert!(!names.is_empty() && names.iter().all(|k| k.starts_with("gemv_nt")), "{name}, {weights:?}: {names:?}");
            }
        }
    }
}
