//! `flow watch`: run, and run again when a file that the run read changes.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use flow_engine::Registry;
use flow_engine::plan::Origin;

use crate::args::RunArgs;
use crate::commands::run;
use crate::context::Context;
use crate::failure::Failure;
use crate::print::say;

const EVERY: Duration = Duration::from_millis(300);

pub fn watch(registry: &Registry, args: &RunArgs) -> Result<u8, Failure> {
    loop {
        let before = seen(registry, args);
        let code = match run::run(registry, args) {
            Ok(code) => code,
            Err(failure) => failure.report(),
        };
        if code == 130 {
            return Ok(code);
        }
        say(&format!("watching {} files; Ctrl-C ends", before.len()));
        while seen(registry, args) == before {
            std::thread::sleep(EVERY);
        }
    }
}

/// The files that a run reads and when each was changed; where the pipeline is wrong, its own file alone.
fn seen(registry: &Registry, args: &RunArgs) -> BTreeMap<PathBuf, Option<(SystemTime, u64)>> {
    let pipeline = &args.pipeline.pipeline;
    let mut files = vec![pipeline.canonicalize().unwrap_or_else(|_| pipeline.clone())];
    if let Ok(context) = Context::load(registry, &args.pipeline) {
        files.extend(context.plan.pipeline.files.iter().map(|(path, _)| path.clone()));
        for source in context.plan.stages.iter().flat_map(|s| &s.sources) {
            match &source.of {
                Origin::Path(path) => files.push(path.clone()),
                Origin::Glob(dir, pattern) => {
                    files.extend(flow_engine::sources::expand(dir, pattern).into_iter().flatten().map(|(_, path)| path));
                }
                Origin::Env(_) => {}
            }
        }
    }
    let stamp = |path: &PathBuf| std::fs::metadata(path).ok().and_then(|m| Some((m.modified().ok()?, m.len())));
    files.into_iter().map(|path| (path.clone(), stamp(&path))).collect()
}
