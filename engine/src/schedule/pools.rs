//! Tokens: what stages hold while they run.

use std::collections::{BTreeMap, HashMap};

use crate::plan::{PlannedStage, StageId};
use crate::run::options::RunOptions;

/// Tokens of each pool.
pub(super) type Tokens = BTreeMap<String, u64>;

/// The pools of a run.
pub(super) struct Pools {
    free: Tokens,
    capacity: Tokens,
    held: HashMap<StageId, Tokens>,
}

impl Pools {
    pub fn new(options: &RunOptions) -> Self {
        let mut capacity = options.pools.clone();
        capacity.insert("cpu".into(), options.threads.max(1) as u64);
        capacity.entry("gpu".into()).or_insert(1);
        Self { free: capacity.clone(), capacity, held: HashMap::new() }
    }

    /// What a stage holds while it runs, never more than there is.
    pub fn needed(&mut self, stage: &PlannedStage) -> Tokens {
        let mut tokens = stage.resources.clone();
        let cpu = self.capacity.get("cpu").copied().unwrap_or(1);
        tokens.entry("cpu".into()).or_insert(if stage.kind.heavy() { cpu } else { 1 });
        for (pool, n) in &mut tokens {
            // A pool that nobody sized admits whatever one stage asks for, one such stage at a time.
            let capacity = *self.capacity.entry(pool.clone()).or_insert(*n);
            self.free.entry(pool.clone()).or_insert(capacity);
            *n = (*n).min(capacity);
        }
        tokens
    }

    /// Whether so many tokens are free.
    pub fn have(&self, tokens: &Tokens) -> bool {
        tokens.iter().all(|(pool, n)| self.free.get(pool).is_some_and(|free| free >= n))
    }

    /// Gives a stage tokens that are free.
    pub fn take(&mut self, id: StageId, tokens: Tokens) {
        for (pool, n) in &tokens {
            if let Some(free) = self.free.get_mut(pool) {
                *free -= n;
            }
        }
        self.held.insert(id, tokens);
    }

    /// Takes back what a stage holds.
    pub fn give_back(&mut self, id: StageId) {
        for (pool, n) in self.held.remove(&id).unwrap_or_default() {
            if let Some(free) = self.free.get_mut(&pool) {
                *free += n;
            }
        }
    }
}
