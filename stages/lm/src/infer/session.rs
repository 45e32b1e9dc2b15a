//! Running a model without gradients: scoring windows of text, and decoding many sequences together over a KV cache.

use flow_shaders::device::{Device, DeviceError, Session};
use flow_shaders::kernel::Kernel;
use flow_shaders::kernels::attention::Cached;
use flow_shaders::kernels::{hyper, kd_loss, sample, ternary, topk};
use flow_shaders::pack_ternary;
use flow_shaders::program::{BufferId, ListId, Program};

use super::config::{ModelConfig, Weights};
use super::graph::{Batch, Graph, Hold};
use super::tensors::Source;
use super::trainer::qmax;

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
    /// Sequences decoded together and the positions that fit.
    pub decode: Option<(usize, usize)>,
    /// Temperature and top-p of sampling; greedy without.
    pub sampling: Option<(f32, f32)>,
    /// Rows whose logits can be read back (`score_logits`), instead of being thrown away.
    pub logits: bool,
    /// Tokens of every decoded sequence that are read together ([`Inference::prefill`]), 0: none.
    pub prefill: usize,
    /// How the KV cache is held (a larger form where the model's heads do not fit).
    pub cache: Cached,
    /// Embedding and head as float16. A model whose file has them so is held so, whatever this says.
    pub half_tables: bool,
}

struct Score {
    batch: Batch,
    labels: BufferId,
    meta: BufferId,
    target_ids: BufferId,
    target_logprobs: BufferId,
    losses: BufferId,
    ids: BufferId,
    logprobs: BufferId,
    other: BufferId,
    best: BufferId,
    logits: Option<BufferId>,
    nll: ListId,
    top: ListId,
    values: Option<ListId>,
}

struct Decode {
    batch: Batch,
    uniform: BufferId,
    chosen: BufferId,
    greedy: ListId,
    sampled: ListId,
    prefill: Option<Prefill>,
}

struct Prefill {
    batch: Batch,
    /// Row of each sequence whose next token is chosen.
    rows: BufferId,
    list: ListId,
}

/// Top-K of every row of a scored batch.
pub struct TopK {
    /// Ids `[rows, k]`.
    pub ids: Vec<u32>,
    /// Logprobs `[rows, k]`.
    pub logprobs: Vec<f32>,
    /// `[rows, 1 + taus]`: log-mass of the rest, and its log-sum-exp at each τ.
    pub other: Vec<f32>,
}

/// A model ready to run on a device.
pub struct Inference {
    session: Session,
    config: ModelConfig,
    hyper: BufferId,
    uses: Uses,
    score: Option<Score>,
    decode: Option<Decode>,
}

impl Inference {
    /// Plans, allocates and loads a model.
    pub fn new(device: &Device, config: ModelConfig, tensors: &impl Source, mut uses: Uses) -> Result<Self, DeviceError> {
        uses.half_tables |= tensors.is_half("embed") && (config.tied || tensors.is_half("head"));
        let built = build(config, &uses);
        let mut session = device.load(built.program)?;
        built.graph.load(&mut session, tensors)?;
        Self::ready(session, built.graph, built.score, built.decode, uses)
    }

    /// As [`Self::new`], with weights that `fill` writes straight into the buffers.
    pub fn with_weights(
        device: &Device,
        config: ModelConfig,
        uses: Uses,
        fill: impl FnOnce(&Graph, &mut Session) -> Result<(), DeviceError>,
    ) -> Result<Self, DeviceError> {
        let built = build(config, &uses);
        let mut session = device.load(built.program)?;
        fill(&built.graph, &mut session)?;
        Self::ready(session, built.graph, built.score, built.decode, uses)
    }

    fn ready(mut session: Session, graph: Graph, score: Option<Score>, decode: Option<Decode>, uses: Uses) -> Result<Self, DeviceError> {
        graph.write_constants(&mut session)?;
        if let Some(s) = &score {
            let pos: Vec<u32> = (0..s.batch.rows()).map(|r| (r % s.batch.q_len) as u32).collect();
            session.write(s.batch.pos, &pos)?;
        }
        if let (Some(d), Some((n, kv_len))) = (&decode, uses.decode) {
            session.write(d.batch.mask, &vec![1; n * kv_len])?;
            if let Some(p) = &d.prefill {
                session.write(p.batch.mask, &vec![1; n * kv_len])?;
            }
        }
        let mut ready = Self { session, hyper: graph.hyper, config: graph.config, uses, score, decode };
        ready.set_bits(8)?;
        Ok(ready)
    }

    /// Bytes that such a session needs, without allocating anything.
    pub fn planned_bytes(config: ModelConfig, uses: &Uses) -> u64 {
        build(config, uses).program.plan().bytes()
    }

    /// As [`Self::planned_bytes`], with what the device's kernels need beside the buffers.
    pub fn planned_bytes_on(device: &Device, config: ModelConfig, uses: &Uses) -> u64 {
        device.planned_bytes(&build(config, uses).program)
    }

    /// Bytes allocated on the device for weights, cache and activations.
    pub fn bytes(&self) -> u64 {
        self.session.planned_bytes()
    }

    /// The model's shape.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// Activation bits of ternary linears (8 or 4). What is scored, drawn or compared here is at temperature 1.
    pub fn set_bits(&mut self, bits: u32) -> Result<(), DeviceError> {
        let mut h = vec![0f32; hyper::LEN];
        h[hyper::QMAX] = qmax(bits);
        h[hyper::INV_TAU] = 1.0;
        self.session.write_f32(self.hyper, &h)
    }

    fn scoring(&self) -> &Score {
        self.score.as_ref().expect("built with `score`")
    }

    fn feed(&mut self, ids: &[u32], mask: &[u32]) -> Result<(), DeviceError> {
        let batch = self.scoring().batch;
        self.session.write(batch.ids, ids)?;
        self.session.write(batch.mask, mask)
    }

    /// Negative log-likelihood (nats) of `labels` at every row, 0 where the label is negative.
    pub fn nll(&mut self, ids: &[u32], mask: &[u32], labels: &[i32]) -> Result<Vec<f32>, DeviceError> {
        let meta = vec![[0f32; 4]; labels.len()];
        Ok(self.losses(ids, mask, labels, &[], &[], &meta)?.into_iter().map(|l| l.1).collect())
    }

    /// (KL, NLL) of every row against distillation targets; see [`super::trainer::MicroBatch`] for the layout.
    pub fn losses(
        &mut self,
        ids: &[u32],
        mask: &[u32],
        labels: &[i32],
        target_ids: &[i32],
        target_logprobs: &[f32],
        meta: &[[f32; 4]],
    ) -> Result<Vec<(f32, f32)>, DeviceError> {
        self.feed(ids, mask)?;
        let s = self.score.as_ref().expect("built with `score`");
        self.session.write_i32(s.labels, labels)?;
        self.session.write_f32(s.meta, bytemuck::cast_slice(meta))?;
        if self.uses.targets > 0 && !target_ids.is_empty() {
            self.session.write_i32(s.target_ids, target_ids)?;
            self.session.write_f32(s.target_logprobs, target_logprobs)?;
        }
        self.session.run(s.nll)?;
        let losses = self.session.read_f32(s.losses)?;
        Ok(losses.chunks_exact(4).map(|l| (l[0], l[1])).collect())
    }

    /// The most likely next token of every row of the last scored batch.
    pub fn best(&mut self) -> Result<Vec<u32>, DeviceError> {
        let best = self.scoring().best;
        self.session.read(best)
    }

    /// Top-K + Other of every row.
    pub fn top_k(&mut self, ids: &[u32], mask: &[u32]) -> Result<TopK, DeviceError> {
        self.feed(ids, mask)?;
        let (list, a, b, c) = {
            let s = self.scoring();
            (s.top, s.ids, s.logprobs, s.other)
        };
        self.session.run(list)?;
        Ok(TopK { ids: self.session.read(a)?, logprobs: self.session.read_f32(b)?, other: self.session.read_f32(c)? })
    }

    /// Logits of every row (sessions built with `logits`).
    pub fn logits(&mut self, ids: &[u32], mask: &[u32]) -> Result<Vec<f32>, DeviceError> {
        self.feed(ids, mask)?;
        let s = self.scoring();
        let (list, buffer) = (s.values.expect("built with `logits`"), s.logits.expect("built with `logits`"));
        self.session.run(list)?;
        self.session.read_f32(buffer)
    }

    /// Logits of the last row only (sessions built with `logits`).
    pub fn last_logits(&mut self, ids: &[u32], mask: &[u32]) -> Result<Vec<f32>, DeviceError> {
        self.feed(ids, mask)?;
        let s = self.scoring();
        let (list, buffer) = (s.values.expect("built with `logits`"), s.logits.expect("built with `logits`"));
        self.session.run(list)?;
        self.session.read_f32_at(buffer, (ids.len() - 1) * self.config.vocab, self.config.vocab)
    }

    /// Feeds one token to every sequence at its position and chooses the next ones: greedily, or by the numbers in
    /// [0, 1) of `uniform`.
    pub fn step(&mut self, ids: &[u32], pos: &[u32], uniform: Option<&[f32]>) -> Result<Vec<u32>, DeviceError> {
        let d = self.decode.as_ref().expect("built with `decode`");
        self.session.write(d.batch.ids, ids)?;
        self.session.write(d.batch.pos, pos)?;
        match uniform {
            Some(u) => {
                self.session.write_f32(d.uniform, u)?;
                self.session.run(d.sampled)?;
            }
            None => self.session.run(d.greedy)?,
        }
        self.session.read(d.chosen)
    }

    /// Reads the beginnings of sequences into the cache, by chunks of `prefill` tokens. One that is shorter than others
    /// repeats its last token: what that leaves at later positions is overwritten before it is read.
    pub fn read_starts(&mut self, starts: &[&[u32]]) -> Result<(), DeviceError> {
        let (n, chunk) = (self.uses.decode.map_or(0, |d| d.0), self.uses.prefill);
        let longest = starts.iter().map(|s| s.len()).max().unwrap_or(0);
        let token = |i: usize, t: usize| starts.get(i).and_then(|s| s.get(t).or(s.last())).copied().unwrap_or(0);
        for first in (0..longest).step_by(chunk.max(1)) {
            let ids: Vec<u32> = (0..n * chunk).map(|r| token(r / chunk, first + r % chunk)).collect();
            self.prefill(&ids, first, chunk)?;
        }
        Ok(())
    }

    /// Feeds `len` tokens (at most `prefill`) to every sequence from position `first` on, and chooses the next ones
    /// greedily. `ids [sequences, len]`.
    pub fn prefill(&mut self, ids: &[u32], first: usize, len: usize) -> Result<Vec<u32>, DeviceError> {
        let d = self.decode.as_ref().expect("built with `decode`");
        let p = d.prefill.as_ref().expect("built with `prefill`");
        let (n, chunk) = (p.batch.sequences, p.batch.q_len);
        // A shorter chunk repeats its last token: what that leaves at later positions of the cache is overwritten before
        // it is read.
        let at = |i: usize, t: usize| ids[i * len + t.min(len - 1)];
        let padded: Vec<u32> = (0..n * chunk).map(|r| at(r / chunk, r % chunk)).collect();
        assert!(first + chunk <= self.uses.decode.map_or(0, |u| u.1), "a chunk of {chunk} from position {first} on does not fit");
        let pos: Vec<u32> = (0..n * chunk).map(|r| (first + r % chunk) as u32).collect();
        let rows: Vec<u32> = (0..n).map(|i| (i * chunk + len - 1) as u32).collect();
        let (list, chosen) = (p.list, d.chosen);
        let (ids_at, pos_at, rows_at) = (p.batch.ids, p.batch.pos, p.rows);
        self.session.write(ids_at, &padded)?;
        self.session.write(pos_at, &pos)?;
        self.session.write(rows_at, &rows)?;
        self.session.run(list)?;
        self.session.read(chosen)
    }
}

/// The kernels of everything that a session may do, by name.
pub fn kernels(config: ModelConfig, half_tables: bool, cache: Cached) -> Vec<&'static Kernel> {
    let uses = Uses {
        // More rows than the product of a few takes; decoding has few.
        score: Some((2, 4)),
        top_k: 1,
        targets: 1,
        decode: Some((1, 4)),
        sampling: Some((1.0, 1.0)),
        prefill: 2,
        half_tables,
        cache,
        ..Uses::default()
    };
    build(config, &uses).program.kernels()
}

struct Built {
    program: Program,
    graph: Graph,
    score: Option<Score>,
    decode: Option<Decode>,
}

fn build(config: ModelConfig, uses: &Uses) -> Built {
    let positions = uses.score.map_or(0, |s| s.1).max(uses.decode.map_or(0, |d| d.1)).max(1);
    let hold = if uses.half_tables { Hold::PackedHalf } else { Hold::Packed };
    let mut graph = Graph::new(config, positions, hold);
    let score = uses.score.map(|(n, seq)| build_score(&mut graph, uses, n, seq));
    let decode = uses.decode.map(|(n, kv_len)| build_decode(&mut graph, uses, n, kv_len));
    let program = std::mem::take(&mut graph.program);
    Built { program, graph, score, decode }
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

fn build_decode(g: &mut Graph, uses: &Uses, n: usize, kv_len: usize) -> Decode {
    let batch = g.batch("decode", n, 1, kv_len);
    let cache = g.cache("cache", n, kv_len, uses.cache);
    let vocab = g.config.vocab as u32;
    let mut d = Decode {
        prefill: None,
        batch,
        uniform: g.program.persistent("uniform", n),
        chosen: g.program.persistent("chosen", n),
        greedy: g.program.list("greedy"),
        sampled: g.program.list("sampled"),
    };
    let tape = g.forward(d.greedy, &batch, Some(&cache), None);
    let shape = sample::Shape { rows: n as u32, vocab, temperature: 1.0, top_p: 1.0 };
    g.program.push(d.greedy, &sample::ARGMAX, &[tape.logits, d.chosen], &shape);
    if let Some((temperature, top_p)) = uses.sampling {
        let tape = g.forward(d.sampled, &batch, Some(&cache), None);
        let shape = sample::Shape { rows: n as u32, vocab, temperature, top_p };
        g.program.push(d.sampled, &sample::SAMPLE, &[tape.logits, d.uniform, d.chosen], &shape);
    }
    if uses.prefill > 0 {
        let p = Prefill {
            batch: g.batch("prefill", n, uses.prefill, kv_len),
            rows: g.program.persistent("prefill.rows", n),
            list: g.program.list("prefill"),
        };
        let logits = g.prefill(p.list, &p.batch, &cache, p.rows);
        let shape = sample::Shape { rows: n as u32, vocab, temperature: 1.0, top_p: 1.0 };
        g.program.push(p.list, &sample::ARGMAX, &[logits, d.chosen], &shape);
        d.prefill = Some(p);
    }
    d
}

impl Graph {
    /// Writes parameters into a session of this graph's program, packing the ternary linears.
    fn load(&self, session: &mut Session, tensors: &impl Source) -> Result<(), DeviceError> {
        for t in &self.tensors {
            let name = &t.spec.name;
            if let Some(master) = t.master {
                session.write_f32(master, &tensors.tensor(name))?;
            }
            if let Some(half) = t.half {
                session.write(half, &tensors.halves(name))?;
            }
            if let Some((codes, scale)) = t.packed {
                let rule = u32::from(self.config.weights == Weights::Threshold);
                let (rows, cols) = (t.spec.shape[0], t.spec.shape[1]);
                let (words, s) = tensors.packed(name).unwrap_or_else(|| pack_ternary(&tensors.tensor(name), cols, rule));
                debug_assert_eq!(words.len(), rows * ternary::packed_words(cols));
                session.write(codes, &words)?;
                session.write_f32(scale, &vec![s; rows])?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::config::Preset;

    /// Tokens seldom show a rounding: what decides is which products decoding takes.
    #[test]
    fn decoding_takes_products_whose_sums_no_other_sequence_changes() {
        for (weights, half_tables) in [Weights::Float, Weights::Absmean].into_iter().flat_map(|w| [(w, false), (w, true)]) {
            let config = ModelConfig { weights, ..Preset::Poc.config() };
            let uses = Uses { decode: Some((3, 8)), sampling: Some((1.0, 1.0)), prefill: 4, half_tables, ..Uses::default() };
            let program = build(config, &uses).program;
            for (name, ops) in program.lists.iter().filter(|(name, _)| name == "greedy" || name == "sampled") {
                let names: Vec<&str> = ops.iter().map(|op| op.kernel.name).filter(|k| k.starts_with("gem")).collect();
                assert!(!names.is_empty() && names.iter().all(|k| k.starts_with("gemv_nt")), "{name}, {weights:?}: {names:?}");
            }
        }
    }
}
