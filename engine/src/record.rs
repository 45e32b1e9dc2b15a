//! `runs/<id>.json`: what was asked, executed, reused, and why.

use std::collections::BTreeMap;
use std::time::SystemTime;

use flow_cache::{ActionKey, Cache, CacheError, Digest};
use serde::{Serialize, Serializer};
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
    let done = |id: &StageId| states.entry(*id).map(|e| (plan.stage(*id).name.as_str(), e.key));
    cache.set_latest(&pipeline, selected.iter().filter_map(done))?;
    let record = Record {
        format: 1,
        id: &outcome.run,
        pipeline: &pipeline,
        name: json!(plan.pipeline.name),
        vars: json!(plan.pipeline.overrides.vars),
        sets: json!(plan.pipeline.overrides.sets),
        started: unix_seconds(started),
        seconds: outcome.seconds,
        ok: outcome.ok(),
        interrupted: outcome.interrupted,
        refused: &outcome.refused,
        headline: outcome.headline.iter().cloned().collect(),
        stages: Rows { plan, selected, states },
    };
    cache.record_run(&outcome.run, &record)
}

#[derive(Serialize)]
struct Record<'a> {
    format: u32,
    id: &'a str,
    pipeline: &'a str,
    name: Value,
    vars: Value,
    sets: Value,
    started: f64,
    seconds: f64,
    ok: bool,
    interrupted: bool,
    refused: &'a [String],
    headline: BTreeMap<String, String>,
    stages: Rows<'a>,
}

/// A row for each stage, made as it is written: those of a large run together would take more memory than its plan.
struct Rows<'a> {
    plan: &'a Plan,
    selected: &'a [StageId],
    states: &'a States,
}

impl Serialize for Rows<'_> {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_seq(self.selected.iter().map(|id| {
            let (stage, state) = (self.plan.stage(*id), &self.states[*id]);
            Row { stage: &stage.name, kind: stage.kind.name(), state: state.word(), what: What::of(state) }
        }))
    }
}

#[derive(Serialize)]
struct Row<'a> {
    stage: &'a str,
    kind: &'a str,
    state: &'static str,
    #[serde(flatten)]
    what: What<'a>,
}

/// What is said of a stage in its state.
#[derive(Serialize)]
#[serde(untagged)]
enum What<'a> {
    Done {
        key: &'a ActionKey,
        seconds: f64,
        device: &'a str,
        metrics: &'a BTreeMap<String, f64>,
        causes: &'a [String],
        outputs: BTreeMap<&'a str, Digest>,
    },
    Failed {
        message: &'a str,
    },
    Skipped {
        because: &'a str,
    },
    Nothing {},
}

impl<'a> What<'a> {
    fn of(state: &'a State) -> Self {
        match state {
            State::Done { entry, causes, .. } => Self::Done {
                key: &entry.key,
                seconds: entry.provenance.seconds,
                device: &entry.provenance.device,
                metrics: &entry.provenance.metrics,
                causes,
                outputs: entry.outputs.iter().map(|(port, artifact)| (port.as_str(), artifact.digest)).collect(),
            },
            State::Failed { message } => Self::Failed { message },
            State::Skipped { because, .. } => Self::Skipped { because },
            _ => Self::Nothing {},
        }
    }
}

/// The record of a run that found everything as run `like` left it.
pub(crate) fn write_like(cache: &Cache, like: &Value, id: &str, started: SystemTime, seconds: f64) -> Result<(), CacheError> {
    let mut record = like.clone();
    record["id"] = json!(id);
    record["started"] = json!(unix_seconds(started));
    record["seconds"] = json!(seconds);
    cache.record_run(id, &record)
}
