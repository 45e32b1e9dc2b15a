//! How an execution fails.

use std::time::Duration;

use flow_cache::CacheError;

use crate::plugin::StageError;

/// How a task failed.
#[derive(Debug)]
pub(crate) struct Failure {
    pub message: String,
    pub help: Option<String>,
    pub log: Vec<String>,
    pub interrupted: bool,
    /// Which input (by its place) the remote cache promised and could not give.
    pub lost: Option<usize>,
}

impl Failure {
    pub fn new(message: impl Into<String>) -> Self {
        Self { message: message.into(), help: None, log: Vec::new(), interrupted: false, lost: None }
    }
    pub fn timed_out(after: Option<Duration>) -> Self {
        Self::new(format!("timed out after {} s", after.unwrap_or_default().as_secs_f64()))
    }
    pub fn interrupted() -> Self {
        Self { interrupted: true, ..Self::new("interrupted") }
    }
}

impl From<StageError> for Failure {
    fn from(error: StageError) -> Self {
        Self { message: error.message, help: error.help, log: Vec::new(), interrupted: error.interrupted, lost: None }
    }
}

impl From<CacheError> for Failure {
    fn from(error: CacheError) -> Self {
        Self::new(error.to_string())
    }
}
