//! The execution of a stage that has to run, put together from the plan and from what ran before.

use flow_cache::{ActionKey, Artifact};
use serde_json::Value;

use crate::execute::execution::{Execution, Why};
use crate::key::KeyParts;
use crate::plan::{Plan, StageId};
use crate::plugin::Provenance;
use crate::schedule::decide::wanted;
use crate::schedule::states::{State, States};

/// All that an execution takes. `reask` is whether refused answers are asked for again.
pub(super) fn assemble(
    plan: &Plan,
    states: &States,
    id: StageId,
    reask: bool,
    inputs: Vec<Artifact>,
    (key, parts): (ActionKey, KeyParts),
    (why, causes): (Why, Vec<String>),
) -> Execution {
    let stage = plan.stage(id);
    Execution {
        stage: stage.clone(),
        key,
        parts,
        inputs: named(plan, id, inputs),
        operational: stage.inputs.iter().map(|wire| operational(plan, wire.from, reask)).collect(),
        withheld: plan.withheld(id),
        provenance: provenance(plan, states, id),
        causes,
        why,
        wanted: wanted(plan, id),
    }
}

/// Artifacts of a stage's wires with the names of what made them.
fn named(plan: &Plan, id: StageId, artifacts: Vec<Artifact>) -> Vec<(Artifact, String)> {
    let wires = &plan.stage(id).inputs;
    artifacts.into_iter().zip(wires).map(|(a, w)| (a, format!("{}.{}", plan.stage(w.from).name, w.output))).collect()
}

/// What a stage's readers are told beside its artifacts: its unkeyed parameters, and what this run is to do again.
fn operational(plan: &Plan, maker: StageId, reask: bool) -> Value {
    let mut value = plan.stage(maker).operational();
    if let (Value::Object(fields), true) = (&mut value, reask) {
        fields.insert("reask".into(), true.into());
    }
    value
}

/// How the ancestors' artifacts came to be, for stages that may show it.
fn provenance(plan: &Plan, states: &States, id: StageId) -> Vec<Provenance> {
    let mut all = Vec::new();
    if !plan.stage(id).is_measured() {
        return all;
    }
    for ancestor in plan.ancestors(id) {
        let State::Done { entry, reused, .. } = &states[ancestor] else { continue };
        let stage = plan.stage(ancestor);
        let how = &entry.provenance;
        all.push(Provenance {
            stage: stage.name.clone(),
            kind: stage.kind.name().into(),
            after: stage.needs().into_iter().map(|n| plan.stage(n).name.clone()).collect(),
            seconds: how.seconds,
            reused: *reused,
            device: how.device.clone(),
            finished: how.finished,
            metrics: how.metrics.clone(),
        });
    }
    all
}
