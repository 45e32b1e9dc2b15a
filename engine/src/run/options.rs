//! What a run is asked for.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::path::PathBuf;
use std::sync::Arc;

use flow_cache::{ActionKey, Commit, Digest};
use serde::{Deserialize, Serialize};

use crate::key::MachineId;
use crate::plan::StageId;

/// The command that runs a task directory; the directory is its last argument.
#[derive(Clone, Debug)]
pub struct WorkerCommand {
    /// Executable.
    pub program: PathBuf,
    /// Arguments before the directory.
    pub args: Vec<OsString>,
    /// Additional environment.
    pub env: Vec<(OsString, OsString)>,
}

/// Where heavy stages run.
#[derive(Clone, Debug)]
pub enum Worker {
    /// In the engine's own process.
    InProcess,
    /// In a child process each.
    Child(WorkerCommand),
}

/// Why a stage in [`RunOptions::reask`] is executed.
pub const REASKED: &str = "asks again for what was refused (--reask)";

/// How to run.
#[derive(Clone)]
pub struct RunOptions {
    /// After a failure, let everything finish that does not depend on it.
    pub keep_going: bool,
    /// `auto`, `gpu`, `cpu` or an adapter name.
    pub device: String,
    /// CPU threads of a task, and the number of `cpu` tokens.
    pub threads: usize,
    /// The machine's identity; called only when a stage that measures is keyed.
    pub machine: Arc<dyn Fn() -> MachineId + Send + Sync>,
    /// Where heavy stages run.
    pub worker: Worker,
    /// Tokens per pool beside `cpu` (`threads`) and `gpu` (1).
    pub pools: BTreeMap<String, u64>,
    /// Stages to execute whatever is in the cache.
    pub force: BTreeSet<StageId>,
    /// Stages to execute whatever is in the cache, which ask again for answers that were refused.
    pub reask: BTreeSet<StageId>,
    /// Execute what is in the cache again, and compare.
    pub check: bool,
    /// What `flow.lock` says of each stage; a run that would differ is refused.
    pub locked: Option<BTreeMap<String, LockedStage>>,
    /// Under which name a run with nothing to do is remembered ([`crate::memo`]).
    pub memo: Option<Digest>,
    /// Published places that are replaced whatever is there.
    pub overwrite: Vec<PathBuf>,
    /// Told of every action that was committed.
    pub committed: Option<Arc<dyn Fn(Commit) + Send + Sync>>,
}

/// A stage in `flow.lock`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LockedStage {
    /// Action key.
    pub key: ActionKey,
    /// Digests of its pure outputs.
    pub outputs: BTreeMap<String, Digest>,
}
