//! `run --locked`: whether a stage is what `flow.lock` says.

use flow_cache::{ActionEntry, ActionKey};

use crate::execute::failure::ExecuteError;
use crate::plan::PlannedStage;
use crate::plugin::Purity;
use crate::run::options::RunOptions;

/// How a stage's key differs from the lock file's, if it does.
pub(super) fn key_differs(options: &RunOptions, stage: &PlannedStage, wanted: ActionKey) -> Option<ExecuteError> {
    let stage = stage.name.clone();
    match options.locked.as_ref()?.get(&stage).map(|locked| locked.key) {
        Some(locked) if locked == wanted => None,
        Some(locked) => Some(ExecuteError::OtherKey { stage, locked, wanted }),
        None => Some(ExecuteError::NotLocked { stage }),
    }
}

/// A locked stage that was made again must have given the locked bytes on its pure ports.
pub(super) fn outputs_differ(options: &RunOptions, stage: &PlannedStage, entry: &ActionEntry) -> Option<ExecuteError> {
    let locked = options.locked.as_ref()?.get(&stage.name)?;
    let pure = stage.kind.outputs().iter().filter(|o| o.purity == Purity::Pure);
    let port = pure.map(|o| &*o.name).find(|name| locked.outputs.get(*name) != entry.outputs.get(*name).map(|a| &a.digest))?;
    Some(ExecuteError::OtherOutput { port: port.to_owned() })
}
