//! What a stage's inputs are, once all that it needs is done: the first of the three steps of a known stage (inputs, key, decision).

use flow_cache::{Artifact, Cache, CacheError};

use crate::execute::failure::{ExecuteError, Failure};
use crate::outputs::read_json;
use crate::plan::{Plan, StageId, Wire};
use crate::schedule::states::States;

/// Why a stage comes to its end before it is executed or reused.
pub(super) enum Bar {
    /// This gate, which it requires, refused.
    Withheld(String),
    /// It cannot be keyed, or must not be made.
    Failed(Failure),
    /// The cache is broken, and with it the run.
    Broken(CacheError),
}

impl From<CacheError> for Bar {
    fn from(error: CacheError) -> Self {
        Self::Broken(error)
    }
}

/// The artifacts of a stage's wires, in their order.
pub(super) fn inputs(plan: &Plan, states: &States, cache: &Cache, id: StageId) -> Result<Vec<Artifact>, Bar> {
    if let Some(gate) = refusing_gate(plan, states, cache, id)? {
        return Err(Bar::Withheld(gate));
    }
    let artifact = |wire: &Wire| {
        let found = states.entry(wire.from).and_then(|e| e.outputs.get(&wire.output)).copied();
        found.ok_or_else(|| {
            let (stage, output) = (plan.stage(wire.from).name.clone(), wire.output.clone());
            Bar::Failed(ExecuteError::NoArtifact { stage, output }.into())
        })
    };
    plan.stage(id).inputs.iter().map(artifact).collect()
}

/// The first required gate whose verdict is a refusal.
fn refusing_gate(plan: &Plan, states: &States, cache: &Cache, id: StageId) -> Result<Option<String>, CacheError> {
    for (gate, port) in &plan.stage(id).requires {
        if let Some(artifact) = states.entry(*gate).and_then(|e| e.outputs.get(port))
            && read_json(cache, artifact)?["accepted"] == false
        {
            return Ok(Some(plan.stage(*gate).name.clone()));
        }
    }
    Ok(None)
}
