//! One execution of one stage: lock, inputs, task, outputs, entry.

mod child;
mod collect;
mod local;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use flow_cache::{ActionEntry, ActionKey, ActionProvenance, Artifact, Cache, CacheError, KeyLock, Lookup, Materialised};

use crate::events::{RunEvent, RunSink};
use crate::key::KeyParts;
use crate::plan::PlannedStage;
use crate::plugin::{InputArtifact, Provenance, Task};
use crate::run::{RunOptions, Worker};
use crate::stop::Stop;
use collect::Collector;
pub(crate) use local::run_caught;

/// What every execution of a run shares.
#[derive(Clone)]
pub(crate) struct Env {
    pub cache: Arc<Cache>,
    pub sink: Arc<dyn RunSink>,
    pub stop: Arc<Stop>,
    pub options: Arc<RunOptions>,
}

/// One stage to execute.
pub(crate) struct Job {
    pub stage: PlannedStage,
    pub key: ActionKey,
    pub parts: KeyParts,
    /// Artifact and maker (`stage.port`) of each wire.
    pub inputs: Vec<(Artifact, String)>,
    pub provenance: Vec<Provenance>,
    pub causes: Vec<String>,
}

pub(crate) enum Outcome {
    Executed(Box<ActionEntry>),
    /// Another process made it while this one waited.
    Reused(Box<ActionEntry>),
    Failed(Failure),
}

/// How a task failed.
#[derive(Debug)]
pub(crate) struct Failure {
    pub message: String,
    pub help: Option<String>,
    pub log: Vec<String>,
    pub interrupted: bool,
}

impl Failure {
    pub fn new(message: impl Into<String>) -> Self {
        Self { message: message.into(), help: None, log: Vec::new(), interrupted: false }
    }
    pub fn interrupted() -> Self {
        Self { interrupted: true, ..Self::new("interrupted") }
    }
}

impl From<CacheError> for Failure {
    fn from(error: CacheError) -> Self {
        Self::new(error.to_string())
    }
}

/// Executes a stage with its retries.
pub(crate) async fn execute(job: Job, env: Env) -> Outcome {
    match locked(&job, &env).await {
        Ok(outcome) => outcome,
        Err(failure) => Outcome::Failed(failure),
    }
}

async fn locked(job: &Job, env: &Env) -> Result<Outcome, Failure> {
    let name = &job.stage.name;
    let mut told = false;
    let _lock: KeyLock = loop {
        if let Some(lock) = env.cache.try_lock(&job.key)? {
            break lock;
        }
        if !told {
            told = true;
            env.sink.emit(RunEvent::StageWaiting { stage: name.clone(), reason: "another process makes the same artifact".into() });
        }
        tokio::select! {
            () = tokio::time::sleep(Duration::from_millis(50)) => {}
            () = env.stop.reached(1) => return Err(Failure::interrupted()),
        }
    };
    // Whoever held the lock before may have made it.
    if let Lookup::Hit(entry) = env.cache.lookup(&job.key)? {
        return Ok(Outcome::Reused(entry));
    }
    let mut attempt = 1;
    loop {
        env.sink.emit(RunEvent::StageStarted {
            stage: name.clone(),
            kind: job.stage.kind.name().into(),
            key: job.key.to_string(),
            causes: job.causes.clone(),
            attempt,
        });
        match self::attempt(job, env).await {
            Ok(entry) => return Ok(Outcome::Executed(entry)),
            Err(failure) if failure.interrupted || attempt > job.stage.retries => return Err(failure),
            Err(failure) => {
                let wait = Duration::from_secs(1 << (attempt - 1).min(6));
                env.sink.emit(RunEvent::StageRetried { stage: name.clone(), message: failure.message, wait: wait.as_secs_f64() });
                tokio::select! {
                    () = tokio::time::sleep(wait) => {}
                    () = env.stop.reached(1) => return Err(Failure::interrupted()),
                }
                attempt += 1;
            }
        }
    }
}

async fn attempt(job: &Job, env: &Env) -> Result<Box<ActionEntry>, Failure> {
    let started = Instant::now();
    let dir = env.cache.layout().task(&job.key);
    let (task, inputs) = {
        let (cache, dir, draft) = (env.cache.clone(), dir.clone(), draft(job, env, &dir));
        let placed: Vec<_> = job.inputs.iter().zip(&draft.inputs).map(|((artifact, _), input)| (*artifact, input.path.clone())).collect();
        blocking(move || prepare(&cache, &dir, draft, &placed)).await?
    };
    let mut collector = Collector::new(&job.stage.name, env.sink.clone());
    let ran = match (&env.options.worker, job.stage.kind.heavy()) {
        (Worker::Child(command), true) => child::run(command, &dir, job.stage.timeout, &env.stop, &mut collector).await,
        _ => local::run(&job.stage.kind, &task, job.stage.timeout, &env.stop, &mut collector).await,
    };
    let changed = {
        let cache = env.cache.clone();
        blocking(move || Ok(cache.release(inputs)?)).await?
    };
    if let Err(mut failure) = ran {
        if failure.log.is_empty() {
            failure.log = collector.tail();
        }
        return Err(failure);
    }
    if !changed.is_empty() {
        let mut failure = Failure::new(format!("the task changed its input (object {})", changed[0].short()));
        failure.help = Some("inputs are read-only; the damaged object was removed and is made again on the next run".into());
        return Err(failure);
    }
    let seconds = started.elapsed().as_secs_f64();
    let entry = {
        let (cache, provenance) = (env.cache.clone(), collector.provenance(seconds));
        let (parts, key, kind, outputs) = (job.parts.clone(), job.key, job.stage.kind.clone(), task.outputs);
        blocking(move || {
            let verdicts: Vec<_> = kind.outputs().iter().filter(|o| o.ty == "Verdict").map(|o| o.name).collect();
            finish(&cache, key, kind.name(), &parts, &outputs, &verdicts, provenance, &dir)
        })
        .await?
    };
    env.sink.emit(RunEvent::StageFinished { stage: job.stage.name.clone(), seconds });
    Ok(entry)
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T, Failure> + Send + 'static) -> Result<T, Failure> {
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|e| Err(Failure::new(format!("the engine failed: {e}"))))
}

fn draft(job: &Job, env: &Env, dir: &Path) -> Task {
    let list = |port: &str| job.stage.kind.inputs().iter().any(|i| i.name == port && i.list);
    let mut seen: BTreeMap<&str, usize> = BTreeMap::new();
    let inputs = job
        .stage
        .inputs
        .iter()
        .zip(&job.inputs)
        .map(|(wire, (artifact, from))| {
            let n = seen.entry(&wire.port).or_default();
            let name = if list(&wire.port) { format!("{}.{n}", wire.port) } else { wire.port.clone() };
            *n += 1;
            let path = dir.join("in").join(name);
            InputArtifact { port: wire.port.clone(), path, ty: wire.ty.clone(), digest: artifact.digest.hex(), from: from.clone() }
        })
        .collect();
    Task {
        flow: 1,
        stage: job.stage.name.clone(),
        kind: job.stage.kind.name().into(),
        key: job.key.to_string(),
        params: job.stage.params.clone(),
        inputs,
        outputs: job.stage.kind.outputs().iter().map(|o| (o.name.to_owned(), dir.join("out").join(o.name))).collect(),
        state: dir.join("state"),
        device: env.options.device.clone(),
        threads: env.options.threads,
        provenance: job.provenance.clone(),
    }
}

/// Clears what a dead attempt left, except its state, and puts the inputs in place.
fn prepare(cache: &Cache, dir: &Path, task: Task, placed: &[(Artifact, PathBuf)]) -> Result<(Task, Materialised), Failure> {
    let make = |path: &Path| std::fs::create_dir_all(path).map_err(CacheError::io("create directory", path));
    make(dir)?;
    // A child whose parent was killed may live for a moment; it holds this lock.
    drop(KeyLock::wait(&dir.join("lock"))?);
    for left in ["in", "out", "events.jsonl", "result.json", "stderr.log"] {
        cache.remove(&dir.join(left))?;
    }
    make(&dir.join("out"))?;
    make(&task.state)?;
    let inputs = cache.materialise(&dir.join("in"), placed)?;
    let file = dir.join("task.json");
    let text = serde_json::to_vec_pretty(&task).map_err(|e| Failure::new(format!("task.json: {e}")))?;
    std::fs::write(&file, text).map_err(CacheError::io("write", &file))?;
    Ok((task, inputs))
}

/// Moves the outputs into the store, all or none, and records the action.
#[allow(clippy::too_many_arguments)]
fn finish(
    cache: &Cache,
    key: ActionKey,
    kind: &str,
    parts: &KeyParts,
    outputs: &BTreeMap<String, PathBuf>,
    verdicts: &[&str],
    provenance: ActionProvenance,
    dir: &Path,
) -> Result<Box<ActionEntry>, Failure> {
    for (port, path) in outputs {
        if !path.exists() {
            return Err(Failure::new(format!("the task ended without creating its output `{port}`")));
        }
        if verdicts.contains(&port.as_str()) {
            let verdict: Option<serde_json::Value> = std::fs::read(path).ok().and_then(|b| serde_json::from_slice(&b).ok());
            if verdict.as_ref().and_then(|v| v["accepted"].as_bool()).is_none() {
                return Err(Failure::new(format!("output `{port}` is not a verdict: JSON with `accepted: true` or `false`")));
            }
        }
    }
    let mut artifacts = BTreeMap::new();
    for (port, path) in outputs {
        artifacts.insert(port.clone(), cache.put(path)?);
    }
    let parts = serde_json::to_value(parts).map_err(|e| Failure::new(format!("action entry: {e}")))?;
    let entry = ActionEntry { format: flow_cache::action::FORMAT, key, kind: kind.into(), outputs: artifacts, parts, provenance };
    cache.commit(&entry)?;
    cache.remove(dir)?;
    Ok(Box::new(entry))
}

pub(crate) fn unix_now() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |d| d.as_secs())
}
