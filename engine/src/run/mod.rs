//! A run from its first event to its last: the selected stages are executed, what they gave is read and published, and all of it
//! is recorded. What is asked for ([`options`]) and what came of it ([`outcome`]) lie below everything that takes part in between.

pub mod options;
pub mod outcome;

use std::sync::Arc;
use std::time::{Instant, SystemTime};

use flow_cache::{Cache, CacheError};
use serde_json::Value;

use crate::clock;
use crate::events::{RunEvent, RunSink};
use crate::execute::env::Env;
use crate::memo;
use crate::outputs::{self, SUMMARY, VERDICT};
use crate::plan::{Plan, StageId};
use crate::preview;
use crate::publish;
use crate::publish::guard::PublishError;
use crate::record;
use crate::schedule::states::{State, States};
use crate::schedule::{Schedule, Settled};
use crate::stop::Stop;
use options::RunOptions;
use outcome::{RunOutcome, StageReport};

/// What ends a run without an outcome; what becomes of single stages and places is in the outcome.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The cache is broken.
    #[error(transparent)]
    Cache(#[from] CacheError),
    /// What is published cannot be known.
    #[error(transparent)]
    Publish(#[from] PublishError),
}

/// Runs the selected stages, publishes, and records the run.
pub async fn run(
    plan: &Plan,
    cache: Arc<Cache>,
    selected: &[StageId],
    options: RunOptions,
    sink: Arc<dyn RunSink>,
    stop: Arc<Stop>,
) -> Result<RunOutcome, RunError> {
    let (began, started) = (Instant::now(), SystemTime::now());
    let id = clock::run_id(started);
    let names = selected.iter().map(|s| plan.stage(*s).name.clone()).collect();
    sink.emit(RunEvent::RunStarted { run: id.clone(), pipeline: plan.pipeline.name.clone(), stages: names });
    let options = Arc::new(options);
    let lease = Arc::new(cache.lease(&id)?);
    cache.clear_finished_tasks()?;
    let env = Env {
        cache: cache.clone(),
        lease: lease.clone(),
        sink: sink.clone(),
        stop: stop.clone(),
        options: options.clone(),
        run: id.clone(),
        distrusted: Arc::default(),
    };
    let sources = options.memo.and_then(|_| memo::Sources::of(plan, &cache));
    let Settled { states, checked } = Schedule::new(plan, selected, env).run().await?;
    let mut outcome = RunOutcome { run: id, interrupted: stop.asked(), ..RunOutcome::default() };
    outcome.checked = checked.into_iter().map(|(id, difference)| (plan.stage(id).name.clone(), difference)).collect();
    for &stage in selected {
        let name = plan.stage(stage).name.clone();
        let state = &states[stage];
        let list = match state {
            State::Done { reused: false, .. } => &mut outcome.executed,
            State::Done { .. } => &mut outcome.reused,
            State::Failed { .. } => &mut outcome.failed,
            State::Skipped { withheld: true, .. } => &mut outcome.withheld,
            _ => &mut outcome.skipped,
        };
        list.push(name.clone());
        let seconds = state.entry().map(|e| e.provenance.seconds);
        outcome.stages.push(StageReport { stage: name.clone(), state: state.word(), seconds });
        for warning in state.entry().into_iter().flat_map(|e| &e.provenance.warnings) {
            outcome.warnings.push((name.clone(), warning.clone()));
        }
    }
    read_outputs(plan, &cache, selected, &states, sink.as_ref(), &mut outcome)?;
    publish::publish(plan, &cache, &states, &options.overwrite, sink.as_ref(), &mut outcome);
    outcome.interrupted |= stop.asked();
    let decide = |id| preview::decision(plan, &cache, id, options.machine.as_ref());
    outcome.strays = publish::strays(plan, &cache, &|place| outcome.published.iter().any(|p| p == place), &decide)?;
    for stray in &outcome.strays {
        sink.emit(RunEvent::OfAnotherRun(stray.clone()));
    }
    drop(lease);
    outcome.seconds = began.elapsed().as_secs_f64();
    record::write(plan, &cache, selected, &states, &outcome, started)?;
    memo::remember(plan, &cache, selected, &states, &options, (&outcome, sources))?;
    sink.emit(outcome.finished());
    Ok(outcome)
}

/// Reads verdicts and summaries, of reused stages too.
fn read_outputs(
    plan: &Plan,
    cache: &Cache,
    selected: &[StageId],
    states: &States,
    sink: &dyn RunSink,
    outcome: &mut RunOutcome,
) -> Result<(), CacheError> {
    for &id in selected {
        let Some(entry) = states.entry(id) else { continue };
        let stage = plan.stage(id);
        for output in stage.kind.outputs() {
            let Some(artifact) = entry.outputs.get(&*output.name) else { continue };
            match &*output.ty {
                VERDICT => {
                    let verdict = outputs::read_json(cache, artifact)?;
                    if verdict["accepted"] == Value::Bool(false) {
                        let reasons: Vec<String> =
                            verdict["reasons"].as_array().into_iter().flatten().filter_map(|r| r.as_str().map(str::to_owned)).collect();
                        outcome.reasons.insert(stage.name.clone(), reasons.clone());
                        sink.emit(RunEvent::GateRefused { stage: stage.name.clone(), reasons });
                        outcome.refused.push(stage.name.clone());
                    }
                }
                SUMMARY => {
                    let summary = outputs::read_json(cache, artifact)?;
                    for (key, value) in summary["headline"].as_object().into_iter().flatten() {
                        let value = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
                        outcome.headline.push((key.clone(), value));
                    }
                }
                _ => {}
            }
        }
    }
    Ok(())
}
