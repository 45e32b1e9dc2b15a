//! A model ready to run on a device: its weights once, for scoring windows and for decoding the sequences of its slots.

use std::ops::Range;

use flow_shaders::device::{self, Device};
use flow_shaders::kernels::{hyper, sample, topk};
use flow_shaders::program::{BufferId, ListId};

use super::program::{Built, Decode, Pass, Prefill, Score, Uses, build};
use super::sampling::Sampling;
use crate::config::{Bits, ModelConfig};
use crate::error::{Error, Result, ShapeError};
use crate::format::tensors::TensorSource;
use crate::graph::{Graph, Tensor};
use crate::tokenizer::TokenId;

/// How the next token of a slot is chosen.
#[derive(Clone, Copy, Debug)]
pub struct Choice<'a> {
    /// The rule.
    pub sampling: &'a Sampling,
    /// The sequence so far, with the token that is fed.
    pub tokens: &'a [TokenId],
    /// How many of them are the prompt.
    pub prompt: usize,
    /// A random number in [0, 1).
    pub uniform: f32,
    /// Whether the logits are told, as they were before the sampling changed them.
    pub tell: bool,
}

/// The next token of a slot.
#[derive(Clone, Debug, PartialEq)]
pub struct Next {
    /// The token.
    pub token: TokenId,
    /// Logits `[vocab]`, where they were asked for.
    pub logits: Option<Vec<f32>>,
}

/// Top-K of every row of a scored batch.
pub struct TopK {
    /// Ids `[rows, k]`.
    pub ids: Vec<TokenId>,
    /// Logprobs `[rows, k]`.
    pub logprobs: Vec<f32>,
    /// `[rows, 1 + taus]`: log-mass of the rest, and its log-sum-exp at each τ.
    pub other: Vec<f32>,
}

/// A model ready to run on a device.
pub struct Session {
    device: device::Session,
    config: ModelConfig,
    hyper: BufferId,
    uses: Uses,
    score: Option<Score>,
    decode: Option<Decode>,
    /// Candidates and temperatures of every row that are kept now.
    kept: (usize, usize),
}

impl Session {
    /// Plans, allocates and loads a model.
    pub fn new(device: &Device, config: ModelConfig, tensors: &impl TensorSource, uses: Uses) -> Result<Self> {
        let uses = uses.for_tensors(&config, tensors);
        Self::with_weights(device, config, uses, |graph, session| graph.load(session, tensors))
    }

    /// As [`Self::new`], with weights that `fill` writes straight into the buffers.
    pub fn with_weights(
        device: &Device,
        config: ModelConfig,
        uses: Uses,
        fill: impl FnOnce(&Graph, &mut device::Session) -> Result<(), device::DeviceError>,
    ) -> Result<Self> {
        let longest = uses.score.map_or(0, |s| s.1).max(uses.decode.map_or(0, |d| d.1));
        within_window(&config, longest)?;
        let Built { program, graph, score, decode } = build(config, &uses);
        let mut session = device.load(program)?;
        fill(&graph, &mut session)?;
        graph.write_constants(&mut session)?;
        if let Some(s) = &score {
            let pos: Vec<u32> = (0..s.batch.rows()).map(|r| (r % s.batch.q_len) as u32).collect();
            session.write(s.batch.pos, &pos)?;
        }
        if let Some(d) = &decode {
            session.write(d.mask, &vec![1; d.slots * d.kv_len])?;
            for p in d.prefill.iter().chain(d.prefill_one.iter().map(|one| &one.read)) {
                session.write(p.batch.mask, &vec![1; p.batch.sequences * d.kv_len])?;
            }
        }
        let kept = (uses.top_k, uses.taus.len());
        let mut ready = Self { device: session, hyper: graph.hyper, config: graph.config, uses, score, decode, kept };
        ready.set_bits(Bits::Eight)?;
        Ok(ready)
    }

    /// Bytes that such a session needs, without allocating anything.
    pub fn planned_bytes(config: ModelConfig, uses: &Uses) -> u64 {
        build(config, uses).program.plan().bytes()
    }

    /// Those of them that are weights.
    pub fn weight_bytes(config: ModelConfig, uses: &Uses) -> u64 {
        let Built { program, graph, .. } = build(config, uses);
        let held = |t: &Tensor| [t.master, t.half, t.packed.map(|p| p.codes), t.packed.map(|p| p.scale)];
        graph.tensors.iter().flat_map(held).flatten().map(|b| 4 * program.words(b) as u64).sum()
    }

    /// As [`Self::planned_bytes`], with what the device's kernels need beside the buffers.
    pub fn planned_bytes_on(device: &Device, config: ModelConfig, uses: &Uses) -> u64 {
        device.planned_bytes(&build(config, uses).program)
    }

    /// Bytes allocated on the device for weights, cache and activations.
    pub fn bytes(&self) -> u64 {
        self.device.planned_bytes()
    }

    /// The model's shape.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// Activation bits of ternary linears (one number), of everything that runs from now on. What is scored, drawn or compared here is at temperature 1.
    pub fn set_bits(&mut self, bits: Bits) -> Result<()> {
        let mut h = vec![0f32; hyper::LEN];
        h[hyper::QMAX] = bits.qmax();
        h[hyper::INV_TAU] = 1.0;
        Ok(self.device.write_f32(self.hyper, &h)?)
    }

    fn scoring(&self) -> &Score {
        self.score.as_ref().expect("built with `score`")
    }

    fn feed(&mut self, ids: &[TokenId], mask: &[u32]) -> Result<()> {
        let batch = self.scoring().batch;
        self.device.write(batch.ids, TokenId::words(ids))?;
        Ok(self.device.write(batch.mask, mask)?)
    }

    /// Negative log-likelihood (nats) `[rows]` of `labels` at every row, 0 where the label is negative. `ids`, `mask` and
    /// `labels` are `[windows, seq]`.
    pub fn nll(&mut self, ids: &[TokenId], mask: &[u32], labels: &[i32]) -> Result<Vec<f32>> {
        let meta = vec![[0f32; 4]; labels.len()];
        Ok(self.losses(ids, mask, labels, &[], &[], &meta)?.into_iter().map(|l| l.1).collect())
    }

    /// (KL, NLL) `[rows]` of every row against distillation targets `[rows, targets]`; `ids`, `mask` and `labels` are
    /// `[windows, seq]`, see [`crate::train::MicroBatch`] for the layout.
    pub fn losses(
        &mut self,
        ids: &[TokenId],
        mask: &[u32],
        labels: &[i32],
        target_ids: &[i32],
        target_logprobs: &[f32],
        meta: &[[f32; 4]],
    ) -> Result<Vec<(f32, f32)>> {
        self.feed(ids, mask)?;
        let s = self.score.as_ref().expect("built with `score`");
        self.device.write_i32(s.labels, labels)?;
        self.device.write_f32(s.meta, bytemuck::cast_slice(meta))?;
        if self.uses.targets > 0 && !target_ids.is_empty() {
            self.device.write_i32(s.target_ids, target_ids)?;
            self.device.write_f32(s.target_logprobs, target_logprobs)?;
        }
        self.device.run(s.nll)?;
        let losses = self.device.read_f32(s.losses)?;
        Ok(losses.chunks_exact(4).map(|l| (l[0], l[1])).collect())
    }

    /// The most likely next token `[rows]` of every row of the last scored batch.
    pub fn best(&mut self) -> Result<Vec<TokenId>> {
        let best = self.scoring().best;
        Ok(TokenId::of_words(self.device.read(best)?))
    }

    /// Keeps fewer candidates and temperatures of every row from now on than the session was built for.
    pub fn set_top_k(&mut self, k: usize, taus: &[f32]) {
        assert!(k > 0 && k <= self.uses.top_k && taus.len() <= self.uses.taus.len(), "{k} of {} candidates", self.uses.top_k);
        let list = self.scoring().top;
        let last = self.device.program().lists[list.0 as usize].1.len() - 1;
        let now: topk::Shape = self.device.program().lists[list.0 as usize].1[last].params.get();
        let mut padded = [1.0; 3];
        padded[..taus.len()].copy_from_slice(taus);
        self.device.set_params(list, last, &topk::Shape { k: k as u32, n_tau: taus.len() as u32, taus: padded, ..now });
        self.kept = (k, taus.len());
    }

    /// Top-K + Other of every row; `ids` and `mask` are `[windows, seq]`.
    pub fn top_k(&mut self, ids: &[TokenId], mask: &[u32]) -> Result<TopK> {
        self.feed(ids, mask)?;
        let (list, a, b, c) = {
            let s = self.scoring();
            (s.top, s.ids, s.logprobs, s.other)
        };
        self.device.run(list)?;
        let (rows, (k, taus)) = (ids.len(), self.kept);
        Ok(TopK {
            ids: TokenId::of_words(self.device.read_at(a, 0, rows * k)?),
            logprobs: self.device.read_f32_at(b, 0, rows * k)?,
            other: self.device.read_f32_at(c, 0, rows * (1 + taus))?,
        })
    }

    /// Logits `[rows, vocab]` (sessions built with `logits`). The copy of them that a session keeps is a buffer of its own:
    /// without `logits` they share the memory of other transient buffers.
    pub fn logits(&mut self, ids: &[TokenId], mask: &[u32]) -> Result<Vec<f32>> {
        self.feed(ids, mask)?;
        let s = self.scoring();
        let (list, buffer) = (s.values.expect("built with `logits`"), s.logits.expect("built with `logits`"));
        self.device.run(list)?;
        Ok(self.device.read_f32(buffer)?)
    }

    /// Logits `[vocab]` of the last row only (sessions built with `logits`).
    pub fn last_logits(&mut self, ids: &[TokenId], mask: &[u32]) -> Result<Vec<f32>> {
        self.feed(ids, mask)?;
        let s = self.scoring();
        let (list, buffer) = (s.values.expect("built with `logits`"), s.logits.expect("built with `logits`"));
        self.device.run(list)?;
        Ok(self.device.read_f32_at(buffer, (ids.len() - 1) * self.config.vocab, self.config.vocab)?)
    }

    fn decoding(&self) -> &Decode {
        self.decode.as_ref().expect("built with `decode`")
    }

    /// Slots, and the positions of each.
    pub fn slots(&self) -> (usize, usize) {
        self.decode.as_ref().map_or((0, 0), |d| (d.slots, d.kv_len))
    }

    /// Bytes of the keys and values of all slots.
    pub fn cache_bytes(&self) -> u64 {
        self.decode.as_ref().map_or(0, |d| 4 * 2 * (self.config.layers * d.slots * d.slot_words) as u64)
    }

    /// Writes every word of the keys and values of all slots, for measurements of memory.
    pub fn fill_cache(&mut self, mut word: impl FnMut() -> u32) -> Result<()> {
        let Some(d) = &self.decode else { return Ok(()) };
        let words = d.slots * d.slot_words;
        for buffer in &d.cache {
            self.device.write_with(*buffer, words, |_| word())?;
        }
        Ok(())
    }

    /// Windows that are scored together, and the tokens of each; none where nothing is scored.
    pub fn windows(&self) -> Option<(usize, usize)> {
        self.uses.score
    }

    /// Whether tokens can be drawn: only sessions built with `draws` choose by more than the largest logit.
    pub fn draws(&self) -> bool {
        self.uses.draws
    }

    /// Tokens of a prompt that are read together; 0: none, a prompt is one token.
    pub fn chunk(&self) -> usize {
        self.uses.prefill
    }

    /// The smallest row of slots that one pass takes and that holds these. A pass over fewer than it takes leaves some token of
    /// earlier at some position of the others.
    pub fn span(&self, slots: Range<usize>) -> Range<usize> {
        let d = self.decoding();
        let size = d.passes.iter().map(|p| p.slots).find(|n| *n >= slots.len()).unwrap_or(d.slots);
        let first = slots.start.min(d.slots - size);
        first..first + size
    }

    /// Feeds one token to each of the first slots at its position (`ids`, `pos` `[n]`) and gives the most likely next ones.
    pub fn step(&mut self, ids: &[TokenId], pos: &[u32]) -> Result<Vec<TokenId>> {
        self.greedy_step(0, ids, pos)
    }

    fn greedy_step(&mut self, first: usize, ids: &[TokenId], pos: &[u32]) -> Result<Vec<TokenId>> {
        self.run_pass(first, ids, pos, |pass| pass.greedy)?;
        self.chosen(ids.len())
    }

    /// Feeds one token to each of the slots from `first` on at its position, where a [`Self::span`] begins, and chooses the next
    /// ones `[n]` as their sequences say (`choices [n]`).
    pub fn step_with(&mut self, first: usize, ids: &[TokenId], pos: &[u32], choices: &[Choice<'_>]) -> Result<Vec<Next>> {
        if choices.iter().all(|c| c.sampling.is_greedy() && !c.tell) {
            return Ok(self.greedy_step(first, ids, pos)?.into_iter().map(|token| Next { token, logits: None }).collect());
        }
        let pass = self.run_pass(first, ids, pos, |pass| pass.draws.expect("built with `draws`").forward)?;
        let lists = self.decoding().passes[pass].draws.expect("built with `draws`");
        let told = self.adjust(choices)?;
        let uniform: Vec<f32> = choices.iter().map(|c| c.uniform).collect();
        let buffer = self.decoding().uniform;
        self.device.write_f32(buffer, &uniform)?;
        // One run for each way to choose: mostly there is one.
        let mut next = vec![TokenId::default(); ids.len()];
        let mut left: Vec<usize> = (0..ids.len()).collect();
        while let Some(one) = left.first() {
            let (temperature, top_p) = (choices[*one].sampling.temperature, choices[*one].sampling.top_p);
            let alike =
                |i: &usize| choices[*i].sampling.temperature == temperature && (temperature == 0.0 || choices[*i].sampling.top_p == top_p);
            let (same, others): (Vec<usize>, Vec<usize>) = left.iter().partition(|i| alike(i));
            if temperature == 0.0 {
                self.device.run(lists.argmax)?;
            } else {
                self.set_draw(lists.sample, temperature, top_p);
                self.device.run(lists.sample)?;
            }
            let chosen = self.chosen(ids.len())?;
            same.iter().for_each(|i| next[*i] = chosen[*i]);
            left = others;
        }
        Ok(next.into_iter().zip(told).map(|(token, logits)| Next { token, logits }).collect())
    }

    /// Runs a list of the smallest pass that has these slots; its place among the passes.
    fn run_pass(&mut self, first: usize, ids: &[TokenId], pos: &[u32], list: impl Fn(&Pass) -> ListId) -> Result<usize> {
        let d = self.decode.as_mut().expect("built with `decode`");
        let which = d.passes.iter().position(|p| p.slots >= ids.len()).expect("no more sequences than slots");
        let pass = &mut d.passes[which];
        assert!(first + pass.slots <= d.slots, "a pass over {} slots from slot {first} on, of {}", pass.slots, d.slots);
        if pass.first != first {
            pass.first = first;
            let at: Vec<(BufferId, usize)> = pass.windows.iter().map(|w| (*w, first * d.slot_words)).collect();
            for list in [pass.greedy].into_iter().chain(pass.draws.map(|d| d.forward)) {
                self.device.place(list, &at);
            }
        }
        let (list, ids_at, pos_at) = (list(pass), d.ids, d.pos);
        self.device.write(ids_at, TokenId::words(ids))?;
        self.device.write(pos_at, pos)?;
        self.device.run(list)?;
        Ok(which)
    }

    fn chosen(&mut self, n: usize) -> Result<Vec<TokenId>> {
        let chosen = self.decoding().chosen;
        Ok(TokenId::of_words(self.device.read_at(chosen, 0, n)?))
    }

    /// Changes the logits of the slots whose sampling asks for it; those that are to be told, as they were before.
    fn adjust(&mut self, choices: &[Choice<'_>]) -> Result<Vec<Option<Vec<f32>>>> {
        let (buffer, vocab) = (self.decoding().logits.expect("built with `draws`"), self.config.vocab);
        let mut told = vec![None; choices.len()];
        for (row, c) in choices.iter().enumerate() {
            let changes = !c.sampling.takes_logits_as_they_are();
            if !changes && !c.tell {
                continue;
            }
            let mut logits = self.device.read_f32_at(buffer, row * vocab, vocab)?;
            told[row] = c.tell.then(|| logits.clone());
            if changes {
                c.sampling.adjust(&mut logits, c.tokens, c.prompt);
                self.device.write_f32_at(buffer, row * vocab, &logits)?;
            }
        }
        Ok(told)
    }

    fn set_draw(&mut self, list: ListId, temperature: f32, top_p: f32) {
        let now: sample::Shape = self.device.program().lists[list.0 as usize].1[0].params.get();
        if (now.temperature, now.top_p) != (temperature, top_p) {
            self.device.set_params(list, 0, &sample::Shape { temperature, top_p, ..now });
        }
    }

    /// Reads the beginnings of sequences into the first slots, by chunks of [`Self::chunk`] tokens. One that is shorter than
    /// others repeats its last token: what that leaves at later positions is overwritten before it is read.
    pub fn read_starts(&mut self, starts: &[&[TokenId]]) -> Result<()> {
        let (n, chunk, (_, room)) = (self.decoding().slots, self.uses.prefill, self.slots());
        let longest = starts.iter().map(|s| s.len()).max().unwrap_or(0);
        let token = |i: usize, t: usize| starts.get(i).and_then(|s| s.get(t).or(s.last())).copied().unwrap_or_default();
        for first in (0..longest).step_by(chunk.max(1)) {
            let len = chunk.min(room - first);
            let ids: Vec<TokenId> = (0..n * len).map(|r| token(r / len, first + r % len)).collect();
            self.prefill(&ids, first, len)?;
        }
        Ok(())
    }

    /// Reads `part [n]` of a sequence, at most [`Self::chunk`] tokens from position `first` on, into one slot; the others keep
    /// what they hold.
    pub fn read_part(&mut self, slot: usize, first: usize, part: &[TokenId]) -> Result<()> {
        let d = self.decode.as_ref().expect("built with `decode`");
        let Some(one) = &d.prefill_one else { return self.prefill(part, first, part.len()).map(drop) };
        let at: Vec<(BufferId, usize)> = one.windows.iter().map(|w| (*w, slot * d.slot_words)).collect();
        self.device.place(one.read.list, &at);
        run_prefill(&mut self.device, &one.read, part, first, part.len(), d.kv_len)
    }

    /// Feeds `len` tokens (at most [`Self::chunk`]) to every slot from position `first` on, and chooses the next ones
    /// greedily. `ids [slots, len]`.
    pub fn prefill(&mut self, ids: &[TokenId], first: usize, len: usize) -> Result<Vec<TokenId>> {
        let d = self.decode.as_ref().expect("built with `decode`");
        let p = d.prefill.as_ref().expect("built with `prefill`");
        let slots = d.slots;
        run_prefill(&mut self.device, p, ids, first, len, d.kv_len)?;
        self.chosen(slots)
    }
}

/// Refuses sequences that a sliding window would cut.
pub(crate) fn within_window(config: &ModelConfig, positions: usize) -> Result<()> {
    match config.beyond_window(positions) {
        None => Ok(()),
        Some(window) => Err(Error::from(ShapeError::Window { positions, window }).help("take shorter sequences (`seq`, --context)")),
    }
}

/// Runs a prefill over `ids [sequences, len]` from position `first` on, in slots of `room` positions. A shorter chunk repeats
/// its last token: what that leaves at later positions of the cache, the last one at most, is overwritten before it is read.
fn run_prefill(device: &mut device::Session, p: &Prefill, ids: &[TokenId], first: usize, len: usize, room: usize) -> Result<()> {
    let (n, chunk) = (p.batch.sequences, p.batch.q_len);
    assert!(len <= chunk && first + len <= room, "{len} tokens from position {first} on in chunks of {chunk} and {room} positions");
    let at = |i: usize, t: usize| ids[i * len + t.min(len - 1)];
    let padded: Vec<TokenId> = (0..n * chunk).map(|r| at(r / chunk, r % chunk)).collect();
    let pos: Vec<u32> = (0..n * chunk).map(|r| (first + r % chunk).min(room - 1) as u32).collect();
    let rows: Vec<u32> = (0..n).map(|i| (i * chunk + len - 1) as u32).collect();
    device.write(p.batch.ids, TokenId::words(&padded))?;
    device.write(p.batch.pos, &pos)?;
    device.write(p.rows, &rows)?;
    Ok(device.run(p.list)?)
}
