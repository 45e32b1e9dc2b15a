//! Training windows: BOS and the tokens before each target, padded at the end, with distillation rows where there are some.
//!
//! Position `t` of a window holds token `t − 1` of the stream (BOS at 0) and predicts token `t`: the row that a trace keeps
//! for token `t` is the target of that position, nothing shifts twice. Padding has label −1 and weight 0.

use super::batch::{MicroBatch, PADDING};
use crate::tokenizer::TokenId;

/// No distillation row at this position.
const NONE: u32 = u32::MAX;

/// Windows of one length, and the rows that they point into.
#[derive(Default)]
pub struct Windows {
    seq: usize,
    bos: TokenId,
    top_k: usize,
    /// `[windows, seq]` targets: token ids, −1 for none.
    labels: Vec<i32>,
    /// `[windows, seq]` inputs.
    inputs: Vec<TokenId>,
    /// `[windows, seq]` index of the row, or [`NONE`].
    rows: Vec<u32>,
    /// `[kept rows, top_k]`.
    ids: Vec<i32>,
    /// `[kept rows, top_k]`.
    targets: Vec<f32>,
    /// Other's log-mass at τ and the row's KD weight `[kept rows]`.
    other: Vec<(f32, f32)>,
    /// `[kept rows]`.
    structural: Vec<bool>,
    left_out: u64,
    /// A teacher in the loop says something of every target.
    taught: bool,
}

/// A distillation row that windows hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KeptRow(u32);

/// A token of a sequence.
#[derive(Clone, Copy, Debug)]
pub struct Token {
    /// Its id.
    pub id: TokenId,
    /// Whether it is learned; a prompt's tokens are only read.
    pub target: bool,
    /// What a teacher says of its place.
    pub row: Option<KeptRow>,
}

/// What a teacher says of one place, at the temperature of the loss.
#[derive(Clone, Copy, Debug)]
pub struct Said<'r> {
    /// Candidates, at most as many as the windows' `top_k`.
    pub ids: &'r [i32],
    /// Log-mass of everything else.
    pub other: f32,
    /// Weight of the KL here; 0 for a row that trains by cross-entropy only.
    pub weight: f32,
    /// Whether its token is structure.
    pub structural: bool,
}

impl Windows {
    /// No windows yet; their rows have `top_k` candidates.
    pub fn new(seq: usize, bos: TokenId, top_k: usize) -> Self {
        Self { seq, bos, top_k, ..Self::default() }
    }

    /// Windows over a text for cross-entropy; every token is a target once.
    pub fn of_text(tokens: &[TokenId], seq: usize, bos: TokenId) -> Self {
        let mut w = Self::new(seq, bos, 0);
        for chunk in tokens.chunks(seq) {
            w.push(chunk.iter().map(|t| (*t, true, NONE)));
        }
        w
    }

    /// Marks every target as one of which a teacher says something while it is trained on.
    #[must_use]
    pub fn taught(self) -> Self {
        Self { taught: true, ..self }
    }

    /// Adds the windows of a sequence, cut every `seq` tokens from its beginning. In the first one a target sees what the
    /// teacher saw before it; a later one begins with BOS and sees none of the earlier tokens. What a sequence has beyond its last whole window
    /// is left out where it is shorter than a quarter window.
    pub fn sequence(&mut self, tokens: &[Token]) {
        let seq = self.seq;
        for (i, chunk) in tokens.chunks(seq).enumerate() {
            if i > 0 && chunk.len() < seq / 4 {
                self.left_out += chunk.len() as u64;
            } else if chunk.iter().any(|t| t.target) {
                self.push(chunk.iter().map(|t| (t.id, t.target, t.row.map_or(NONE, |r| r.0))));
            }
        }
    }

    /// Forgets all windows and keeps their memory.
    pub fn clear(&mut self) {
        self.labels.clear();
        self.inputs.clear();
        self.rows.clear();
        self.ids.clear();
        self.targets.clear();
        self.other.clear();
        self.structural.clear();
        self.left_out = 0;
    }

    /// Keeps a row with the log-probabilities of its candidates.
    pub fn keep(&mut self, said: Said<'_>, logprobs: impl Iterator<Item = f32>) -> KeptRow {
        // Readers have checked that no row is longer.
        let absent = self.top_k - said.ids.len();
        self.ids.extend(said.ids);
        self.ids.extend(std::iter::repeat_n(-1, absent));
        self.targets.extend(logprobs);
        self.targets.extend(std::iter::repeat_n(0.0, absent));
        self.other.push((said.other, said.weight));
        self.structural.push(said.structural);
        KeptRow(self.other.len() as u32 - 1)
    }

    fn push(&mut self, tokens: impl Iterator<Item = (TokenId, bool, u32)>) {
        let mut previous = self.bos;
        let start = self.labels.len();
        for (token, target, row) in tokens {
            self.inputs.push(previous);
            self.labels.push(if target { token.signed() } else { -1 });
            self.rows.push(row);
            previous = token;
        }
        let missing = self.seq - (self.labels.len() - start);
        self.inputs.extend(std::iter::repeat_n(self.bos, missing));
        self.labels.extend(std::iter::repeat_n(PADDING, missing));
        self.rows.extend(std::iter::repeat_n(NONE, missing));
    }

    /// Number of windows.
    pub fn len(&self) -> usize {
        self.labels.len() / self.seq
    }
    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.labels.is_empty()
    }
    /// Targets in all windows.
    pub fn targets(&self) -> u64 {
        self.labels.iter().filter(|l| **l >= 0).count() as u64
    }
    /// Tokens at the ends of sequences that are in no window.
    pub fn left_out(&self) -> u64 {
        self.left_out
    }
    /// Buckets of a distillation row.
    pub fn top_k(&self) -> usize {
        self.top_k
    }

    /// Appends a window to a batch whose weights are not set yet ([`super::LossWeights::weigh`]).
    pub fn append(&self, window: usize, m: &mut MicroBatch) {
        let at = window * self.seq..(window + 1) * self.seq;
        m.ids.extend(&self.inputs[at.clone()]);
        m.labels.extend(&self.labels[at.clone()]);
        for row in &self.rows[at] {
            self.row(*row, m);
        }
    }

    /// Appends a position's buckets; until [`super::LossWeights::weigh`] `meta` holds (other, KD weight, structural, 0).
    fn row(&self, row: u32, m: &mut MicroBatch) {
        if row == NONE {
            m.topk_ids.extend(std::iter::repeat_n(-1, self.top_k));
            m.targets.extend(std::iter::repeat_n(0.0, self.top_k));
            m.meta.push([0.0, f32::from(u8::from(self.taught)), 0.0, 0.0]);
            return;
        }
        let row = row as usize;
        m.topk_ids.extend(&self.ids[row * self.top_k..(row + 1) * self.top_k]);
        m.targets.extend(&self.targets[row * self.top_k..(row + 1) * self.top_k]);
        let (other, kd) = self.other[row];
        m.meta.push([other, kd, f32::from(u8::from(self.structural[row])), 0.0]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::train::LossWeights;

    #[test]
    fn every_token_is_a_target_once_and_padding_has_no_weight() {
        let tokens: Vec<TokenId> = (10..33).map(TokenId).collect();
        let w = Windows::of_text(&tokens, 8, TokenId(0));
        assert_eq!((w.len(), w.targets()), (3, 23));
        let weights = LossWeights { kd: 0.0, ce: 1.0, format: 0.0 };
        let mut m = MicroBatch::default();
        (0..3).for_each(|i| w.append(i, &mut m));
        let seen = weights.weigh(std::slice::from_mut(&mut m));
        assert_eq!(seen, 23);
        let mut targets: Vec<i32> = m.labels.iter().copied().filter(|l| *l >= 0).collect();
        targets.sort_unstable();
        assert_eq!(targets, (10..33).collect::<Vec<_>>());
        assert!((m.meta.iter().map(|x| x[2]).sum::<f32>() - 1.0).abs() < 1e-5);
        for (i, l) in m.labels.iter().enumerate() {
            assert_eq!(m.mask[i] == 1, *l >= 0);
            assert_eq!(m.meta[i][2] > 0.0, *l >= 0);
            if i % 8 == 0 {
                assert_eq!(m.ids[i], TokenId(0), "a window begins with BOS");
            } else if *l >= 0 {
                assert_eq!(m.ids[i].signed(), m.labels[i - 1], "position t holds the target of t - 1");
            }
        }
    }
}
