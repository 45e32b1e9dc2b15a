//! Teacher-forced scoring: the rows of given tokens.

use std::sync::Arc;

use flow_engine::plugin::StageError;

use super::collection::CollectParams;
use super::method::{self, Method};
use crate::traces::{CandidateBytes, RawRow, TokenTable};
use flow_lm::infer::{Session, TopK, Uses};
use flow_lm::infer::{Window, score_batch};
use flow_lm::rng::Rng;
use flow_lm::tokenizer::{TokenId, Tokenizer};

/// What rows keep.
#[derive(Clone, Copy, Debug)]
pub struct Keep {
    /// Of the distribution.
    pub method: Method,
    /// Candidates of a row, at most.
    pub top_k: usize,
    /// Draws of a row (`sampled`).
    pub draws: usize,
    /// Temperatures of the stored tail.
    pub taus: usize,
    /// Windows scored together, and their length: those of the session.
    pub batch: usize,
    /// Tokens of a window.
    pub seq: usize,
}

/// A teacher that scores windows.
pub struct Scorer {
    lm: Session,
    rows: Rows,
    seed: u64,
}

/// Rows of traces from the Top-K of a model.
pub struct Rows {
    tokens: Arc<TokenTable>,
    /// Tokens that the tokenizer has: what pads the model's vocabulary beyond them is none.
    known: usize,
    keep: Keep,
    /// Temperatures of the stored tail.
    taus: Vec<f32>,
}

impl Keep {
    /// What a collection keeps of a model of `vocab` tokens that scores `batch` windows of `seq` together.
    pub fn of(p: &CollectParams, (vocab, seq): (usize, usize), tokenizer: &Tokenizer, batch: usize) -> Self {
        let top_k = match p.method {
            Method::TopK => p.top_k.min(vocab),
            Method::Sampled => p.draws.min(vocab),
            Method::Full => tokenizer.vocab_size(),
        };
        // Drawn tokens hold for τ = 1 only.
        let taus = if p.method == Method::Sampled { 0 } else { p.taus.len() };
        Self { method: p.method, top_k, draws: p.draws, taus, batch, seq }
    }

    /// What scoring needs of a session; `taus` are the temperatures of the tail.
    pub fn uses(&self, taus: &[f32]) -> Uses {
        let score = Some((self.batch, self.seq));
        match self.method {
            Method::TopK => Uses { score, top_k: self.top_k, taus: taus.to_vec(), ..Uses::default() },
            Method::Sampled | Method::Full => Uses { score, logits: true, ..Uses::default() },
        }
    }
}

impl Scorer {
    /// A teacher for scoring, in a session that was made for at least [`Keep::uses`]; `seed` is that of the draws.
    pub fn new(session: Session, tokenizer: &Tokenizer, keep: Keep, taus: &[f32], seed: u64) -> Self {
        let rows = Rows::new(tokenizer, session.config().vocab, keep, taus);
        Self { lm: session, rows, seed }
    }

    /// The session, for other uses of it.
    pub fn session(&mut self) -> &mut Session {
        &mut self.lm
    }

    /// Rows of every window (at most `keep.batch` of them): row `t` is the distribution that token `t` was drawn from.
    /// `keys` name the windows: what is drawn for one does not depend on the others.
    pub fn score(&mut self, windows: &[Window<'_>], keys: &[(i64, i32)]) -> Result<Vec<Vec<RawRow>>, StageError> {
        let keep = self.rows.keep;
        let b = score_batch(windows, keep.batch, keep.seq);
        if keep.method == Method::TopK {
            let top = self.lm.top_k(&b.ids, &b.mask)?;
            return Ok(windows.iter().enumerate().map(|(i, w)| self.rows.of(&top, i * keep.seq, w.targets)).collect());
        }
        let logits = self.lm.logits(&b.ids, &b.mask)?;
        let vocab = self.lm.config().vocab;
        let mut all = Vec::with_capacity(windows.len());
        for (i, (window, key)) in windows.iter().zip(keys).enumerate() {
            let mut rng = Rng::new(self.seed, &format!("draws of prompt {} sample {}", key.0, key.1));
            let row = |(t, token): (usize, &TokenId)| {
                let at = (i * keep.seq + t) * vocab;
                let p = method::softmax(&logits[at..at + self.rows.known]);
                let candidates = match keep.method {
                    Method::Sampled => method::sampled(&p, keep.draws, &mut rng),
                    _ => method::full(&p),
                };
                method::whole_row(&candidates, *token, keep.taus, &self.rows.tokens)
            };
            all.push(window.targets.iter().enumerate().map(row).collect());
        }
        Ok(all)
    }
}

impl Rows {
    /// For a model of `vocab` tokens; `taus` are the temperatures of the tail.
    pub fn new(tokenizer: &Tokenizer, vocab: usize, keep: Keep, taus: &[f32]) -> Self {
        let (tokens, known) = (Arc::new(table(tokenizer, vocab)), tokenizer.vocab_size());
        Self { tokens, known, keep, taus: taus[..keep.taus].to_vec() }
    }

    /// Rows of tokens whose distributions begin at row `first`.
    pub fn of(&self, top: &TopK, first: usize, tokens: &[TokenId]) -> Vec<RawRow> {
        tokens.iter().enumerate().map(|(t, token)| self.top_row(top, first + t, *token)).collect()
    }

    fn top_row(&self, top: &TopK, r: usize, token: TokenId) -> RawRow {
        let (k, width) = (self.keep.top_k, 1 + self.keep.taus);
        let (ids, logprobs) = (&top.ids[r * k..(r + 1) * k], &top.logprobs[r * k..(r + 1) * k]);
        let other = &top.other[r * width..(r + 1) * width];
        // What pads the vocabulary is no token: its mass is Other's.
        let (known, padding): (Vec<usize>, Vec<usize>) = (0..k).partition(|i| ids[*i].index() < self.known);
        let other =
            |i: usize, tau: f32| if padding.is_empty() { other[i] } else { joined(other[i], padding.iter().map(|p| logprobs[*p] / tau)) };
        RawRow {
            sample_id: token.signed(),
            sample_bytes: self.tokens.get(token.signed()).unwrap_or_default().to_vec(),
            topk_ids: known.iter().map(|i| ids[*i].signed()).collect(),
            topk_bytes: CandidateBytes::Table(self.tokens.clone()),
            topk_logprobs: known.iter().map(|i| logprobs[*i].min(0.0)).collect(),
            other_logprob: other(0, 1.0).min(0.0),
            other_lse: (self.keep.taus > 0).then(|| self.taus.iter().enumerate().map(|(i, tau)| other(1 + i, *tau)).collect()),
        }
    }
}

/// The log-sum-exp of a tail and of what joins it.
fn joined(tail: f32, others: impl Iterator<Item = f32>) -> f32 {
    others.map(f64::from).fold(f64::from(tail).exp(), |sum, l| sum + l.exp()).ln() as f32
}

/// Bytes of every token; none for one that ends a text, and for one that only pads the model's vocabulary.
fn table(tokenizer: &Tokenizer, vocab: usize) -> TokenTable {
    let mut table = TokenTable::default();
    (0..vocab as u32).map(TokenId).for_each(|id| table.insert(id.0, if tokenizer.is_end(id) { b"" } else { tokenizer.token_bytes(id) }));
    table
}
