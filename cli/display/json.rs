//! `--json`: events as JSON lines on standard output.

use flow_engine::events::RunEvent;
use serde_json::json;

use crate::failure::Failure;
use crate::print::print;

/// Prints an event.
pub fn line(event: &RunEvent) {
    if let Ok(text) = serde_json::to_string(event) {
        print(&text);
    }
}

/// Runs a command; with `--json` its failure is a JSON line too.
pub fn guard(as_json: bool, command: impl FnOnce() -> Result<u8, Failure>) -> Result<u8, Failure> {
    let result = command();
    if as_json && let Err(failure) = &result {
        print(&json!({ "event": "error", "messages": failure.messages(), "exit_code": failure.code() }).to_string());
    }
    result
}
