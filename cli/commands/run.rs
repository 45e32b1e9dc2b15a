//! `flow run`.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use flow_cache::{ActionFile, Cache, Commit, Uploader};
use flow_engine::Registry;
use flow_engine::memo::{self, Memo};
use flow_engine::plan::StageId;
use flow_engine::problem::Problem;
use flow_engine::run::options::{RunOptions, Worker, WorkerCommand};
use flow_engine::run::outcome::RunOutcome;
use flow_engine::run::run as run_plan;
use flow_engine::stop::Stop;
use serde_json::json;

use crate::args::RunArgs;
use crate::commands::{lock, teacher};
use crate::context::{Context, cache_dir_of, machine_of, threads};
use crate::display::amounts::bytes;
use crate::display::{self, json as json_lines, table};
use crate::failure::Failure;
use crate::forecast;
use crate::machine;
use crate::print::say;
use crate::profile::Profile;
use crate::signals::Listening;

pub fn run(registry: &Registry, args: &RunArgs) -> Result<u8, Failure> {
    json_lines::guard(args.json, || {
        let memo = memo_of(args)?;
        if let Some(name) = &memo
            && let Some(code) = replay(args, name)?
        {
            return Ok(code);
        }
        execute(registry, args, memo)
    })
}

/// Under which name this command's runs with nothing to do are remembered; `None` where it asks for more.
fn memo_of(args: &RunArgs) -> Result<Option<flow_cache::Digest>, Failure> {
    // What `--last` means changes from run to run.
    let more = args.pipeline.overrides.last || args.reask || args.check || args.locked || args.profile.is_some();
    if more || !args.force.is_empty() || !args.overwrite.is_empty() {
        return Ok(None);
    }
    let Some(file) = args.pipeline.pipeline.canonicalize().ok().and_then(|file| file.to_str().map(str::to_owned)) else { return Ok(None) };
    let over = &args.pipeline.overrides;
    let program = std::env::current_exe().and_then(std::fs::metadata).map(|m| flow_cache::Stat::of(&m)).ok();
    let parts = json!([file, over.vars, over.sets, over.device, threads(over.threads)?, args.targets, program]);
    Ok(Some(memo::name(&parts)))
}

fn replay(args: &RunArgs, name: &flow_cache::Digest) -> Result<Option<u8>, Failure> {
    let over = &args.pipeline.overrides;
    let dir = cache_dir_of(&args.pipeline.pipeline, over.cache_dir.as_ref())?;
    if !dir.join("index.db").exists() {
        return Ok(None);
    }
    let cache = flow_cache::Cache::open(&dir)?;
    let machine = machine_of(over.device.clone(), threads(over.threads)?, dir);
    let sink = display::choose(args.json, args.quiet, 0);
    let Some((outcome, root)) = Memo::replay(&cache, name, machine.as_ref(), sink.as_ref())? else { return Ok(None) };
    sink.close();
    Ok(Some(show(args, &outcome, &root)))
}

fn show(args: &RunArgs, outcome: &RunOutcome, root: &std::path::Path) -> u8 {
    if !args.json {
        table::print_outcome(outcome, root, args.quiet);
    }
    outcome.exit_code()
}

fn execute(registry: &Registry, args: &RunArgs, memo: Option<flow_cache::Digest>) -> Result<u8, Failure> {
    let context = Context::load(registry, &args.pipeline)?;
    let selected = context.plan.select(&args.targets)?;
    context.check_places(&selected, &args.overwrite)?;
    if let Some(file) = args.profile.as_ref().filter(|file| !Profile::may_replace(file)) {
        let problem = Problem::new(format!("--profile {}: a file is there that is no trace of a run", file.display()));
        return Err(problem.help("give another path").into());
    }
    let cache = context.cache()?;
    machine::check_device(&context.device)?;
    machine::check_room(&cache)?;
    if !(args.json || args.quiet) {
        foretell(args, &context, &selected)?;
    }
    let program = std::env::current_exe().map_err(|e| Failure::Broken(format!("cannot find flow's own executable: {e}")))?;
    let uploader = upload(&cache);
    let options = RunOptions {
        keep_going: args.keep_going,
        device: context.device.clone(),
        threads: context.threads,
        machine: context.machine(),
        worker: Worker::Child(WorkerCommand { program, args: vec!["__task".into()], env: Vec::new() }),
        pools: context.pools(),
        force: context.stages(&args.force)?,
        reask: if args.reask { teacher::askers(&context.plan) } else { BTreeSet::new() },
        check: args.check,
        locked: if args.locked { Some(lock::read(&context)?) } else { None },
        memo,
        overwrite: args.overwrite.clone(),
        committed: uploader.as_ref().map(|uploader| {
            let uploader = uploader.clone();
            let submit = move |c: Commit| uploader.submit(ActionFile { entry: c.entry, parts: c.parts });
            Arc::new(submit) as Arc<dyn Fn(Commit) + Send + Sync>
        }),
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|e| Failure::Broken(format!("cannot start the scheduler: {e}")))?;
    let stop = Arc::new(Stop::default());
    let width = selected.iter().map(|id| context.plan.stage(*id).name.len()).max().unwrap_or(0);
    let sink = display::choose(args.json, args.quiet, width);
    let profile = args.profile.as_ref().map(|_| Arc::new(Profile::default()));
    let listening = Listening::of(&stop, !args.json);
    let outcome = runtime.block_on(async {
        let sink: Arc<dyn flow_engine::events::RunSink> = match &profile {
            Some(profile) => Arc::new(profile.clone().beside(sink.clone())),
            None => sink.clone(),
        };
        run_plan(&context.plan, cache.clone(), &selected, options, sink, stop.clone()).await
    });
    drop(listening);
    // What the run left alone when it stopped (a server that does not answer) is not waited for.
    runtime.shutdown_background();
    let outcome = outcome?;
    sink.close();
    finish_upload(args, uploader, &cache);
    if let (Some(profile), Some(file)) = (profile, &args.profile) {
        profile.write(file).map_err(|e| Failure::Broken(format!("write {}: {e}", file.display())))?;
        if !args.json {
            say(&profile.critical_path(&context.plan, outcome.seconds));
        }
    }
    Ok(show(args, &outcome, &context.plan.pipeline.root))
}

/// Says what the stages that will be executed take, where their kinds can say it.
fn foretell(args: &RunArgs, context: &Context, selected: &[StageId]) -> Result<(), Failure> {
    let mut estimates = forecast::estimates(&context.plan, selected.iter().copied());
    if estimates.is_empty() {
        return Ok(());
    }
    let stages: Vec<StageId> = estimates.iter().map(|(id, _)| *id).collect();
    let mut forced = if args.check { stages.iter().copied().collect() } else { context.stages(&args.force)? };
    if args.reask {
        forced.extend(teacher::askers(&context.plan));
    }
    let decisions = context.preview(&context.plan.with_ancestors(&stages), &forced)?;
    let executed: BTreeSet<StageId> = decisions.into_iter().filter(|(_, d)| d.runs()).map(|(id, _)| id).collect();
    estimates.retain(|(id, _)| executed.contains(id));
    let forecast = context.forecast(estimates);
    if let Some(summary) = forecast.summary() {
        say(&summary);
    }
    forecast.notes().iter().for_each(|note| say(&format!("note: {note}")));
    Ok(())
}

/// How long a run waits at its end for results to be sent.
const UPLOAD: Duration = Duration::from_secs(600);

fn upload(cache: &Arc<Cache>) -> Option<Arc<Uploader>> {
    let remote = cache.remote().filter(|r| !r.is_read_only())?;
    Some(Arc::new(Uploader::start(remote.clone(), cache.clone())))
}

/// Waits for what is still being sent, says what was, and warns once if the remote made trouble.
fn finish_upload(args: &RunArgs, uploader: Option<Arc<Uploader>>, cache: &Cache) {
    // The run dropped its options, and with them the other holders.
    let summary = uploader.and_then(Arc::into_inner).map(|u| u.finish(UPLOAD));
    let quiet = args.json || args.quiet;
    match summary {
        Some(Some(s)) if s.actions > 0 && !quiet => {
            say(&format!("remote cache: sent {} results, {} objects, {}", s.actions, s.objects, bytes(s.bytes)));
        }
        Some(None) => say(&format!("warning: the remote cache did not take everything within {} s", UPLOAD.as_secs())),
        _ => {}
    }
    if let Some(trouble) = cache.trouble() {
        say(&format!("warning: {trouble}"));
    }
}
