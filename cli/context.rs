//! What most commands need: the plan, the cache, and the options from arguments and environment.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use flow_cache::{Cache, CacheError, Remote};
use flow_engine::Registry;
use flow_engine::command::external;
use flow_engine::key::MachineId;
use flow_engine::pipeline::{Overrides, Pipeline, RemoteDecl, project_root};
use flow_engine::plan::{Plan, StageId};
use flow_engine::preview::{Decision, preview};
use flow_engine::problem::Problem;

use crate::args::PipelineArgs;
use crate::failure::Failure;
use crate::machine;

/// A linked pipeline and where it is made.
pub struct Context {
    pub plan: Plan,
    pub cache_dir: PathBuf,
    cache: OnceLock<Arc<Cache>>,
    remote: Option<RemoteDecl>,
    remote_set: AtomicBool,
    pub device: String,
    pub threads: usize,
}

impl Context {
    pub fn load(registry: &Registry, args: &PipelineArgs) -> Result<Self, Failure> {
        let overrides = Overrides { vars: args.overrides.vars.clone(), sets: args.overrides.sets.clone() };
        let pipeline = Pipeline::load(&args.pipeline, &overrides)?;
        let cache_dir = args.overrides.cache_dir.clone().unwrap_or_else(|| pipeline.root.join(".flow"));
        flow_shaders::pipelines::keep_in(&cache_dir.join("pipelines"));
        let mut registry = registry.clone();
        let cache = OnceLock::new();
        external::register(&pipeline, &|| shared(&cache, &cache_dir).map_err(|e| Problem::new(e.to_string())), &mut registry)?;
        let plan = Plan::link(pipeline, &registry)?;
        let threads = threads(args.overrides.threads)?;
        let remote = match args.overrides.remote.as_deref() {
            None => plan.pipeline.remote.clone(),
            Some("none" | "") => None,
            Some(url) => Some(RemoteDecl { url: url.into(), read_only: plan.pipeline.remote.as_ref().is_some_and(|r| r.read_only) }),
        };
        Ok(Self { plan, cache_dir, cache, remote, remote_set: AtomicBool::new(false), device: args.overrides.device.clone(), threads })
    }

    pub fn cache(&self) -> Result<Arc<Cache>, Failure> {
        let cache = shared(&self.cache, &self.cache_dir)?;
        if let Some(remote) = &self.remote
            && !self.remote_set.swap(true, Ordering::Relaxed)
        {
            cache.set_remote(Arc::new(open_remote(&remote.url, remote.read_only)?));
        }
        Ok(cache)
    }

    /// Tokens per pool: what the file says, and the memory of this machine.
    pub fn pools(&self) -> BTreeMap<String, u64> {
        let mut pools = self.plan.pipeline.pools.clone();
        if let Some(bytes) = machine::memory() {
            pools.entry("memory".into()).or_insert(bytes);
        }
        pools
    }

    /// What a run of these stages would do.
    pub fn preview(&self, selected: &[StageId], force: &BTreeSet<StageId>) -> Result<Vec<(StageId, Decision)>, Failure> {
        Ok(preview(&self.plan, &*self.cache()?, selected, force, self.machine().as_ref())?)
    }

    /// The decision for one stage, with what it needs taken into account.
    pub fn decision(&self, id: StageId) -> Result<Decision, Failure> {
        let mut selected = self.plan.ancestors(id);
        selected.push(id);
        let found = self.preview(&selected, &BTreeSet::new())?.pop();
        found.map(|(_, decision)| decision).ok_or_else(|| Failure::Broken("a plan without its own stage".into()))
    }

    /// The stages that names or patterns mean.
    pub fn stages(&self, names: &[String]) -> Result<BTreeSet<StageId>, Failure> {
        let mut found = BTreeSet::new();
        for name in names {
            found.extend(self.plan.matching(name)?);
        }
        Ok(found)
    }

    /// The machine's identity, found out once and only when it is asked for.
    pub fn machine(&self) -> Arc<dyn Fn() -> MachineId + Send + Sync> {
        machine_of(self.device.clone(), self.threads, self.cache_dir.clone())
    }
}

/// The machine's identity, found out once and only when it is asked for.
pub fn machine_of(device: String, threads: usize, dir: PathBuf) -> Arc<dyn Fn() -> MachineId + Send + Sync> {
    let found = OnceLock::new();
    Arc::new(move || found.get_or_init(|| machine::identify(&device, threads, &dir)).clone())
}

/// CPU threads that tasks may use.
pub fn threads(given: Option<usize>) -> Result<usize, Failure> {
    match given {
        Some(0) => Err(Problem::new("--threads must be at least 1").into()),
        Some(n) => Ok(n),
        None => Ok(std::thread::available_parallelism().map_or(1, |n| n.get())),
    }
}

/// The cache, opened once.
fn shared(slot: &OnceLock<Arc<Cache>>, dir: &Path) -> Result<Arc<Cache>, CacheError> {
    if let Some(cache) = slot.get() {
        return Ok(cache.clone());
    }
    let cache = Arc::new(Cache::open(dir)?);
    Ok(slot.get_or_init(|| cache).clone())
}

/// The cache directory of a pipeline file that need not be valid.
pub fn cache_dir_of(pipeline: &Path, given: Option<&PathBuf>) -> Result<PathBuf, Failure> {
    if let Some(dir) = given {
        return Ok(dir.clone());
    }
    let file = pipeline.canonicalize().map_err(|e| Problem::new(format!("cannot read the pipeline {}: {e}", pipeline.display())))?;
    Ok(project_root(file.parent().unwrap_or(Path::new("."))).join(".flow"))
}

/// Opens a remote cache. Object stores take their credentials and endpoints from the environment;
/// `FLOW_REMOTE_TIMEOUT` is how many seconds an answer may take.
pub fn open_remote(url: &str, read_only: bool) -> Result<Remote, Failure> {
    let remote = Remote::open(url, read_only, std::env::vars())?;
    match std::env::var("FLOW_REMOTE_TIMEOUT") {
        Err(_) => Ok(remote),
        Ok(text) => match text.parse::<f64>() {
            Ok(seconds) if seconds > 0.0 && seconds <= 3600.0 => Ok(remote.patience(Duration::from_secs_f64(seconds))),
            _ => Err(Problem::new(format!("FLOW_REMOTE_TIMEOUT is `{text}`, not a number of seconds"))
                .help("take one above 0 and up to 3600")
                .into()),
        },
    }
}
