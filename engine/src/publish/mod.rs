//! Artifacts outside the cache: `publish:` when a run ends, `flow get` when a person asks. Nothing reads them back, and nothing is
//! replaced but what `flow` put there itself and nobody changed since ([`guard`], [`record`], [`place`]).

pub mod guard;
pub mod place;
pub mod record;

use std::path::{Path, PathBuf};

use flow_cache::{Artifact, Cache, CacheError};

use crate::events::{RunEvent, RunSink, Stray};
use crate::path;
use crate::plan::{Plan, StageId};
use crate::preview::Decision;
use crate::problem::{Problem, Problems};
use crate::run::outcome::RunOutcome;
use crate::schedule::states::States;
use guard::{Guard, PublishError, Refusal};
use place::State;
use record::{Put, Record, RecordError};

/// Why an artifact was not put out.
#[derive(Debug, thiserror::Error)]
pub enum PutError {
    /// The place may not be written.
    #[error("{}", .0.message())]
    Refused(Refusal),
    /// The cache, the disk or the record failed.
    #[error(transparent)]
    Failed(#[from] PublishError),
}

impl From<CacheError> for PutError {
    fn from(error: CacheError) -> Self {
        Self::Failed(error.into())
    }
}

impl From<RecordError> for PutError {
    fn from(error: RecordError) -> Self {
        Self::Failed(error.into())
    }
}

/// What is put out, and for whom.
pub struct Wanted<'a> {
    /// The artifact.
    pub artifact: &'a Artifact,
    /// `stage.port`.
    pub from: String,
    /// The run that asks; `get` where a person does.
    pub run: &'a str,
}

/// Copies an artifact to a place (absolute; `shown` as it was asked for) and records it; says whether anything had to be written.
pub fn put(plan: &Plan, cache: &Cache, guard: &Guard<'_>, shown: &str, place: &Path, wanted: &Wanted<'_>) -> Result<bool, PutError> {
    let root = &plan.pipeline.root;
    let name = record::name_of(root, place);
    // Before anything is fetched, copied, or made beside the place.
    guard.check(shown, place, Some(wanted.artifact))?.map_err(PutError::Refused)?;
    let _turn = Record::turn(root)?;
    cache.fetch(wanted.artifact)?;
    let state = State::of_artifact(cache, wanted.artifact)?;
    let entry = |states| Put {
        from: wanted.from.clone(),
        pipeline: record::name_of(root, &plan.pipeline.file),
        run: wanted.run.to_owned(),
        states,
    };
    let keep = |states: Vec<State>| Record::change(root, |record| drop(record.places.insert(name.clone(), entry(states))));
    let recorded = Record::read(root)?;
    let written = cache.export(wanted.artifact, place, || -> Result<(), PutError> {
        guard.check(shown, place, Some(wanted.artifact))?.map_err(PutError::Refused)?;
        let before = State::at(cache, place)?;
        Ok(keep(before.into_iter().chain([state.clone()]).collect())?)
    })?;
    let known = recorded.places.get(&name).is_some_and(|put| put.states == [state.clone()] && put.from == wanted.from);
    if written || !known {
        keep(vec![state])?;
    }
    Ok(written)
}

/// What would become of a stage; asked for only where a place makes it matter.
pub type Decide<'a> = &'a dyn Fn(StageId) -> Result<Decision, CacheError>;

fn output(decision: &Decision, port: &str) -> Option<Artifact> {
    match decision {
        Decision::Reuse { entry, .. } => entry.outputs.get(port).copied(),
        Decision::Execute { .. } => None,
    }
}

/// Refuses a run whose published places hold what is not `flow`'s.
pub fn check(plan: &Plan, cache: &Cache, selected: &[StageId], overwrite: &[PathBuf], decide: Decide<'_>) -> Result<(), Problems> {
    let places = || plan.publish.iter().filter(|(_, id, _)| selected.contains(id));
    let broken = |e: PublishError| Problem::new(e.to_string());
    let guard = Guard::of(plan, cache, overwrite);
    let mut refused = Vec::new();
    for (to, id, port) in places() {
        let place = plan.pipeline.root.join(to);
        let mut found = guard.check(to, &place, None).map_err(broken)?;
        if found.as_ref().is_err_and(|refusal| refusal.overridable) {
            let wanted = decide(*id).map_err(|e| broken(e.into()))?;
            found = guard.check(to, &place, output(&wanted, port).as_ref()).map_err(broken)?;
        }
        refused.extend(found.err());
    }
    let replaced: String = refused.iter().filter(|r| r.overridable).map(|r| format!(" --overwrite {}", r.place)).collect();
    let command = format!("flow run {}{replaced}", plan.pipeline.document.name());
    let problem = |refusal: Refusal| {
        let help = if refusal.overridable { format!(", or let it be replaced: {command}") } else { String::new() };
        let problem = plan.pipeline.document.at_key(&path!["publish", refusal.place], refusal.message());
        problem.help(format!("publish to another path{help}"))
    };
    let list: Vec<_> = refused.into_iter().map(problem).collect();
    if list.is_empty() { Ok(()) } else { Err(Problems { list }) }
}

/// Puts out what the pipeline publishes; what cannot be put out is told and kept in the outcome.
pub(crate) fn publish(plan: &Plan, cache: &Cache, states: &States, overwrite: &[PathBuf], sink: &dyn RunSink, outcome: &mut RunOutcome) {
    if plan.publish.is_empty() {
        return;
    }
    let guard = Guard::of(plan, cache, overwrite);
    let run = outcome.run.clone();
    for (to, id, port) in &plan.publish {
        let Some(artifact) = states.entry(*id).and_then(|e| e.outputs.get(port)) else { continue };
        let from = format!("{}.{port}", plan.stage(*id).name);
        let place = plan.pipeline.root.join(to);
        match put(plan, cache, &guard, to, &place, &Wanted { artifact, from: from.clone(), run: &run }) {
            Ok(written) => {
                sink.emit(RunEvent::Published { path: to.clone(), from, written });
                outcome.published.push(place);
            }
            Err(e) => {
                sink.emit(RunEvent::PublishFailed { path: to.clone(), message: e.to_string() });
                outcome.publish_refused |= matches!(e, PutError::Refused(_));
                let help = match &e {
                    PutError::Refused(refusal) => {
                        format!(" ({})", refusal.help(&format!("flow run {}", plan.pipeline.document.name())))
                    }
                    PutError::Failed(_) => String::new(),
                };
                outcome.publish_errors.push(format!("publish {to}: {e}{help}"));
            }
        }
    }
}

/// The published places that hold something else than the plan, with the values that it has, would put there; those that
/// `current` says are right are not looked at.
pub fn strays(plan: &Plan, cache: &Cache, current: &dyn Fn(&Path) -> bool, decide: Decide<'_>) -> Result<Vec<Stray>, PublishError> {
    let root = &plan.pipeline.root;
    let record = Record::read(root)?;
    let mut found = Vec::new();
    for (to, id, port) in &plan.publish {
        let place = root.join(to);
        let Some(put) = record.places.get(&record::name_of(root, &place)).filter(|_| !current(&place)) else { continue };
        let Some(now) = State::at(cache, &place)? else { continue };
        let decision = decide(*id)?;
        let why = match output(&decision, port) {
            Some(artifact) if now.is(&artifact) => continue,
            _ if put.states.iter().all(|state| now.difference(state).is_some()) => "changed by hand since",
            Some(_) => "the plan has another result",
            None => "the plan's result is not made yet",
        };
        found.push(Stray { path: to.clone(), from: put.from.clone(), run: put.run.clone(), why: why.into() });
    }
    Ok(found)
}
