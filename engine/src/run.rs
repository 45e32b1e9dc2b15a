//! A run: what is asked for, how, and what came of it.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Instant, SystemTime};

use flow_cache::{ActionKey, Artifact, Cache, CacheError, Commit, Digest};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::check::Difference;
use crate::events::{RunEvent, RunSink};
use crate::execute::Env;
use crate::key::MachineId;
use crate::memo;
use crate::plan::{Plan, StageId};
use crate::plugin::Purity;
use crate::preview;
use crate::publish::{self, Stray};
use crate::record;
use crate::schedule::{Schedule, Settled, State};
use crate::stop::Stop;

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

/// What became of a stage.
#[derive(Clone, Debug)]
pub struct StageReport {
    /// Stage name.
    pub stage: String,
    /// Its state.
    pub state: &'static str,
    /// Wall seconds of the execution that made it.
    pub seconds: Option<f64>,
}

/// What came of a run.
#[derive(Clone, Debug, Default)]
pub struct RunOutcome {
    /// Run id.
    pub run: String,
    /// Stages in topological order.
    pub stages: Vec<StageReport>,
    /// Stages that ran and succeeded.
    pub executed: Vec<String>,
    /// Stages whose results were reused.
    pub reused: Vec<String>,
    /// Stages that failed.
    pub failed: Vec<String>,
    /// Stages that were not tried.
    pub skipped: Vec<String>,
    /// Gates that refused.
    pub refused: Vec<String>,
    /// Why each of them refused.
    pub reasons: BTreeMap<String, Vec<String>>,
    /// Stages that a refused gate withholds.
    pub withheld: Vec<String>,
    /// With `check`: every stage that was executed again, and what differs.
    pub checked: Vec<(String, Option<Difference>)>,
    /// `key: value` lines of outputs of type `Summary`.
    pub headline: Vec<(String, String)>,
    /// Published paths.
    pub published: Vec<PathBuf>,
    /// Problems with publishing.
    pub publish_errors: Vec<String>,
    /// Whether one of them is a place that is not flow's.
    pub publish_refused: bool,
    /// Published places that are of another run.
    pub strays: Vec<Stray>,
    /// Warnings of all stages: stage and text.
    pub warnings: Vec<(String, String)>,
    /// Whether a person asked to stop.
    pub interrupted: bool,
    /// Wall seconds.
    pub seconds: f64,
}

impl RunOutcome {
    /// Whether everything is there and no gate refused.
    pub fn ok(&self) -> bool {
        self.exit_code() == 0
    }
    /// Stages whose result came out different.
    pub fn different(&self) -> impl Iterator<Item = &str> {
        self.checked.iter().filter(|(_, d)| d.is_some()).map(|(stage, _)| stage.as_str())
    }
    /// The last event of the run.
    pub(crate) fn finished(&self) -> RunEvent {
        RunEvent::RunFinished {
            ok: self.ok(),
            executed: self.executed.clone(),
            reused: self.reused.clone(),
            failed: self.failed.clone(),
            skipped: self.skipped.clone(),
            refused: self.refused.clone(),
            reasons: self.reasons.clone(),
            withheld: self.withheld.clone(),
            different: self.different().map(str::to_owned).collect(),
            interrupted: self.interrupted,
            seconds: self.seconds,
        }
    }
    /// The exit code of the process.
    pub fn exit_code(&self) -> u8 {
        if self.interrupted {
            130
        } else if !self.failed.is_empty() || !self.skipped.is_empty() || self.different().next().is_some() {
            1
        } else if self.publish_refused {
            2
        } else if !self.publish_errors.is_empty() {
            4
        } else if !self.refused.is_empty() {
            3
        } else {
            0
        }
    }
}

/// Runs the selected stages, publishes, and records the run.
pub async fn run(
    plan: &Plan,
    cache: Arc<Cache>,
    selected: &[StageId],
    options: RunOptions,
    sink: Arc<dyn RunSink>,
    stop: Arc<Stop>,
) -> Result<RunOutcome, CacheError> {
    let (began, started) = (Instant::now(), SystemTime::now());
    let id = record::run_id(started);
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
        let state = &states[stage.0];
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
    publish::publish(plan, &cache, &states, &options.overwrite, sink.as_ref(), &mut outcome)?;
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
    states: &[State],
    sink: &dyn RunSink,
    outcome: &mut RunOutcome,
) -> Result<(), CacheError> {
    for &id in selected {
        let Some(entry) = states[id.0].entry() else { continue };
        let stage = plan.stage(id);
        for output in stage.kind.outputs() {
            let Some(artifact) = entry.outputs.get(output.name) else { continue };
            match output.ty {
                "Verdict" => {
                    let verdict = read_json(cache, artifact)?;
                    if verdict["accepted"] == Value::Bool(false) {
                        let reasons: Vec<String> =
                            verdict["reasons"].as_array().into_iter().flatten().filter_map(|r| r.as_str().map(str::to_owned)).collect();
                        outcome.reasons.insert(stage.name.clone(), reasons.clone());
                        sink.emit(RunEvent::GateRefused { stage: stage.name.clone(), reasons });
                        outcome.refused.push(stage.name.clone());
                    }
                }
                "Summary" => {
                    let summary = read_json(cache, artifact)?;
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

pub(crate) fn read_json(cache: &Cache, artifact: &Artifact) -> Result<Value, CacheError> {
    let path = cache.object_path(artifact)?;
    let bytes = std::fs::read(&path).map_err(CacheError::io("read", &path))?;
    Ok(serde_json::from_slice(&bytes).unwrap_or_default())
}

/// Whether any selected stage measures, so that the machine matters.
pub fn measures(plan: &Plan, selected: &[StageId]) -> bool {
    selected.iter().any(|id| plan.stage(*id).kind.outputs().iter().any(|o| o.purity == Purity::Measured))
}
