//! What a pipeline, the scheduler and the executors know of a kind: its ports, its parameters as JSON, and how to run it.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;

use serde_json::Value;

use crate::document::Path;
use crate::estimate::{Estimate, Wired};
use crate::plugin::{InputPort, OutputPort, Purity, StageError, TaskContext};

/// A [`Stage`](crate::plugin::Stage) behind a common interface.
pub trait Kind: Send + Sync {
    /// `family.verb`.
    fn name(&self) -> &str;
    /// Recipe revision.
    fn revision(&self) -> u32;
    /// One sentence.
    fn summary(&self) -> &str;
    /// Whether tasks run in a child process.
    fn heavy(&self) -> bool;
    /// Whether it needs the secrets that the makers of its inputs name.
    fn needs_secrets(&self) -> bool {
        false
    }
    /// Typed inputs.
    fn inputs(&self) -> &[InputPort];
    /// Typed outputs.
    fn outputs(&self) -> &[OutputPort];
    /// Further parts of the key of a stage with these canonical parameters.
    fn fingerprints(&self, params: &Value, wired: &[&str]) -> Vec<(String, String)>;
    /// JSON Schema of the parameters.
    fn schema(&self) -> &Value;
    /// Validates parameters and fills their defaults.
    fn check(&self, raw: Value) -> Result<Checked, Refused>;
    /// Whether canonical parameters and the inputs that are wired go together.
    fn wiring(&self, _params: &Value, _wired: &[&str]) -> Result<(), StageError> {
        Ok(())
    }
    /// What an execution with these canonical parameters will take, where the kind can say it.
    fn estimate(&self, _params: &Value, _wired: &Wired<'_>) -> Option<Estimate> {
        None
    }
    /// Runs a task whose parameters are canonical.
    fn run(&self, params: Value, ctx: &TaskContext) -> Result<(), StageError>;
    /// The kind as one stage uses it, where its ports depend on what the stage says: names of the inputs that are
    /// wired, whether each is a list, and the parameters.
    fn shape(&self, _inputs: &[(String, bool)], _with: &Value) -> Result<Option<Arc<dyn Kind>>, Refused> {
        Ok(None)
    }
    /// Whether a stage names its inputs itself.
    fn takes_any_input(&self) -> bool {
        false
    }
    /// Whether every output is pure, so that nothing measured may be read.
    fn is_pure(&self) -> bool {
        self.outputs().iter().all(|o| o.purity == Purity::Pure)
    }
}

/// Parameters that passed.
pub struct Checked {
    /// With defaults filled in.
    pub params: Value,
    /// Notes that `plan` prints.
    pub notes: Vec<String>,
}

/// Parameters that did not pass.
#[derive(Debug)]
pub struct Refused {
    /// Path inside `with:`.
    pub path: Vec<String>,
    /// Whether the place is the key (an unknown parameter), not its value.
    pub at_key: bool,
    /// What is wrong.
    pub message: String,
    /// What to do next.
    pub help: Option<String>,
}

/// Runs a task; a panic is an error like any other.
pub(crate) fn run_caught(kind: &dyn Kind, params: Value, context: &TaskContext) -> Result<(), StageError> {
    std::panic::catch_unwind(AssertUnwindSafe(|| kind.run(params, context))).unwrap_or_else(|panic| {
        let what =
            panic.downcast_ref::<String>().map(String::as_str).or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("no message");
        Err(StageError::new(format!("the stage panicked: {what}")).help("this is a bug in the stage; please report it with the log above"))
    })
}

/// `with.a.b` for messages.
pub fn show_path(path: &Path) -> String {
    let mut out = String::from("with");
    for part in path {
        if part.bytes().all(|b| b.is_ascii_digit()) {
            out.push_str(&format!("[{part}]"));
        } else {
            out.push('.');
            out.push_str(part);
        }
    }
    out
}
