//! The action key of a stage whose inputs are known: the second step.

use flow_cache::{ActionKey, Artifact, CacheError};

use crate::execute::env::Env;
use crate::execute::failure::Failure;
use crate::key::KeyParts;
use crate::plan::PlannedStage;
use crate::schedule::inputs::Bar;
use crate::schedule::lock;

/// The key and what it is made of; barred where `flow.lock` says another one.
pub(super) fn key(stage: &PlannedStage, inputs: &[Artifact], env: &Env) -> Result<(ActionKey, KeyParts), Bar> {
    let parts = KeyParts::of(stage, inputs, env.options.machine.as_ref(), &env.cache).map_err(|error| match error {
        CacheError::Index { .. } => Bar::Broken(error),
        // A source file that vanished or cannot be read.
        error => Bar::Failed(Failure::from(error)),
    })?;
    let key = parts.key();
    match lock::key_differs(&env.options, stage, key) {
        Some(error) => Err(Bar::Failed(error.into())),
        None => Ok((key, parts)),
    }
}
