//! `runs/<id>.json`: what was asked, executed, reused, and why.

use std::time::SystemTime;

use flow_cache::{Cache, CacheError};
use serde_json::{Value, json};

use crate::clock::unix_seconds;
use crate::plan::{Plan, StageId};
use crate::run::outcome::RunOutcome;
use crate::schedule::states::{State, States};

/// Writes what became of every selected stage.
pub(crate) fn write(
    plan: &Plan,
    cache: &Cache,
    selected: &[StageId],
    states: &States,
    outcome: &RunOutcome,
    started: SystemTime,
) -> Result<(), CacheError> {
    let pipeline = plan.pipeline.file.to_string_lossy().into_owned();
    let mut stages = Vec::new();
    let done = |id: &StageId| states.entry(*id).map(|e| (plan.stage(*id).name.as_str(), e.key));
    cache.set_latest(&pipeline, selected.iter().filter_map(done))?;
    for &id in selected {
        let stage = plan.stage(id);
        let state = &states[id];
        let mut row = json!({ "stage": stage.name, "kind": stage.kind.name(), "state": state.word() });
        match state {
            State::Done { entry, causes, .. } => {
                row["key"] = json!(entry.key);
                row["seconds"] = json!(entry.provenance.seconds);
                row["device"] = json!(entry.provenance.device);
                row["metrics"] = json!(entry.provenance.metrics);
                row["causes"] = json!(causes);
                row["outputs"] = json!(entry.outputs.iter().map(|(p, a)| (p, a.digest)).collect::<std::collections::BTreeMap<_, _>>());
            }
            State::Failed { message, .. } => row["message"] = json!(message),
            State::Skipped { because, .. } => row["because"] = json!(because),
            _ => {}
        }
        stages.push(row);
    }
    let record = json!({
        "format": 1,
        "id": outcome.run,
        "pipeline": pipeline,
        "name": plan.pipeline.name,
        "vars": plan.pipeline.overrides.vars,
        "sets": plan.pipeline.overrides.sets,
        "started": unix_seconds(started),
        "seconds": outcome.seconds,
        "ok": outcome.ok(),
        "interrupted": outcome.interrupted,
        "refused": outcome.refused,
        "headline": outcome.headline.iter().cloned().collect::<std::collections::BTreeMap<_, _>>(),
        "stages": stages,
    });
    cache.record_run(&outcome.run, &record)
}

/// The record of a run that found everything as run `like` left it.
pub(crate) fn write_like(cache: &Cache, like: &Value, id: &str, started: SystemTime, seconds: f64) -> Result<(), CacheError> {
    let mut record = like.clone();
    record["id"] = json!(id);
    record["started"] = json!(unix_seconds(started));
    record["seconds"] = json!(seconds);
    cache.record_run(id, &record)
}
