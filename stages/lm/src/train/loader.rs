//! Where training windows come from: one pool that stays in memory, or shards of traces that are read as they are needed.
//!
//! An epoch visits the shards in a seeded order, [`POOL_SHARDS`] of them at a time, and the windows of such a pool in a
//! seeded order too: traces that fit into one pool are shuffled as a whole, larger ones take no more memory.

use std::ops::Range;

use flow_engine::plugin::StageError;

use super::distillation::Distillation;
use super::windows::{LossWeights, Tails, Windows};
use crate::model::trainer::MicroBatch;
use crate::rng::Rng;
use crate::tokenizer::Tokenizer;
use crate::traces::{ProjectedRow, TraceReader};

/// Shards whose windows are in memory at once (a shard holds some 262,144 rows).
const POOL_SHARDS: usize = 4;

/// Windows in the seeded order of their epochs.
pub struct Loader<'a> {
    source: Source<'a>,
    seed: u64,
    /// Windows of an epoch.
    windows: u64,
    top_k: usize,
    totals: Totals,
    pool: Option<Pool>,
}

/// Sizes of everything that an epoch visits.
#[derive(Clone, Copy, Debug, Default)]
pub struct Totals {
    /// Targets in all windows.
    pub targets: u64,
    /// Tokens at the ends of sequences that are in no window.
    pub left_out: u64,
    /// What rows hold of their tails at τ.
    pub tails: Tails,
}

enum Source<'a> {
    /// The one pool that there is.
    Memory,
    Traces(Box<Traces<'a>>),
}

struct Traces<'a> {
    reader: TraceReader<ProjectedRow>,
    tokenizer: &'a Tokenizer,
    seq: usize,
    distillation: Distillation,
    shards: Vec<Shard>,
}

/// A shard of traces: its sequences and how many windows they give.
#[derive(Clone, Debug, Default)]
struct Shard {
    sequences: Range<usize>,
    windows: u64,
}

/// What is in memory: windows `first ..` of an epoch's order.
struct Pool {
    epoch: u64,
    first: u64,
    windows: Windows,
    order: Vec<u32>,
}

impl<'a> Loader<'a> {
    /// Windows over a text for cross-entropy.
    pub fn of_text(tokens: &[u32], seq: usize, bos: u32, seed: u64) -> Self {
        let windows = Windows::of_text(tokens, seq, bos);
        let totals = Totals { targets: windows.targets(), ..Totals::default() };
        let (count, top_k) = (windows.len() as u64, windows.top_k());
        let pool = Pool { epoch: u64::MAX, first: 0, windows, order: Vec::new() };
        Self { source: Source::Memory, seed, windows: count, top_k, totals, pool: Some(pool) }
    }

    /// Windows over projected traces; reads them once to know their number.
    pub fn of_traces(
        reader: TraceReader<ProjectedRow>,
        tokenizer: &'a Tokenizer,
        seq: usize,
        distillation: Distillation,
        seed: u64,
    ) -> Result<Self, StageError> {
        if reader.meta().vocab != tokenizer.vocab_size() {
            return Err(StageError::new(format!(
                "the traces were projected onto a vocabulary of {}, the student's tokenizer has {}",
                reader.meta().vocab,
                tokenizer.vocab_size()
            ))
            .help("give `kd.project` and `train.bitnet` the same `tokenizer`; a program of its own writes `vocab` into meta.json"));
        }
        let mut counting = Windows::of_rows(seq, tokenizer.bos(), &reader, distillation);
        let mut shards = vec![Shard::default(); reader.shards()];
        let mut totals = Totals::default();
        let mut sequences = reader.sequences()?;
        let mut n = 0;
        while let Some(item) = sequences.next() {
            let (sequence, rows) = item?;
            if let Some(shard) = shards.get_mut(sequences.shard()) {
                if shard.sequences.is_empty() {
                    shard.sequences = n..n;
                }
                n += 1;
                shard.sequences.end = n;
                let tails = counting.sequence(&sequence, &rows);
                totals.tails.rows += tails.rows;
                totals.tails.exact += tails.exact;
                shard.windows += counting.len() as u64;
                totals.targets += counting.targets();
                totals.left_out += counting.left_out();
                counting.clear();
            }
        }
        let windows = shards.iter().map(|s| s.windows).sum();
        let top_k = counting.top_k();
        Ok(Self {
            source: Source::Traces(Box::new(Traces { reader, tokenizer, seq, distillation, shards })),
            seed,
            windows,
            top_k,
            totals,
            pool: None,
        })
    }

    /// Windows of an epoch.
    pub fn len(&self) -> u64 {
        self.windows
    }
    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.windows == 0
    }
    /// Buckets of a distillation row.
    pub fn top_k(&self) -> usize {
        self.top_k
    }
    /// Sizes of an epoch.
    pub fn totals(&self) -> Totals {
        self.totals
    }

    /// The micro-batches of a step from window `cursor` on, of `batch` windows each; weights sum to one over all their valid
    /// rows. Gives the number of targets too.
    pub fn step(
        &mut self,
        cursor: u64,
        batch: usize,
        accumulate: usize,
        weights: &LossWeights,
    ) -> Result<(Vec<MicroBatch>, u64), StageError> {
        let mut micros = Vec::with_capacity(accumulate);
        for first in (cursor..).step_by(batch).take(accumulate) {
            let mut m = MicroBatch::default();
            for i in first..first + batch as u64 {
                let place = i % self.windows;
                let pool = self.pool_of(i)?;
                let at = (place - pool.first) as usize;
                pool.windows.append(pool.order[at] as usize, &mut m);
            }
            micros.push(m);
        }
        let targets = weights.weigh(&mut micros);
        Ok((micros, targets))
    }

    /// The pool that holds window `cursor`, read where it is not the one in memory.
    fn pool_of(&mut self, cursor: u64) -> Result<&Pool, StageError> {
        let (epoch, at) = (cursor / self.windows, cursor % self.windows);
        let holds = |p: &Pool| p.epoch == epoch && (p.first..p.first + p.windows.len() as u64).contains(&at);
        let pool = match self.pool.take() {
            Some(pool) if holds(&pool) => pool,
            old => self.read(epoch, at, old)?,
        };
        Ok(self.pool.insert(pool))
    }

    fn read(&self, epoch: u64, at: u64, old: Option<Pool>) -> Result<Pool, StageError> {
        let (first, part, windows) = match &self.source {
            Source::Memory => (0, 0, old.map(|p| p.windows).unwrap_or_default()),
            // One pool is all there is: only its order changes.
            Source::Traces(t) if t.shards.len() <= POOL_SHARDS && old.is_some() => (0, 0, old.map(|p| p.windows).unwrap_or_default()),
            Source::Traces(traces) => {
                // Memory of the old pool is free before the new one is read.
                drop(old);
                traces.pool(self.seed, epoch, at)?
            }
        };
        let name = if part == 0 { format!("order of epoch {epoch}") } else { format!("order of epoch {epoch}, pool {part}") };
        let order = Rng::new(self.seed, &name).permutation(windows.len());
        Ok(Pool { epoch, first, windows, order })
    }
}

impl Traces<'_> {
    /// The pool that holds window `at` of an epoch: its first window, its place among the pools, and its windows.
    fn pool(&self, seed: u64, epoch: u64, at: u64) -> Result<(u64, usize, Windows), StageError> {
        let order: Vec<u32> = match self.shards.len() {
            n if n <= POOL_SHARDS => (0..n as u32).collect(),
            n => Rng::new(seed, &format!("shards of epoch {epoch}")).permutation(n),
        };
        let count = |pool: &[u32]| pool.iter().map(|s| self.shards[*s as usize].windows).sum::<u64>();
        let mut first = 0;
        for (part, pool) in order.chunks(POOL_SHARDS).enumerate() {
            if at >= first + count(pool) {
                first += count(pool);
                continue;
            }
            let mut windows = Windows::of_rows(self.seq, self.tokenizer.bos(), &self.reader, self.distillation);
            for shard in pool {
                for item in self.reader.part(*shard as usize, self.shards[*shard as usize].sequences.clone())? {
                    let (sequence, rows) = item?;
                    windows.sequence(&sequence, &rows);
                }
            }
            return Ok((first, part, windows));
        }
        Err(StageError::new(format!("the traces changed while they were read: window {at} of epoch {epoch} is gone")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_epoch_visits_every_token_once_and_the_next_in_another_order() {
        let tokens: Vec<u32> = (10..90).collect();
        let mut loader = Loader::of_text(&tokens, 8, 0, 3);
        let weights = LossWeights { kd: 0.0, ce: 1.0, format: 0.0 };
        let mut epoch = |from: u64| -> Vec<i32> {
            (from..from + 10).flat_map(|c| loader.step(c, 1, 1, &weights).expect("in memory").0.remove(0).labels).collect()
        };
        let (first, second) = (epoch(0), epoch(10));
        assert_ne!(first, second);
        for mut labels in [first, second] {
            labels.sort_unstable();
            assert_eq!(labels, (10..90).collect::<Vec<_>>());
        }
    }
}
