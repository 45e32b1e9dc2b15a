//! What a run tells while it runs: one typed stream, which every display consumes.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::check::Difference;

/// A stage that would run, and why.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct PlannedExecution {
    /// Stage name.
    pub stage: String,
    /// Why it would run.
    pub causes: Vec<String>,
    /// What that is expected to take, where the kind can say it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub estimate: Option<Expected>,
}

/// What an execution is expected to take on this machine.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Expected {
    /// Wall seconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seconds: Option<f64>,
    /// Bytes that it plans to hold.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_bytes: Option<u64>,
}

/// A published place whose content is not what the plan would give.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stray {
    /// Path in the project.
    pub path: String,
    /// The artifact that was put there, `stage.port`.
    pub from: String,
    /// The run that put it there.
    pub run: String,
    /// What is the matter: in words.
    pub why: String,
}

/// One event of a run; the serialised form is a line of `--json`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum RunEvent {
    /// The run begins.
    RunStarted {
        /// Run id.
        run: String,
        /// Name of the pipeline.
        pipeline: String,
        /// Selected stages in topological order.
        stages: Vec<String>,
    },
    /// A stage's result was in the cache.
    StageReused {
        /// Stage.
        stage: String,
        /// Action key.
        key: String,
    },
    /// A stage waits for another process that makes the same thing.
    StageWaiting {
        /// Stage.
        stage: String,
        /// For what.
        reason: String,
    },
    /// A task begins.
    StageStarted {
        /// Stage.
        stage: String,
        /// Kind.
        kind: String,
        /// Action key.
        key: String,
        /// Why it runs.
        causes: Vec<String>,
        /// 1 for the first attempt.
        attempt: u32,
    },
    /// Work done of a total.
    StageProgress {
        /// Stage.
        stage: String,
        /// Units done.
        done: u64,
        /// Units in all.
        total: u64,
        /// The unit.
        unit: String,
    },
    /// A measurement.
    StageMetric {
        /// Stage.
        stage: String,
        /// Name.
        name: String,
        /// Value.
        value: f64,
    },
    /// A line for the log.
    StageLog {
        /// Stage.
        stage: String,
        /// Text.
        message: String,
    },
    /// Something to read at the end of the run.
    StageWarning {
        /// Stage.
        stage: String,
        /// Text.
        message: String,
    },
    /// Which device computes.
    StageDevice {
        /// Stage.
        stage: String,
        /// Name.
        name: String,
    },
    /// A result was made again and compared with the one in the cache.
    StageChecked {
        /// Stage.
        stage: String,
        /// What differs, if anything.
        difference: Option<Difference>,
    },
    /// A task succeeded and its outputs are in the cache.
    StageFinished {
        /// Stage.
        stage: String,
        /// Wall seconds.
        seconds: f64,
    },
    /// An attempt failed and another follows.
    StageRetried {
        /// Stage.
        stage: String,
        /// What went wrong.
        message: String,
        /// Seconds until the next attempt.
        wait: f64,
    },
    /// A task failed.
    StageFailed {
        /// Stage.
        stage: String,
        /// What went wrong.
        message: String,
        /// What to do next.
        help: Option<String>,
        /// Last lines of its log.
        log: Vec<String>,
    },
    /// A stage was not tried.
    StageSkipped {
        /// Stage.
        stage: String,
        /// Why not.
        because: String,
    },
    /// A gate's verdict is a refusal.
    GateRefused {
        /// Stage.
        stage: String,
        /// Its reasons.
        reasons: Vec<String>,
    },
    /// An artifact could not be copied out of the cache; the run exits 4.
    PublishFailed {
        /// Path in the project.
        path: String,
        /// Why.
        message: String,
    },
    /// An artifact stands at a published path.
    Published {
        /// Path in the project.
        path: String,
        /// `stage.port`.
        from: String,
        /// Whether it had to be written.
        written: bool,
    },
    /// A published place holds what another run put there, and the plan would put something else.
    OfAnotherRun(Stray),
    /// What a dry run found.
    Planned {
        /// Stages that would run.
        execute: Vec<PlannedExecution>,
        /// Stages whose results would be reused.
        reuse: Vec<String>,
    },
    /// The run ended.
    RunFinished {
        /// Whether everything that was asked for is there and no gate refused.
        ok: bool,
        /// Stages that ran and succeeded.
        executed: Vec<String>,
        /// Stages whose results were reused.
        reused: Vec<String>,
        /// Stages that failed.
        failed: Vec<String>,
        /// Stages that were not tried.
        skipped: Vec<String>,
        /// Gates that refused.
        refused: Vec<String>,
        /// Why each of them did.
        #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
        reasons: BTreeMap<String, Vec<String>>,
        /// Stages that a refused gate withholds.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        withheld: Vec<String>,
        /// With `--check`: stages whose result came out different.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        different: Vec<String>,
        /// Whether it was asked to stop.
        interrupted: bool,
        /// Wall seconds.
        seconds: f64,
    },
}

/// Where the events of a run go; must not block for long.
pub trait RunSink: Send + Sync {
    /// Takes one event.
    fn emit(&self, event: RunEvent);
}

impl<F: Fn(RunEvent) + Send + Sync> RunSink for F {
    fn emit(&self, event: RunEvent) {
        self(event);
    }
}
