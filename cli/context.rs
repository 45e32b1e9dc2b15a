//! What most commands need: the plan, the cache, and the options from arguments and environment.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use flow_cache::{Artifact, Cache, CacheError, Remote};
use flow_engine::Registry;
use flow_engine::command::external;
use flow_engine::estimate::Estimate;
use flow_engine::key::MachineId;
use flow_engine::pipeline::{Overrides, Pipeline, RemoteDecl, project_root};
use flow_engine::plan::{Plan, StageId};
use flow_engine::preview::{self, Decision};
use flow_engine::problem::Problem;
use flow_engine::publish;

use serde_json::Value;

use crate::args::PipelineArgs;
use crate::failure::Failure;
use crate::forecast::{self, Forecast};
use crate::machine;
use crate::print::say;

/// A linked pipeline and where it is made.
pub struct Context {
    pub plan: Plan,
    /// The pipeline's file, as it was given.
    file: PathBuf,
    pub cache_dir: PathBuf,
    cache: OnceLock<Arc<Cache>>,
    remote: Option<RemoteDecl>,
    remote_set: AtomicBool,
    pub device: String,
    pub threads: usize,
}

impl Context {
    pub fn load(registry: &Registry, args: &PipelineArgs) -> Result<Self, Failure> {
        let overrides = assumed(args)?;
        let pipeline = Pipeline::load(&args.pipeline, &overrides)?;
        let cache_dir = args.overrides.cache_dir.clone().unwrap_or_else(|| pipeline.root.join(".flow"));
        if cache_dir.to_str().is_none() {
            let problem = Problem::new(format!("the cache's path {} is not UTF-8", cache_dir.display()));
            return Err(problem.help("give another with --cache-dir").into());
        }
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
        Ok(Self {
            plan,
            file: args.pipeline.clone(),
            cache_dir,
            cache,
            remote,
            remote_set: AtomicBool::new(false),
            device: args.overrides.device.clone(),
            threads,
        })
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
        Ok(preview::preview(&self.plan, &*self.cache()?, selected, force, self.machine().as_ref())?)
    }

    /// What these estimates mean on the device that is asked for.
    pub fn forecast(&self, estimates: Vec<(StageId, Estimate)>) -> Forecast {
        Forecast::of(&self.plan, estimates, || forecast::probe(&self.device, self.threads))
    }

    /// The decision for one stage, with what it needs taken into account.
    pub fn decision(&self, id: StageId) -> Result<Decision, Failure> {
        Ok(preview::decision(&self.plan, &*self.cache()?, id, self.machine().as_ref())?)
    }

    /// The present result of `stage` or `stage.port`, and its full name.
    pub fn made(&self, artifact: &str) -> Result<(String, Artifact), Failure> {
        let (id, port) = self.plan.output(artifact)?;
        let name = &self.plan.stage(id).name;
        let found = match self.decision(id)? {
            Decision::Reuse { entry, .. } => entry.outputs.get(&port).copied(),
            Decision::Execute { .. } => None,
        };
        let missing = || {
            let problem = Problem::new(format!("`{name}` is not made yet, or is out of date"));
            problem.help(format!("flow run {} {name}", self.file.display()))
        };
        Ok((format!("{name}.{port}"), found.ok_or_else(missing)?))
    }

    /// Refuses what would replace anything that `flow` did not publish.
    pub fn check_places(&self, selected: &[StageId], overwrite: &[PathBuf]) -> Result<(), Failure> {
        for path in overwrite {
            let root = &self.plan.pipeline.root;
            let named = |to: &str| publish::guard::names(path, root, &root.join(to));
            if !self.plan.publish.iter().any(|(to, ..)| named(to)) {
                let places = self.plan.publish.iter().map(|(to, ..)| format!("`{to}`")).collect::<Vec<_>>().join(", ");
                let help = if places.is_empty() { "the file has no `publish:`".into() } else { format!("published are {places}") };
                return Err(Problem::new(format!("--overwrite {}: nothing is published there", path.display())).help(help).into());
            }
        }
        if self.plan.publish.is_empty() {
            return Ok(());
        }
        let cache = self.cache()?;
        let machine = self.machine();
        let decide = |id| preview::decision(&self.plan, &cache, id, machine.as_ref());
        Ok(publish::check(&self.plan, &cache, selected, overwrite, &decide)?)
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

/// `--var` and `--set` of the command line, after those of the last run where `--last` asks for them.
pub fn assumed(args: &PipelineArgs) -> Result<Overrides, Failure> {
    let given = Overrides { vars: args.overrides.vars.clone(), sets: args.overrides.sets.clone() };
    if !args.overrides.last {
        return Ok(given);
    }
    let missing = || Problem::new(format!("--last: no run of {} is recorded", args.pipeline.display())).help("`flow log` lists the runs");
    let (_, last) = last_values(args)?.ok_or_else(missing)?;
    // What is given here wins over what was given then.
    let over = |then: Vec<(String, String)>, now: &[(String, String)]| {
        let kept = then.into_iter().filter(|(name, _)| now.iter().all(|(other, _)| other != name));
        kept.chain(now.iter().cloned()).collect()
    };
    Ok(Overrides { vars: over(last.vars, &given.vars), sets: over(last.sets, &given.sets) })
}

/// Id and values of the pipeline's last run.
fn last_values(args: &PipelineArgs) -> Result<Option<(String, Overrides)>, Failure> {
    let dir = cache_dir_of(&args.pipeline, args.overrides.cache_dir.as_ref())?;
    if !dir.join("index.db").exists() {
        return Ok(None);
    }
    let cache = Cache::open(&dir)?;
    let found = runs_of(&cache, &args.pipeline, 1)?.pop();
    let pairs = |value: &Value| serde_json::from_value(value.clone()).unwrap_or_default();
    Ok(found
        .map(|run| (run["id"].as_str().unwrap_or_default().to_owned(), Overrides { vars: pairs(&run["vars"]), sets: pairs(&run["sets"]) })))
}

/// The records of a pipeline's runs, the newest first.
pub fn runs_of(cache: &Cache, pipeline: &Path, most: usize) -> Result<Vec<Value>, Failure> {
    // A pipeline file that is gone may still have runs under the path that it had.
    let file = pipeline.canonicalize().unwrap_or_else(|_| pipeline.to_owned());
    Ok(cache.runs_of(&file.to_string_lossy(), most)?)
}

/// Says which values a command looks at results with, where there is more than one answer.
pub fn say_assumed(args: &PipelineArgs) -> Result<(), Failure> {
    let values = |o: &Overrides| {
        let vars = o.vars.iter().map(|(name, value)| format!("--var {name}={value}"));
        vars.chain(o.sets.iter().map(|(name, value)| format!("--set {name}={value}"))).collect::<Vec<_>>().join(" ")
    };
    let (now, last) = (values(&assumed(args)?), last_values(args)?.map(|(id, o)| (id, values(&o))));
    let own = if now.is_empty() { "the file's own values" } else { &now };
    match last {
        Some((id, then)) if then != now => {
            let then = if then.is_empty() { "the file's own values" } else { &then };
            say(&format!(
                "with {own}; the last run ({id}) was with {then}{}",
                if args.overrides.last { "" } else { " (--last takes these)" }
            ));
        }
        _ if !now.is_empty() => say(&format!("with {own}")),
        _ => {}
    }
    Ok(())
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

/// The cache directory of the project that the current directory belongs to.
pub fn cache_dir_here() -> Result<PathBuf, Failure> {
    let here = std::env::current_dir().map_err(|e| Failure::Broken(format!("current directory: {e}")))?;
    Ok(project_root(&here).join(".flow"))
}

/// Opens a remote cache. Object stores take their credentials and endpoints from the environment;
/// `FLOW_REMOTE_TIMEOUT` is how many seconds an answer may take.
pub fn open_remote(url: &str, read_only: bool) -> Result<Remote, Failure> {
    let remote = Remote::open(
        url,
        read_only,
        std::env::vars_os().filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?))),
    )?;
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
