//! The command line of `flow`, over any registry of kinds.
//!
//! [`main`] parses arguments (`args`), runs one command (`commands`) in its context (`context`: plan, cache,
//! options; `machine`: who measures; `forecast`: what a run will take; `models`: the model that a command is given; `signals`), shows what happens (`display`, `profile`) and reports failures (`failure`). All of
//! it prints through `print`, the lowest.
//! `flow` itself passes the built-in kinds; the tests pass small ones.
mod args;
mod commands;
mod context;
mod display;
mod failure;
mod forecast;
mod machine;
mod models;
mod print;
mod profile;
mod signals;

use std::process::ExitCode;

use clap::Parser;
use flow_engine::Registry;

/// Parses the command line, runs the command, and gives the exit code.
pub fn main(registry: &Registry) -> ExitCode {
    let cli = args::Cli::parse();
    tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .with_env_filter(tracing_subscriber::EnvFilter::try_from_env("FLOW_LOG").unwrap_or_else(|_| "warn".into()))
        .without_time()
        .init();
    // Commands are no kind of the registry's own crate: every `flow` has them.
    let mut registry = registry.clone();
    flow_engine::command::shell::register(&mut registry);
    match commands::dispatch(&registry, cli.command) {
        Ok(code) => ExitCode::from(code),
        Err(failure) => ExitCode::from(failure.report()),
    }
}
