//! After a task succeeded: its outputs are looked at, and enter the store all or none.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use flow_cache::{ActionEntry, ActionKey, ActionProvenance, Cache, Commit, Entered, Lease};

use crate::check::{self, Difference};
use crate::execute::execution::Why;
use crate::execute::failure::ExecuteError;
use crate::key::KeyParts;
use crate::outputs::VERDICT;
use crate::plan::{Origin, PlannedStage, json_pointer};
use crate::plugin::Purity;

/// What an attempt gave.
pub(super) enum Finished {
    New { commit: Box<Commit>, seconds: f64, dir: PathBuf },
    Same(Box<ActionEntry>, Option<Difference>),
}

/// What is left to do when a task succeeded.
pub(super) struct Ending {
    pub cache: Arc<Cache>,
    pub lease: Arc<Lease>,
    pub stage: PlannedStage,
    pub key: ActionKey,
    pub parts: KeyParts,
    pub why: Why,
    pub outputs: BTreeMap<String, PathBuf>,
    pub provenance: ActionProvenance,
    pub started: Instant,
    pub dir: PathBuf,
}

impl Ending {
    /// Moves the outputs into the store, all or none; or compares them with what is there.
    pub fn finish(mut self) -> Result<Finished, ExecuteError> {
        self.refuse_bad_outputs()?;
        self.refuse_changed_sources()?;
        if let Why::Check(entry) = self.why {
            let measured = |port: &str| self.stage.kind.outputs().iter().any(|o| o.name == port && o.purity == Purity::Measured);
            let pure = entry.outputs.iter().filter(|(port, _)| !measured(port));
            let difference = check::compare(&self.cache, pure, &self.outputs)?;
            self.cache.remove(&self.dir)?;
            return Ok(Finished::Same(entry, difference));
        }
        // Until the lease names them, a collection might take them.
        let entering = self.cache.entering()?;
        let mut entered = Entered::default();
        let mut artifacts = BTreeMap::new();
        for (port, path) in &self.outputs {
            artifacts.insert(port.clone(), self.cache.enter(path, &mut entered)?);
        }
        self.lease.keep(&self.key, artifacts.values())?;
        drop(entering);
        let parts = serde_json::to_value(&self.parts).map_err(ExecuteError::Entry)?;
        let seconds = self.started.elapsed().as_secs_f64();
        self.provenance.seconds = seconds;
        let entry = ActionEntry {
            format: flow_cache::action::FORMAT,
            key: self.key,
            kind: self.stage.kind.name().into(),
            outputs: artifacts,
            provenance: self.provenance,
        };
        let commit = Box::new(Commit { entry, parts, entered });
        Ok(Finished::New { commit, seconds, dir: self.dir })
    }

    fn refuse_bad_outputs(&self) -> Result<(), ExecuteError> {
        for (port, path) in &self.outputs {
            if !path.exists() {
                return Err(ExecuteError::NoOutput { port: port.clone() });
            }
            if self.stage.kind.outputs().iter().any(|o| o.name == *port && o.ty == VERDICT) {
                let verdict: Option<serde_json::Value> = std::fs::read(path).ok().and_then(|b| serde_json::from_slice(&b).ok());
                if verdict.as_ref().and_then(|v| v["accepted"].as_bool()).is_none() {
                    return Err(ExecuteError::NotAVerdict { port: port.clone() });
                }
            }
        }
        Ok(())
    }

    /// The key was made of files as they were; a result of other bytes must not stand under it.
    fn refuse_changed_sources(&self) -> Result<(), ExecuteError> {
        for source in self.stage.sources.iter().filter(|s| !matches!(s.of, Origin::Env(_))) {
            let keyed = self.parts.params.pointer(&json_pointer(&source.at));
            if source.content(&self.cache)?.as_ref() != keyed {
                return Err(ExecuteError::ChangedSource { what: source.shown(&self.stage.dir) });
            }
        }
        Ok(())
    }
}
