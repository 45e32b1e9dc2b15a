//! `flow gc`, `flow verify`, `flow cache …`.

use std::io::{IsTerminal, Write};
use std::path::PathBuf;
use std::sync::Arc;

use flow_cache::{Cache, GcOptions, GcReport, Pin};
use flow_engine::Registry;
use flow_engine::clock::unix_now;
use flow_engine::preview::Decision;
use flow_engine::problem::Problem;
use serde_json::json;

use crate::args::{CacheArgs, CacheCommand, GcArgs, PipelineArgs, VerifyArgs};
use crate::context::{Context, cache_dir_here, open_remote, threads};
use crate::display::amounts::{ago, bytes};
use crate::failure::Failure;
use crate::print::{print, say};

fn open(args: &CacheArgs) -> Result<Cache, Failure> {
    let dir = match &args.cache_dir {
        Some(dir) => dir.clone(),
        None => cache_dir_here()?,
    };
    if !dir.is_dir() {
        let problem = Problem::new(format!("there is no cache at {}", dir.display()));
        return Err(problem.help("call it inside the project, or give --cache-dir").into());
    }
    Ok(Cache::open(&dir)?)
}

pub fn gc(args: &GcArgs) -> Result<u8, Failure> {
    let cache = open(&args.cache)?;
    let options = GcOptions { max_size: args.max_size, keep_runs: args.keep_runs, dry_run: args.dry_run };
    if !args.dry_run && !args.yes && !agreed(args, &cache.gc(&GcOptions { dry_run: true, ..options })?)? {
        print("nothing was removed");
        return Ok(0);
    }
    show(args, &cache.gc(&options)?, args.dry_run);
    Ok(0)
}

/// Shows what would go, and asks; where nobody can answer, nothing goes.
fn agreed(args: &GcArgs, report: &GcReport) -> Result<bool, Failure> {
    if report.actions + report.objects.count + report.runs + report.scraps == 0 {
        return Ok(true);
    }
    let asking = std::io::stdin().is_terminal() && std::io::stderr().is_terminal() && !args.cache.json;
    if !asking {
        let what =
            format!("{} results and {} objects ({}) would be removed", report.actions, report.objects.count, bytes(report.objects.bytes));
        return Err(Problem::new(what).help("--yes removes them without asking, --dry-run only says what would go").into());
    }
    show(args, report, true);
    let _ = write!(std::io::stderr(), "remove? [y/N] ");
    let mut answer = String::new();
    std::io::stdin().read_line(&mut answer).map_err(|e| Failure::Broken(format!("read the answer: {e}")))?;
    Ok(["y", "yes"].contains(&answer.trim().to_lowercase().as_str()))
}

fn show(args: &GcArgs, report: &GcReport, would: bool) {
    if args.cache.json {
        print(&json!(report).to_string());
    } else {
        let word = if would { "would remove" } else { "removed" };
        print(&format!(
            "{word} {} results, {} objects ({}), {} run records, {} scraps",
            report.actions,
            report.objects.count,
            bytes(report.objects.bytes),
            report.runs,
            report.scraps
        ));
        print(&format!(
            "kept {} results ({} held by pins or running processes), {} objects ({})",
            report.kept_actions,
            report.held_actions,
            report.kept_objects.count,
            bytes(report.kept_objects.bytes)
        ));
        if !report.fits {
            say("warning: what pins and running processes hold is larger than the size that was asked for");
        }
    }
}

pub fn verify(args: &VerifyArgs) -> Result<u8, Failure> {
    let cache = open(&args.cache)?;
    if let Some(url) = args.remote.as_deref().filter(|url| *url != "none") {
        cache.set_remote(Arc::new(open_remote(url, true)?));
    }
    let report = cache.verify(threads(args.threads)?)?;
    let lost = report.damaged.iter().any(|d| !report.healed.contains(d));
    let whole = !lost && report.missing.is_empty() && report.bad_entries.is_empty();
    if let Some(trouble) = cache.trouble() {
        say(&format!("warning: {trouble}"));
    }
    if args.cache.json {
        print(&json!(report).to_string());
    } else {
        print(&format!("{} objects read, {}", report.objects, bytes(report.bytes)));
        for digest in &report.damaged {
            print(&format!("damaged, removed: object {digest}"));
        }
        for digest in &report.healed {
            print(&format!("brought back from the remote cache: object {digest}"));
        }
        for digest in &report.missing {
            print(&format!("missing: object {digest}"));
        }
        for entry in &report.bad_entries {
            print(&format!("unreadable, removed: {entry}"));
        }
        for (key, stage) in &report.broken {
            print(&format!("runs again when it is wanted: {stage} ({})", key.0.short()));
        }
        print(if whole { "everything is whole" } else { "`flow run` makes anew what is wanted" });
    }
    Ok(if whole { 0 } else { 4 })
}

pub fn cache(registry: &Registry, command: &CacheCommand) -> Result<u8, Failure> {
    match command {
        CacheCommand::Pin { pipeline, stage, name } => pin(registry, pipeline, stage, name.as_ref()),
        CacheCommand::Unpin { name, cache } => {
            if !open(cache)?.unpin(name)? {
                return Err(Problem::new(format!("there is no pin `{name}`")).help("`flow cache pins` lists them").into());
            }
            print(&format!("unpinned {name}"));
            Ok(0)
        }
        CacheCommand::Pins(args) => {
            let pins = open(args)?.pins()?;
            if args.json {
                print(&json!(pins).to_string());
                return Ok(0);
            }
            for pin in pins {
                print(&format!("{}  {} of {}, {}, {}", pin.name, pin.stage, pin.pipeline, pin.key.0.short(), ago(pin.at)));
            }
            Ok(0)
        }
        CacheCommand::Du(args) => du(args),
    }
}

fn pin(registry: &Registry, args: &PipelineArgs, stage: &str, name: Option<&String>) -> Result<u8, Failure> {
    let context = Context::load(registry, args)?;
    let id = context.plan.find(stage)?;
    let Decision::Reuse { key, .. } = context.decision(id)? else {
        let problem = Problem::new(format!("`{stage}` is not made yet, or is out of date"));
        return Err(problem.help(format!("flow run {} {stage}", args.pipeline.display())).into());
    };
    let at = unix_now();
    let plain: String = stage.chars().map(|c| if c.is_ascii_alphanumeric() || "._-".contains(c) { c } else { '_' }).collect();
    let name = name.cloned().unwrap_or(plain);
    let file: &PathBuf = &context.plan.pipeline.file;
    context.cache()?.pin(&Pin { name: name.clone(), key, pipeline: file.display().to_string(), stage: stage.into(), at })?;
    print(&format!("pinned {stage} ({}) as {name}", key.0.short()));
    Ok(0)
}

fn du(args: &CacheArgs) -> Result<u8, Failure> {
    let usage = open(args)?.usage()?;
    if args.json {
        print(&json!(usage).to_string());
        return Ok(0);
    }
    let parts = [
        ("objects", usage.objects),
        ("actions", usage.actions),
        ("runs", usage.runs),
        ("tasks", usage.tasks),
        ("answers", usage.answers),
        ("scraps", usage.scraps),
        ("index", usage.index),
    ];
    for (name, amount) in parts {
        print(&format!("{name:8}  {:>10}  in {} files", bytes(amount.bytes), amount.count));
    }
    let mut stages: Vec<_> = usage.stages.iter().collect();
    stages.sort_by_key(|(_, (all, _))| std::cmp::Reverse(*all));
    if !stages.is_empty() {
        print("\nresults by stage: all, and what no other stage shares");
    }
    for (stage, (all, own)) in stages.into_iter().take(40) {
        print(&format!("{:>10}  {:>10}  {stage}", bytes(*all), bytes(*own)));
    }
    Ok(0)
}
