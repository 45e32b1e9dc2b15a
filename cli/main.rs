//! `flow`: from a YAML file to a trained, evaluated, exportable ternary language model.

use std::process::ExitCode;

fn main() -> ExitCode {
    flow_cli::main(&flow_stages::registry())
}
