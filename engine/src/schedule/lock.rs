//! `run --locked`: whether a stage is what `flow.lock` says.

use flow_cache::{ActionEntry, ActionKey};

use crate::execute::failure::Failure;
use crate::plan::PlannedStage;
use crate::plugin::Purity;
use crate::run::options::RunOptions;

/// How a stage's key differs from the lock file's, if it does.
pub(super) fn key_differs(options: &RunOptions, stage: &PlannedStage, key: ActionKey) -> Option<Failure> {
    let name = &stage.name;
    let locked = options.locked.as_ref()?;
    let mut failure = match locked.get(name) {
        Some(stage) if stage.key == key => return None,
        Some(stage) => {
            Failure::new(format!("it differs from flow.lock: action key {} is locked, {} is wanted", stage.key.0.short(), key.0.short()))
        }
        None => Failure::new("it is not in flow.lock"),
    };
    failure.help = Some(format!("`flow explain PIPELINE {name}` says what changed; `flow lock PIPELINE` accepts it"));
    Some(failure)
}

/// A locked stage that was made again must have given the locked bytes on its pure ports.
pub(super) fn outputs_differ(options: &RunOptions, stage: &PlannedStage, entry: &ActionEntry) -> Option<Failure> {
    let locked = options.locked.as_ref()?.get(&stage.name)?;
    let pure = stage.kind.outputs().iter().filter(|o| o.purity == Purity::Pure);
    let port = pure.map(|o| &*o.name).find(|name| locked.outputs.get(*name) != entry.outputs.get(*name).map(|a| &a.digest))?;
    Some(Failure::new(format!("its output `{port}` differs from flow.lock under the same action key")))
}
