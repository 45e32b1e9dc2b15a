//! Executions that wait for tokens.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, HashMap};

use crate::execute::execution::Execution;
use crate::plan::{Plan, StageId};
use crate::schedule::pools::{Pools, Tokens};

/// Heavy stages weigh more on the longest path.
const HEAVY_WEIGHT: u64 = 20;

/// Ready executions by the tokens that they need; of those the longest path to a target first.
pub(super) struct Queue {
    /// Length of the longest path to the end, per stage.
    distance: Vec<u64>,
    ready: BTreeMap<Tokens, BinaryHeap<(u64, Reverse<StageId>)>>,
    executions: HashMap<StageId, Execution>,
}

impl Queue {
    pub fn of(plan: &Plan) -> Self {
        let mut distance = vec![0; plan.stages.len()];
        for &id in plan.order().iter().rev() {
            let after = plan.dependants(id).map(|d| distance[d.0]).max().unwrap_or(0);
            distance[id.0] = after + if plan.stage(id).kind.heavy() { HEAVY_WEIGHT } else { 1 };
        }
        Self { distance, ready: BTreeMap::new(), executions: HashMap::new() }
    }

    pub fn push(&mut self, id: StageId, tokens: Tokens, execution: Execution) {
        self.ready.entry(tokens).or_default().push((self.distance[id.0], Reverse(id)));
        self.executions.insert(id, execution);
    }

    /// The next execution whose tokens the pools have, and these tokens.
    pub fn pop(&mut self, pools: &Pools) -> Option<(StageId, Tokens, Execution)> {
        loop {
            let fitting = self.ready.iter().filter(|(tokens, _)| pools.have(tokens));
            let tokens = fitting.max_by_key(|(_, heap)| heap.peek()).map(|(tokens, _)| tokens.clone())?;
            let heap = self.ready.get_mut(&tokens)?;
            let popped = heap.pop();
            if heap.is_empty() {
                self.ready.remove(&tokens);
            }
            if let Some((id, execution)) = popped.and_then(|(_, Reverse(id))| Some((id, self.executions.remove(&id)?))) {
                return Some((id, tokens, execution));
            }
        }
    }
}
