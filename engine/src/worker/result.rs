//! `result.json`, which a child process or a plugin leaves behind: how its task ended.

use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::plugin::StageError;

const NAME: &str = "result.json";

/// `result.json`: how a task ended.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct TaskResult {
    /// Whether it succeeded.
    pub ok: bool,
    /// What went wrong.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    /// What to do next.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub help: Option<String>,
    /// Whether it stopped because it was asked to.
    #[serde(default)]
    pub interrupted: bool,
}

impl TaskResult {
    /// Of a task that made its outputs.
    pub fn good() -> Self {
        Self { ok: true, ..Self::default() }
    }
    /// Of a task that failed or was stopped.
    pub fn of(error: &StageError) -> Self {
        Self { ok: false, message: Some(error.message.clone()), help: error.help.clone(), interrupted: error.interrupted }
    }
    /// Writes it into a task's directory, whole or not at all.
    pub(crate) fn write(&self, dir: &Path) -> std::io::Result<()> {
        let temporary = dir.join("result.json.new");
        std::fs::write(&temporary, serde_json::to_vec(self)?)?;
        std::fs::rename(temporary, dir.join(NAME))
    }
    /// The result in a task's directory, if the task got so far.
    pub(crate) fn read(dir: &Path) -> Option<Self> {
        std::fs::read(dir.join(NAME)).ok().and_then(|bytes| serde_json::from_slice(&bytes).ok())
    }
    /// What went wrong, for a result that is not good; `silent` where it does not say.
    pub(crate) fn error(self, silent: &str) -> StageError {
        StageError { message: self.message.unwrap_or_else(|| silent.into()), help: self.help, interrupted: self.interrupted }
    }
}
