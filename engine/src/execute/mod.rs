//! One execution of one stage: lock, inputs, task, outputs, entry.

mod child;
mod collect;
mod local;

use std::collections::{BTreeMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use flow_cache::{
    ActionEntry, ActionKey, ActionProvenance, Artifact, Cache, CacheError, Commit, Entered, KeyLock, Lease, Lookup, Materialised,
};

use crate::check::{self, Difference};
use crate::command::end_marked;
use crate::events::{RunEvent, RunSink};
use crate::key::KeyParts;
use crate::outputs::VERDICT;
use crate::plan::{PlannedStage, SourceOf, json_pointer};
use crate::plugin::{InputArtifact, Provenance, Purity, StageError, Task};
use crate::run::options::{RunOptions, Worker};
use crate::stop::Stop;
use collect::Collector;

/// What every execution of a run shares.
#[derive(Clone)]
pub(crate) struct Env {
    pub cache: Arc<Cache>,
    pub lease: Arc<Lease>,
    pub sink: Arc<dyn RunSink>,
    pub stop: Arc<Stop>,
    pub options: Arc<RunOptions>,
    /// Its id.
    pub run: String,
    /// Actions that the remote cache knows and could not give.
    pub distrusted: Arc<Mutex<HashSet<ActionKey>>>,
}

impl Env {
    /// Forgets a result that the remote cache promised, so that it is made here.
    pub fn distrust(&self, key: &ActionKey) -> Result<(), CacheError> {
        self.distrusted.lock().unwrap_or_else(PoisonError::into_inner).insert(*key);
        self.cache.forget(key)
    }
    fn trusts(&self, key: &ActionKey) -> bool {
        !self.distrusted.lock().unwrap_or_else(PoisonError::into_inner).contains(key)
    }
}

/// One stage to execute.
pub(crate) struct Job {
    pub stage: PlannedStage,
    pub key: ActionKey,
    pub parts: KeyParts,
    /// Artifact and maker (`stage.port`) of each wire.
    pub inputs: Vec<(Artifact, String)>,
    /// Unkeyed parameters of the maker of each wire.
    pub operational: Vec<serde_json::Value>,
    /// Environment variables that the task must not see.
    pub withheld: Vec<String>,
    pub provenance: Vec<Provenance>,
    pub causes: Vec<String>,
    pub what: What,
    /// Output ports that the run itself or a person reads.
    pub wanted: Vec<String>,
}

/// Why a stage is executed.
#[derive(Clone, Debug)]
pub(crate) enum What {
    /// Its result is wanted and not there.
    Make,
    /// A person said so, whatever is there.
    Force,
    /// To compare with the result that is there.
    Check(Box<ActionEntry>),
}

/// An execution that succeeded, on its way into the cache.
pub(crate) struct Made {
    pub commit: Commit,
    pub seconds: f64,
    /// Taken away once it is committed.
    pub dir: PathBuf,
    /// Held until it is committed.
    pub lock: KeyLock,
}

pub(crate) enum Outcome {
    Made(Box<Made>),
    /// Another process made it while this one waited.
    Reused(Box<ActionEntry>),
    /// It was executed again, and this differs.
    Checked(Box<ActionEntry>, Option<Difference>),
    Failed(Failure),
}

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
    let lock: KeyLock = loop {
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
    if matches!(job.what, What::Make)
        && let Lookup::Hit(entry) = env.cache.lookup_leased(&job.key, &env.lease)?
    {
        return Ok(Outcome::Reused(entry));
    }
    if matches!(job.what, What::Make)
        && let Some(entry) = from_remote(job, env).await?
    {
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
            Ok(Finished::Same(entry, difference)) => return Ok(Outcome::Checked(entry, difference)),
            Ok(Finished::New { commit, seconds, dir }) => return Ok(Outcome::Made(Box::new(Made { commit: *commit, seconds, dir, lock }))),
            Err(failure) if failure.interrupted || failure.lost.is_some() || attempt > job.stage.retries => return Err(failure),
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

/// What the remote cache has of an action, with what is wanted of it brought here.
async fn from_remote(job: &Job, env: &Env) -> Result<Option<Box<ActionEntry>>, Failure> {
    if env.cache.remote().is_none() || !env.trusts(&job.key) {
        return Ok(None);
    }
    let (env, key, wanted) = (env.clone(), job.key, job.wanted.clone());
    blocking(move || {
        let Lookup::Hit(entry) = env.cache.lookup_remote(&key, &env.lease)? else { return Ok(None) };
        for artifact in wanted.iter().filter_map(|port| entry.outputs.get(port)) {
            match env.cache.fetch(artifact) {
                Ok(()) => {}
                Err(CacheError::NotFetched { .. }) => {
                    env.distrust(&key)?;
                    return Ok(None);
                }
                Err(e) => return Err(e.into()),
            }
        }
        Ok(Some(entry))
    })
    .await
}

enum Finished {
    New { commit: Box<Commit>, seconds: f64, dir: PathBuf },
    Same(Box<ActionEntry>, Option<Difference>),
}

async fn attempt(job: &Job, env: &Env) -> Result<Finished, Failure> {
    let started = Instant::now();
    let mut dir = env.cache.layout().task(&job.key);
    if matches!(job.what, What::Check(_)) {
        dir.set_extension("check");
    }
    let draft = draft(job, env, &dir);
    let (task, inputs) = {
        let (cache, dir, heavy) = (env.cache.clone(), dir.clone(), job.stage.kind.heavy());
        let placed: Vec<_> = job.inputs.iter().zip(&draft.inputs).map(|((artifact, _), input)| (*artifact, input.path.clone())).collect();
        blocking(move || prepare(&cache, &dir, draft, &placed, heavy)).await?
    };
    let mut collector = Collector::new(&job.stage.name, env.sink.clone());
    let ran = match (&env.options.worker, job.stage.kind.heavy()) {
        (Worker::Child(command), true) => child::run(command, &task, &dir, job.stage.timeout, &env.stop, &mut collector).await,
        _ => local::run(&job.stage.kind, &task, job.stage.timeout, &env.stop, &mut collector).await,
    };
    let tail = collector.tail();
    let ending = Ending {
        cache: env.cache.clone(),
        lease: env.lease.clone(),
        stage: job.stage.clone(),
        key: job.key,
        parts: job.parts.clone(),
        what: job.what.clone(),
        outputs: task.outputs.clone(),
        provenance: collector.provenance(0.0),
        started,
        dir,
    };
    blocking(move || {
        let changed = ending.cache.release(inputs)?;
        if ran.is_err() {
            // Half a result is for nobody; what the task keeps for its next attempt is in its state.
            for left in ["out", "work"] {
                ending.cache.remove(&ending.dir.join(left))?;
            }
        }
        ran.map_err(|failure| readable(failure, tail, &task.inputs))?;
        if let Some(digest) = changed.first() {
            let mut failure = Failure::new(format!("the task changed its input (object {})", digest.short()));
            failure.help = Some("inputs are read-only; the damaged object was removed and is made again on the next run".into());
            return Err(failure);
        }
        ending.finish()
    })
    .await
}

/// A task's failure in the words of the pipeline: inputs by the stage that made them, not by their place in the cache.
fn readable(mut failure: Failure, tail: Vec<String>, inputs: &[InputArtifact]) -> Failure {
    if failure.log.is_empty() {
        failure.log = tail;
    }
    for input in inputs {
        let path = input.path.to_string_lossy();
        let name = format!("`{}`", input.from);
        failure.message = failure.message.replace(path.as_ref(), &name);
        failure.help = failure.help.map(|h| h.replace(path.as_ref(), &name));
    }
    failure
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
        .zip(&job.operational)
        .map(|((wire, (artifact, from)), operational)| {
            let n = seen.entry(&wire.port).or_default();
            let name = if list(&wire.port) { format!("{}.{n}", wire.port) } else { wire.port.clone() };
            *n += 1;
            let path = env.cache.place_of(artifact, dir.join("in").join(name));
            InputArtifact {
                port: wire.port.clone(),
                path,
                ty: wire.ty.clone(),
                digest: artifact.digest.hex(),
                from: from.clone(),
                operational: operational.clone(),
            }
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
        dir: job.stage.dir.to_path_buf(),
        state: dir.join("state"),
        answers: env.cache.layout().answers(),
        withheld: job.withheld.clone(),
        device: env.options.device.clone(),
        threads: env.options.threads,
        provenance: job.provenance.clone(),
        run: if job.stage.is_measured() { env.run.clone() } else { String::new() },
    }
}

/// Clears what a dead attempt left, except its state, and puts the inputs in place.
fn prepare(cache: &Cache, dir: &Path, task: Task, placed: &[(Artifact, PathBuf)], heavy: bool) -> Result<(Task, Materialised), Failure> {
    let make = |path: &Path| std::fs::create_dir_all(path).map_err(CacheError::io("create directory", path));
    if dir.exists() {
        // A child whose parent was killed may live for a moment; it holds this lock.
        drop(KeyLock::wait(&dir.join("lock"))?);
        end_marked(dir);
        for left in ["in", "out", "work", "events.jsonl", "result.json", "stderr.log", "output.log"] {
            cache.remove(&dir.join(left))?;
        }
    }
    make(&dir.join("out"))?;
    for (i, (artifact, _)) in placed.iter().enumerate() {
        if let Err(e) = cache.fetch(artifact) {
            return Err(Failure { lost: matches!(e, CacheError::NotFetched { .. }).then_some(i), ..Failure::from(e) });
        }
    }
    let inputs = cache.materialise(placed)?;
    if heavy {
        make(&task.state)?;
        let file = dir.join("task.json");
        let text = serde_json::to_vec_pretty(&task).map_err(|e| Failure::new(format!("task.json: {e}")))?;
        std::fs::write(&file, text).map_err(CacheError::io("write", &file))?;
    }
    Ok((task, inputs))
}

/// What is left to do when a task succeeded.
struct Ending {
    cache: Arc<Cache>,
    lease: Arc<Lease>,
    stage: PlannedStage,
    key: ActionKey,
    parts: KeyParts,
    what: What,
    outputs: BTreeMap<String, PathBuf>,
    provenance: ActionProvenance,
    started: Instant,
    dir: PathBuf,
}

impl Ending {
    /// Moves the outputs into the store, all or none; or compares them with what is there.
    fn finish(mut self) -> Result<Finished, Failure> {
        self.refuse_bad_outputs()?;
        self.refuse_changed_sources()?;
        if let What::Check(entry) = self.what {
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
        let parts = serde_json::to_value(&self.parts).map_err(|e| Failure::new(format!("action entry: {e}")))?;
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

    fn refuse_bad_outputs(&self) -> Result<(), Failure> {
        for (port, path) in &self.outputs {
            if !path.exists() {
                return Err(Failure::new(format!("the task ended without creating its output `{port}`")));
            }
            if self.stage.kind.outputs().iter().any(|o| o.name == port && o.ty == VERDICT) {
                let verdict: Option<serde_json::Value> = std::fs::read(path).ok().and_then(|b| serde_json::from_slice(&b).ok());
                if verdict.as_ref().and_then(|v| v["accepted"].as_bool()).is_none() {
                    return Err(Failure::new(format!("output `{port}` is not a verdict: JSON with `accepted: true` or `false`")));
                }
            }
        }
        Ok(())
    }

    /// The key was made of files as they were; a result of other bytes must not stand under it.
    fn refuse_changed_sources(&self) -> Result<(), Failure> {
        for source in self.stage.sources.iter().filter(|s| !matches!(s.of, SourceOf::Env(_))) {
            let keyed = self.parts.params.pointer(&json_pointer(&source.at));
            if source.content(&self.cache)?.as_ref() != keyed {
                let what = source.shown(&self.stage.dir);
                let mut failure = Failure::new(format!("{what} changed while the stage ran"));
                failure.help = Some("run again: the result was thrown away, because it may be of either content".into());
                return Err(failure);
            }
        }
        Ok(())
    }
}

pub(crate) fn unix_now() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |d| d.as_secs())
}
