//! One execution: what it takes, why it is done, and how it ended.

use std::path::PathBuf;

use flow_cache::{ActionEntry, ActionKey, Artifact, Commit, KeyLock};

use crate::check::Difference;
use crate::execute::failure::Failure;
use crate::key::KeyParts;
use crate::plan::PlannedStage;
use crate::plugin::Provenance;

/// One stage to execute.
pub(crate) struct Execution {
    pub stage: PlannedStage,
    pub key: ActionKey,
    pub parts: KeyParts,
    /// Artifact and maker (`stage.port`) of each wire.
    pub inputs: Vec<(Artifact, String)>,
    /// Unkeyed parameters of the maker of each wire.
    pub operational: Vec<serde_json::Value>,
    /// Environment variables that the task must not see.
    pub withheld: Vec<String>,
    pub provenance: Vec<Provenance>,
    pub causes: Vec<String>,
    pub why: Why,
    /// Output ports that the run itself or a person reads.
    pub wanted: Vec<String>,
}

/// Why a stage is executed.
#[derive(Clone, Debug)]
pub(crate) enum Why {
    /// Its result is wanted and not there.
    Make,
    /// A person said so, whatever is there.
    Force,
    /// To compare with the result that is there.
    Check(Box<ActionEntry>),
}

/// An execution that succeeded, on its way into the cache.
pub(crate) struct Made {
    pub commit: Commit,
    pub seconds: f64,
    /// Taken away once it is committed.
    pub dir: PathBuf,
    /// Held until it is committed.
    pub lock: KeyLock,
}

/// How an execution ended.
pub(crate) enum Outcome {
    Made(Box<Made>),
    /// Another process made it while this one waited.
    Reused(Box<ActionEntry>),
    /// It was executed again, and this differs.
    Checked(Box<ActionEntry>, Option<Difference>),
    /// The remote cache could not give what it promised.
    NotBrought,
    Failed(Failure),
}
