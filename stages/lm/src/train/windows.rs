//! Training windows: BOS and the tokens before each target, padded at the end, with distillation rows where there are some.
//!
//! Position `t` of a window holds token `t − 1` of the stream (BOS at 0) and predicts token `t`: the row that a trace keeps
//! for token `t` is the target of that position, nothing shifts twice. Padding has label −1 and weight 0.

use super::distillation::Distillation;
use crate::model::trainer::MicroBatch;
use crate::traces::{ProjectedRow, SequenceRow, Source, TraceReader};

/// No distillation row at this position.
const NONE: u32 = u32::MAX;
/// Label of padding, which is not even a key of attention.
const PADDING: i32 = -2;

/// Windows of one length, and the rows that they point into.
#[derive(Default)]
pub struct Windows {
    seq: usize,
    bos: u32,
    top_k: usize,
    /// How rows are tempered when they are stored; windows over a text have none.
    distillation: Option<Distillation>,
    /// `[windows, seq]` targets: token ids, −1 for none.
    labels: Vec<i32>,
    /// `[windows, seq]` inputs.
    inputs: Vec<u32>,
    /// `[windows, seq]` index of the row, or [`NONE`].
    rows: Vec<u32>,
    ids: Vec<i32>,
    targets: Vec<f32>,
    /// Other's log-mass at τ and the row's KD weight.
    other: Vec<(f32, f32)>,
    structural: Vec<bool>,
    left_out: u64,
}

/// Weights of the loss's parts.
#[derive(Clone, Copy, Debug)]
pub struct LossWeights {
    /// Weight of the KL, with what its temperature adds ([`super::distillation::KdScale`]).
    pub kd: f32,
    /// Weight of the cross-entropy.
    pub ce: f32,
    /// Weight of the format loss.
    pub format: f32,
}

/// Rows that train by KL, and those of them whose tail at τ is exact.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tails {
    /// Rows that train by KL.
    pub rows: u64,
    /// Those whose tail is exact.
    pub exact: u64,
}

impl Tails {
    /// Their share; 1 where no row trains by KL.
    pub fn share(&self) -> f64 {
        if self.rows == 0 { 1.0 } else { self.exact as f64 / self.rows as f64 }
    }
}

impl Windows {
    fn empty(seq: usize, bos: u32, top_k: usize) -> Self {
        Self { seq, bos, top_k, ..Self::default() }
    }

    /// Windows over a text for cross-entropy; every token is a target once.
    pub fn of_text(tokens: &[u32], seq: usize, bos: u32) -> Self {
        let mut w = Self::empty(seq, bos, 0);
        for chunk in tokens.chunks(seq) {
            w.push(chunk.iter().map(|t| (*t, true, NONE)));
        }
        w
    }

    /// No windows yet, of rows of these traces.
    pub fn of_rows(seq: usize, bos: u32, reader: &TraceReader<ProjectedRow>, distillation: Distillation) -> Self {
        Self { distillation: Some(distillation), ..Self::empty(seq, bos, reader.meta().top_k.max(1)) }
    }

    /// Adds the windows of a sequence; what its rows hold of their tails. They begin where the teacher's began, so that
    /// student and teacher see the same context; a prompt's tokens are no targets. What a sequence has beyond its last
    /// window is left out where it is shorter than a quarter window.
    pub fn sequence(&mut self, sequence: &SequenceRow, rows: &[ProjectedRow]) -> Tails {
        let mut tokens: Vec<(u32, bool, u32)> = Vec::with_capacity(rows.len());
        if sequence.source != Source::Text {
            tokens.extend(sequence.context_ids.iter().flatten().map(|id| (*id as u32, false, NONE)));
        }
        let mut tails = Tails::default();
        for row in rows {
            let exact = self.keep(row);
            // A quarantined row has no tail to be exact about.
            if row.kd_weight > 0.0 {
                tails.rows += 1;
                tails.exact += u64::from(exact);
            }
            tokens.push((row.sample_id as u32, true, self.other.len() as u32 - 1));
        }
        let seq = self.seq;
        for (i, chunk) in tokens.chunks(seq).enumerate() {
            if i > 0 && chunk.len() < seq / 4 {
                self.left_out += chunk.len() as u64;
            } else if chunk.iter().any(|t| t.1) {
                self.push(chunk.iter().copied());
            }
        }
        tails
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

    /// Stores a row, tempered; whether its tail is exact.
    fn keep(&mut self, row: &ProjectedRow) -> bool {
        let Some(distillation) = self.distillation else { return false };
        // No row is longer than `top_k`: the reader checked it.
        let absent = self.top_k - row.topk_ids.len();
        self.ids.extend(&row.topk_ids);
        self.ids.extend(std::iter::repeat_n(-1, absent));
        self.targets.extend(distillation.candidates(row));
        self.targets.extend(std::iter::repeat_n(0.0, absent));
        let tail = distillation.tail(row);
        self.other.push((tail.lse, row.kd_weight));
        self.structural.push(row.is_struct);
        tail.exact
    }

    fn push(&mut self, tokens: impl Iterator<Item = (u32, bool, u32)>) {
        let mut previous = self.bos;
        let start = self.labels.len();
        for (token, target, row) in tokens {
            self.inputs.push(previous);
            self.labels.push(if target { token as i32 } else { -1 });
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

    /// Appends a window to a batch whose weights are not set yet ([`LossWeights::weigh`]).
    pub fn append(&self, window: usize, m: &mut MicroBatch) {
        let at = window * self.seq..(window + 1) * self.seq;
        m.ids.extend(&self.inputs[at.clone()]);
        m.labels.extend(&self.labels[at.clone()]);
        for row in &self.rows[at] {
            self.row(*row, m);
        }
    }

    /// Appends a position's buckets; until [`LossWeights::weigh`] `meta` holds (other, KD weight, structural, 0).
    fn row(&self, row: u32, m: &mut MicroBatch) {
        if row == NONE {
            m.topk_ids.extend(std::iter::repeat_n(-1, self.top_k));
            m.targets.extend(std::iter::repeat_n(0.0, self.top_k));
            m.meta.push([0.0; 4]);
            return;
        }
        let row = row as usize;
        m.topk_ids.extend(&self.ids[row * self.top_k..(row + 1) * self.top_k]);
        m.targets.extend(&self.targets[row * self.top_k..(row + 1) * self.top_k]);
        let (other, kd) = self.other[row];
        m.meta.push([other, kd, f32::from(u8::from(self.structural[row])), 0.0]);
    }
}

impl LossWeights {
    /// Turns the marks of a step's micro-batches into weights that sum to one over the valid rows of all of them; gives the
    /// number of targets. A step is the same however it is cut into micro-batches.
    pub fn weigh(&self, step: &mut [MicroBatch]) -> u64 {
        let valid = |l: &i32| *l >= 0;
        let of = |m: &MicroBatch, f: &dyn Fn(&[f32; 4]) -> bool| m.labels.iter().zip(&m.meta).filter(|(l, x)| valid(l) && f(x)).count();
        let count = |f: &dyn Fn(&[f32; 4]) -> bool| step.iter().map(|m| of(m, f)).sum::<usize>();
        let (n, n_kd, n_format) = (count(&|_| true), count(&|x| x[1] > 0.0), count(&|x| x[2] > 0.0));
        for m in step {
            for (l, x) in m.labels.iter().zip(&mut m.meta) {
                let [other, kd, structural, _] = *x;
                *x = if valid(l) {
                    [
                        other,
                        if kd > 0.0 { self.kd * kd / n_kd as f32 } else { 0.0 },
                        self.ce / n as f32,
                        if structural > 0.0 { self.format / n_format as f32 } else { 0.0 },
                    ]
                } else {
                    [0.0; 4]
                };
            }
            m.mask = m.labels.iter().map(|l| u32::from(*l != PADDING)).collect();
            m.labels.iter_mut().for_each(|l| *l = (*l).max(-1));
        }
        n as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_token_is_a_target_once_and_padding_has_no_weight() {
        let tokens: Vec<u32> = (10..33).collect();
        let w = Windows::of_text(&tokens, 8, 0);
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
                assert_eq!(m.ids[i], 0, "a window begins with BOS");
            } else if *l >= 0 {
                assert_eq!(m.ids[i] as i32, m.labels[i - 1], "position t holds the target of t - 1");
            }
        }
    }
}
