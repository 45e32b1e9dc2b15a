//! How an execution fails: an error with its sources, and what its task said last. The text is made where it is shown.

use std::path::PathBuf;
use std::time::Duration;

use flow_cache::{ActionKey, CacheError, Digest};
use tokio::task::JoinError;

use crate::plugin::{InputArtifact, StageError};

/// Why an execution gave no result, or could not begin.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ExecuteError {
    /// The stage says what is wrong.
    #[error(transparent)]
    Stage(#[from] StageError),
    #[error(transparent)]
    Cache(#[from] CacheError),
    /// The remote cache promised an input (by its place) and could not give it.
    #[error("{source}")]
    LostInput { input: usize, source: CacheError },
    /// An input is not there, although its maker is done.
    #[error("`{stage}` has no artifact on `{output}`")]
    NoArtifact { stage: String, output: String },

    #[error("it differs from flow.lock: action key {} is locked, {} is wanted", locked.0.short(), wanted.0.short())]
    OtherKey { stage: String, locked: ActionKey, wanted: ActionKey },
    #[error("it is not in flow.lock")]
    NotLocked { stage: String },
    #[error("its output `{port}` differs from flow.lock under the same action key")]
    OtherOutput { port: String },

    #[error("interrupted")]
    Interrupted,
    #[error("timed out after {} s", .0.as_secs_f64())]
    TimedOut(Duration),
    #[error("task.json: {0}")]
    Description(#[source] serde_json::Error),
    #[error("create {}: {source}", path.display())]
    Create { path: PathBuf, source: std::io::Error },
    #[error("start {}: {source}", program.display())]
    Start { program: PathBuf, source: std::io::Error },
    #[error("wait for the task: {0}")]
    Wait(#[source] std::io::Error),
    #[error("the task could not be run: {0}")]
    NotRun(#[source] JoinError),
    #[error("the task's process was killed (signal 9)")]
    Killed,
    #[error("the task's process crashed (signal {0})")]
    Crashed(i32),
    #[error("the task's process ended without a result (exit code {0})")]
    NoResult(i32),

    #[error("the task changed its input (object {})", .0.short())]
    ChangedInput(Digest),
    #[error("{what} changed while the stage ran")]
    ChangedSource { what: String },
    #[error("the task ended without creating its output `{port}`")]
    NoOutput { port: String },
    #[error("output `{port}` is not a verdict: JSON with `accepted: true` or `false`")]
    NotAVerdict { port: String },
    #[error("action entry: {0}")]
    Entry(#[source] serde_json::Error),
    #[error("the engine failed: {0}")]
    Engine(#[source] JoinError),
}

impl ExecuteError {
    /// What to do next.
    fn help(&self) -> Option<String> {
        Some(match self {
            Self::Stage(error) => return error.help.clone(),
            Self::OtherKey { stage, .. } | Self::NotLocked { stage } => {
                format!("`flow explain PIPELINE {stage}` says what changed; `flow lock PIPELINE` accepts it")
            }
            Self::Killed => "often the system was out of memory: close other programs, or make the stage smaller".into(),
            Self::ChangedInput(_) => "inputs are read-only; the damaged object was removed and is made again on the next run".into(),
            Self::ChangedSource { .. } => "run again: the result was thrown away, because it may be of either content".into(),
            _ => return None,
        })
    }
}

/// A failed execution.
#[derive(Debug)]
pub(crate) struct Failure {
    error: Box<ExecuteError>,
    /// The last lines that its task told or printed.
    pub log: Vec<String>,
    /// Paths of inputs in the cache, and what a person calls them.
    names: Vec<(String, String)>,
}

impl Failure {
    /// What went wrong.
    pub fn message(&self) -> String {
        self.readable(self.error.to_string())
    }
    /// What to do next.
    pub fn help(&self) -> Option<String> {
        self.error.help().map(|help| self.readable(help))
    }
    /// Whether it was asked to stop.
    pub fn is_interruption(&self) -> bool {
        matches!(*self.error, ExecuteError::Interrupted | ExecuteError::Stage(StageError { interrupted: true, .. }))
    }
    /// Which input (by its place) the remote cache promised and could not give.
    pub fn lost_input(&self) -> Option<usize> {
        match *self.error {
            ExecuteError::LostInput { input, .. } => Some(input),
            _ => None,
        }
    }
    /// The same of a task that had these inputs, and told these lines last.
    pub fn of_task(mut self, inputs: &[InputArtifact], told: Vec<String>) -> Self {
        self.names = inputs.iter().map(|i| (i.path.to_string_lossy().into_owned(), format!("`{}`", i.from))).collect();
        if self.log.is_empty() {
            self.log = told;
        }
        self
    }
    /// In the words of the pipeline: inputs by the stage that made them, not by their place in the cache.
    fn readable(&self, text: String) -> String {
        self.names.iter().fold(text, |text, (path, name)| text.replace(path, name))
    }
}

impl<E: Into<ExecuteError>> From<E> for Failure {
    fn from(error: E) -> Self {
        Self { error: Box::new(error.into()), log: Vec::new(), names: Vec::new() }
    }
}
