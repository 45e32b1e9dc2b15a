//! One file per command.

mod adopt;
mod bench;
mod cache;
mod chat;
mod compare;
mod convert;
mod devices;
mod eval;
mod explain;
mod generate;
mod get;
mod graph;
mod init;
mod kinds;
mod lock;
mod log;
mod plan;
mod run;
mod serve;
mod status;
mod teacher;
mod traces;
mod watch;

use clap::CommandFactory;
use flow_engine::Registry;

use crate::args::{Command, TeacherCommand};
use crate::failure::Failure;
use crate::print::print;

/// Runs a command and gives the exit code.
pub fn dispatch(registry: &Registry, command: Command) -> Result<u8, Failure> {
    match command {
        Command::Run(args) if args.dry_run => {
            plan::plan(registry, &args.pipeline, &args.targets, &args.force, &args.overwrite, args.reask, args.json)
        }
        Command::Run(args) => run::run(registry, &args),
        Command::Plan(args) => plan::plan(registry, &args.pipeline, &args.targets, &args.force, &[], false, args.json),
        Command::Explain(args) => explain::explain(registry, &args),
        Command::Status(args) => status::status(registry, &args),
        Command::Graph(args) => graph::graph(registry, &args),
        Command::Kinds(args) => kinds::kinds(registry, &args),
        Command::Devices(args) => devices::devices(&args),
        Command::Get(args) => get::get(registry, &args),
        Command::Schema => {
            print(&format!("{:#}", flow_engine::file_schema::of_file(registry)));
            Ok(0)
        }
        Command::Log(args) => log::log(&args),
        Command::Compare(args) => compare::compare(&args),
        Command::Lock(args) => lock::lock(registry, &args),
        Command::Adopt(args) => adopt::adopt(registry, &args),
        Command::Watch(args) => watch::watch(registry, &args),
        Command::Gc(args) => cache::gc(&args),
        Command::Verify(args) => cache::verify(&args),
        Command::Cache(command) => cache::cache(registry, &command),
        Command::Chat(args) => chat::chat(registry, &args),
        Command::Eval(args) => eval::eval(registry, &args),
        Command::Serve(args) => serve::serve(registry, &args),
        Command::Generate(args) => generate::generate(registry, &args),
        Command::Convert(args) => convert::convert(&args),
        Command::Teacher(TeacherCommand::Probe(args)) => teacher::probe(registry, &args),
        Command::Traces(command) => traces::traces(&command),
        Command::Bench(command) => bench::bench(&command),
        Command::Init(args) => init::init(&args),
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut crate::args::Cli::command(), "flow", &mut script);
            print(String::from_utf8_lossy(&script).trim_end());
            Ok(0)
        }
        Command::Task { dir } => Ok(flow_engine::worker::main(registry, &dir)),
    }
}
