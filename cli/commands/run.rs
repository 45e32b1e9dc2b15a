//! `flow run`.

use flow_engine::Registry;
use std::collections::BTreeSet;
use std::sync::Arc;

use flow_engine::run::{RunOptions, Worker, WorkerCommand, run as run_plan};
use flow_engine::stop::Stop;

use crate::args::RunArgs;
use crate::context::Context;
use crate::display::{self, json, table};
use crate::failure::Failure;

pub fn run(registry: &Registry, args: &RunArgs) -> Result<u8, Failure> {
    json::guard(args.json, || {
        let context = Context::load(registry, &args.pipeline)?;
        let selected = context.plan.select(&args.targets)?;
        let cache = context.cache()?;
        let program = std::env::current_exe().map_err(|e| Failure::Broken(format!("cannot find flow's own executable: {e}")))?;
        let options = RunOptions {
            keep_going: args.keep_going,
            device: context.device.clone(),
            threads: context.threads,
            machine: context.machine(),
            worker: Worker::Child(WorkerCommand { program, args: vec!["__task".into()], env: Vec::new() }),
            pools: context.plan.pipeline.pools.clone(),
            force: BTreeSet::new(),
            check: false,
            locked: None,
            committed: None,
        };
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(|e| Failure::Broken(format!("cannot start the scheduler: {e}")))?;
        let stop = Arc::new(Stop::default());
        let sink = display::choose(args.json, &context.plan, &selected);
        let outcome = runtime.block_on(async {
            let asked = stop.clone();
            let quiet = args.json;
            tokio::spawn(async move {
                while tokio::signal::ctrl_c().await.is_ok() {
                    asked.ask();
                    if !quiet {
                        let word = if asked.level() > 1 { "killing" } else { "stopping at the next checkpoint; Ctrl-C again kills" };
                        eprintln!("\n{word}");
                    }
                }
            });
            let terminated = stop.clone();
            tokio::spawn(async move {
                if let Ok(mut signal) = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate()) {
                    while signal.recv().await.is_some() {
                        terminated.ask();
                    }
                }
            });
            run_plan(&context.plan, cache, &selected, options, sink.clone(), stop.clone()).await
        })?;
        sink.close();
        if !args.json {
            table::print_outcome(&outcome, &context.plan.pipeline.root);
        }
        Ok(outcome.exit_code())
    })
}
