//! What came of a run.

use std::collections::BTreeMap;
use std::path::PathBuf;

use crate::check::Difference;
use crate::events::{RunEvent, Stray};

/// What became of a stage.
#[derive(Clone, Debug)]
pub struct StageReport {
    /// Stage name.
    pub stage: String,
    /// Its state.
    pub state: &'static str,
    /// Wall seconds of the execution that made it.
    pub seconds: Option<f64>,
}

/// What came of a run.
#[derive(Clone, Debug, Default)]
pub struct RunOutcome {
    /// Run id.
    pub run: String,
    /// Stages in topological order.
    pub stages: Vec<StageReport>,
    /// Stages that ran and succeeded.
    pub executed: Vec<String>,
    /// Stages whose results were reused.
    pub reused: Vec<String>,
    /// Stages that failed.
    pub failed: Vec<String>,
    /// Stages that were not tried.
    pub skipped: Vec<String>,
    /// Gates that refused.
    pub refused: Vec<String>,
    /// Why each of them refused.
    pub reasons: BTreeMap<String, Vec<String>>,
    /// Stages that a refused gate withholds.
    pub withheld: Vec<String>,
    /// With `check`: every stage that was executed again, and what differs.
    pub checked: Vec<(String, Option<Difference>)>,
    /// `key: value` lines of outputs of type `Summary`.
    pub headline: Vec<(String, String)>,
    /// Published paths.
    pub published: Vec<PathBuf>,
    /// Problems with publishing.
    pub publish_errors: Vec<String>,
    /// Whether one of them is a place that is not flow's.
    pub publish_refused: bool,
    /// Published places that are of another run.
    pub strays: Vec<Stray>,
    /// Warnings of all stages: stage and text.
    pub warnings: Vec<(String, String)>,
    /// Whether a person asked to stop.
    pub interrupted: bool,
    /// Wall seconds.
    pub seconds: f64,
}

impl RunOutcome {
    /// Whether everything is there and no gate refused.
    pub fn ok(&self) -> bool {
        self.exit_code() == 0
    }
    /// Stages whose result came out different.
    pub fn different(&self) -> impl Iterator<Item = &str> {
        self.checked.iter().filter(|(_, d)| d.is_some()).map(|(stage, _)| stage.as_str())
    }
    /// The last event of the run.
    pub(crate) fn finished(&self) -> RunEvent {
        RunEvent::RunFinished {
            ok: self.ok(),
            executed: self.executed.clone(),
            reused: self.reused.clone(),
            failed: self.failed.clone(),
            skipped: self.skipped.clone(),
            refused: self.refused.clone(),
            reasons: self.reasons.clone(),
            withheld: self.withheld.clone(),
            different: self.different().map(str::to_owned).collect(),
            interrupted: self.interrupted,
            seconds: self.seconds,
        }
    }
    /// The exit code of the process.
    pub fn exit_code(&self) -> u8 {
        if self.interrupted {
            130
        } else if !self.failed.is_empty() || !self.skipped.is_empty() || self.different().next().is_some() {
            1
        } else if self.publish_refused {
            2
        } else if !self.publish_errors.is_empty() {
            4
        } else if !self.refused.is_empty() {
            3
        } else {
            0
        }
    }
}
