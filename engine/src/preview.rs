//! What a run would do, and why, without doing it.

use std::collections::{BTreeSet, HashMap, HashSet};

use flow_cache::{ActionEntry, ActionKey, Artifact, Cache, CacheError, Lookup};

use crate::explain;
use crate::key::{KeyParts, MachineId};
use crate::plan::{Plan, StageId};

/// What would happen to one stage.
#[derive(Clone, Debug)]
pub enum Decision {
    /// Its result is in the cache.
    Reuse {
        /// The action key.
        key: ActionKey,
        /// What it gave.
        entry: Box<ActionEntry>,
    },
    /// It has to run.
    Execute {
        /// The action key, unknown while an input is.
        key: Option<ActionKey>,
        /// What the key is made of; without inputs while one is unknown, and left out where nothing asked for it.
        parts: Option<Box<KeyParts>>,
        /// Why.
        causes: Vec<String>,
    },
}

impl Decision {
    /// Whether the stage would run.
    pub fn runs(&self) -> bool {
        matches!(self, Self::Execute { .. })
    }
}

/// The decision for one stage, with what it needs taken into account.
pub fn decision(plan: &Plan, cache: &Cache, id: StageId, machine: &dyn Fn() -> MachineId) -> Result<Decision, CacheError> {
    let mut selected = plan.ancestors(id);
    selected.push(id);
    let found = preview(plan, cache, &selected, &BTreeSet::new(), machine)?.pop();
    Ok(found.map_or(Decision::Execute { key: None, parts: None, causes: Vec::new() }, |(_, decision)| decision))
}

/// The decision for each selected stage, in topological order.
pub fn preview(
    plan: &Plan,
    cache: &Cache,
    selected: &[StageId],
    force: &BTreeSet<StageId>,
    machine: &dyn Fn() -> MachineId,
) -> Result<Vec<(StageId, Decision)>, CacheError> {
    let mut outputs: HashMap<(StageId, String), Artifact> = HashMap::new();
    let mut decisions: Vec<(StageId, Decision)> = Vec::with_capacity(selected.len());
    let mut running = HashSet::new();
    for &id in selected {
        let stage = plan.stage(id);
        let runs = |other: StageId| running.contains(&other);
        let inputs: Option<Vec<Artifact>> = stage.inputs.iter().map(|w| outputs.get(&(w.from, w.output.clone())).copied()).collect();
        let decision = if let Some(inputs) = inputs {
            let parts = KeyParts::of(stage, &inputs, machine, cache)?;
            let key = parts.key();
            let causes = match cache.lookup(&key)? {
                _ if force.contains(&id) => Err(vec!["forced (--force)".into()]),
                Lookup::Hit(entry) => Ok(entry),
                found => Err(explain::causes(cache, plan, id, &parts, &found, &runs)?),
            };
            match causes {
                Ok(entry) => Decision::Reuse { key, entry },
                Err(causes) => Decision::Execute { key: Some(key), parts: Some(Box::new(parts)), causes },
            }
        } else {
            let (parts, mut causes) = match explain::earlier(cache, plan, id)? {
                Some(before) => {
                    let parts = KeyParts::of(stage, &[], machine, cache)?;
                    let causes = explain::own_causes(plan, id, &before, &parts);
                    (Some(Box::new(parts)), causes)
                }
                None => (None, vec!["never executed".into()]),
            };
            for wire in stage.inputs.iter().filter(|w| runs(w.from)) {
                let cause = format!("input `{}` may change: stage `{}` will run", wire.port, plan.stage(wire.from).name);
                if !causes.contains(&cause) {
                    causes.push(cause);
                }
            }
            Decision::Execute { key: None, parts, causes }
        };
        if let Decision::Reuse { entry, .. } = &decision {
            outputs.extend(entry.outputs.iter().map(|(port, a)| ((id, port.clone()), *a)));
        }
        if decision.runs() {
            running.insert(id);
        }
        decisions.push((id, decision));
    }
    Ok(decisions)
}
