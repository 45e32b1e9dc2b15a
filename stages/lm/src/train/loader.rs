//! The order in which windows are trained on: one pool that stays in memory, or shards that are read as they are needed.
//!
//! An epoch visits the shards in a seeded order, [`POOL_SHARDS`] of them at a time, and the windows of such a pool in a
//! seeded order too: what fits into one pool is shuffled as a whole, more takes no more memory.

use super::batch::{LossWeights, MicroBatch};
use super::windows::Windows;
use crate::error::{Error, TrainingError};
use crate::rng::Rng;

/// Shards whose windows are in memory at once.
const POOL_SHARDS: usize = 4;

/// Windows that do not all stay in memory.
pub trait Shards<E> {
    /// Windows of each shard.
    fn windows(&self) -> &[u64];
    /// Windows of some shards, in this order.
    fn read(&self, shards: &[u32]) -> Result<Windows, E>;
}

/// Windows in the seeded order of their epochs.
pub struct Loader<'a, E = Error> {
    /// Where pools come from; none where the one that there is stays.
    shards: Option<Box<dyn Shards<E> + 'a>>,
    seed: u64,
    /// Windows of an epoch.
    windows: u64,
    top_k: usize,
    pool: Option<Pool>,
}

/// What is in memory: windows `first ..` of an epoch's order.
struct Pool {
    epoch: u64,
    first: u64,
    windows: Windows,
    order: Vec<u32>,
}

impl<'a, E: From<Error>> Loader<'a, E> {
    /// Windows that stay in memory, such as [`Windows::of_text`].
    pub fn of(windows: Windows, seed: u64) -> Self {
        let (count, top_k) = (windows.len() as u64, windows.top_k());
        let pool = Pool { epoch: u64::MAX, first: 0, windows, order: Vec::new() };
        Self { shards: None, seed, windows: count, top_k, pool: Some(pool) }
    }

    /// Windows of shards, whose rows have `top_k` candidates.
    pub fn of_shards(shards: impl Shards<E> + 'a, top_k: usize, seed: u64) -> Self {
        let windows = shards.windows().iter().sum();
        Self { shards: Some(Box::new(shards)), seed, windows, top_k, pool: None }
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

    /// The micro-batches of a step from window `cursor` on, of `batch` windows each, weighed over all of them
    /// ([`LossWeights::weigh`]). Gives the number of targets too.
    pub fn step(&mut self, cursor: u64, batch: usize, accumulate: usize, weights: &LossWeights) -> Result<(Vec<MicroBatch>, u64), E> {
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
    fn pool_of(&mut self, cursor: u64) -> Result<&Pool, E> {
        let (epoch, at) = (cursor / self.windows, cursor % self.windows);
        let holds = |p: &Pool| p.epoch == epoch && (p.first..p.first + p.windows.len() as u64).contains(&at);
        let pool = match self.pool.take() {
            Some(pool) if holds(&pool) => pool,
            old => self.read(epoch, at, old)?,
        };
        Ok(self.pool.insert(pool))
    }

    fn read(&self, epoch: u64, at: u64, old: Option<Pool>) -> Result<Pool, E> {
        let (first, part, windows) = match &self.shards {
            None => (0, 0, old.map(|p| p.windows).unwrap_or_default()),
            // One pool is all there is: only its order changes.
            Some(s) if s.windows().len() <= POOL_SHARDS && old.is_some() => (0, 0, old.map(|p| p.windows).unwrap_or_default()),
            Some(shards) => {
                // Memory of the old pool is free before the new one is read.
                drop(old);
                pool(&**shards, self.seed, epoch, at)?
            }
        };
        let name = if part == 0 { format!("order of epoch {epoch}") } else { format!("order of epoch {epoch}, pool {part}") };
        let order = Rng::new(self.seed, &name).permutation(windows.len());
        Ok(Pool { epoch, first, windows, order })
    }
}

/// The pool that holds window `at` of an epoch: its first window, its place among the pools, and its windows.
fn pool<E: From<Error>>(shards: &dyn Shards<E>, seed: u64, epoch: u64, at: u64) -> Result<(u64, usize, Windows), E> {
    let counts = shards.windows();
    let order: Vec<u32> = match counts.len() {
        n if n <= POOL_SHARDS => (0..n as u32).collect(),
        n => Rng::new(seed, &format!("shards of epoch {epoch}")).permutation(n),
    };
    let count = |pool: &[u32]| pool.iter().map(|s| counts[*s as usize]).sum::<u64>();
    let mut first = 0;
    for (part, pool) in order.chunks(POOL_SHARDS).enumerate() {
        if at < first + count(pool) {
            return Ok((first, part, shards.read(pool)?));
        }
        first += count(pool);
    }
    Err(Error::from(TrainingError::Changed { window: at, epoch }).into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tokenizer::TokenId;

    #[test]
    fn an_epoch_visits_every_token_once_and_the_next_in_another_order() {
        let tokens: Vec<TokenId> = (10..90).map(TokenId).collect();
        let mut loader = Loader::<Error>::of(Windows::of_text(&tokens, 8, TokenId(0)), 3);
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
