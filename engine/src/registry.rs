//! The kinds that a pipeline may use, their types erased.

use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock};

use serde::Deserialize as _;
use serde_json::Value;

use crate::estimate::{Estimate, Wired};
use crate::kind::{Checked, Kind, Refused};
use crate::plugin::{InputPort, OutputPort, Stage, StageError, TaskContext};
use crate::schema;

struct Erased<S> {
    stage: S,
    inputs: Vec<InputPort>,
    outputs: Vec<OutputPort>,
    schema: OnceLock<Value>,
}

impl<S: Stage> Kind for Erased<S> {
    fn name(&self) -> &str {
        S::KIND
    }
    fn revision(&self) -> u32 {
        S::REVISION
    }
    fn summary(&self) -> &str {
        S::SUMMARY
    }
    fn heavy(&self) -> bool {
        S::HEAVY
    }
    fn needs_secrets(&self) -> bool {
        S::NEEDS_SECRETS
    }
    fn inputs(&self) -> &[InputPort] {
        &self.inputs
    }
    fn outputs(&self) -> &[OutputPort] {
        &self.outputs
    }
    fn fingerprints(&self, params: &Value, wired: &[&str]) -> Vec<(String, String)> {
        // Canonical parameters fit: they were made of the type.
        let mut all = S::Params::deserialize(params).map_or_else(|_| Vec::new(), |p| self.stage.fingerprints(&p, wired));
        all.sort();
        all
    }
    fn schema(&self) -> &Value {
        self.schema.get_or_init(|| schemars::schema_for!(S::Params).to_value())
    }
    fn check(&self, raw: Value) -> Result<Checked, Refused> {
        schema::refuse_unknown(self.schema(), &raw)?;
        let params: S::Params = typed(raw)?;
        let notes = self.stage.check(&params).map_err(|e| Refused {
            path: split_path(&e.path),
            at_key: false,
            message: e.message,
            help: e.help,
        })?;
        let params = serde_json::to_value(&params).map_err(|e| Refused {
            path: Vec::new(),
            at_key: false,
            message: format!("parameters cannot be written as JSON: {e}"),
            help: None,
        })?;
        Ok(Checked { params, notes })
    }
    fn wiring(&self, params: &Value, wired: &[&str]) -> Result<(), StageError> {
        let params = S::Params::deserialize(params).map_err(|e| StageError::new(format!("parameters do not fit: {e}")))?;
        self.stage.wiring(&params, wired)
    }
    fn estimate(&self, params: &Value, wired: &Wired<'_>) -> Option<Estimate> {
        self.stage.estimate(&S::Params::deserialize(params).ok()?, wired)
    }
    fn run(&self, params: Value, ctx: &TaskContext) -> Result<(), StageError> {
        let params =
            serde_json::from_value(params).map_err(|e| StageError::new(format!("task.json holds parameters that do not fit: {e}")))?;
        self.stage.run(params, ctx)
    }
}

/// Parameters as a type, or which of them does not fit.
pub(crate) fn typed<T: serde::de::DeserializeOwned>(raw: Value) -> Result<T, Refused> {
    serde_path_to_error::deserialize(raw).map_err(|e| {
        let path = split_path(&e.path().to_string());
        let (message, help) = plain_words(&e.inner().to_string());
        Refused { path, at_key: false, message, help }
    })
}

fn split_path(path: &str) -> Vec<String> {
    let path = path.replace('[', ".").replace(']', "");
    path.split('.').filter(|p| !p.is_empty() && *p != "?").map(str::to_owned).collect()
}

/// serde's message without Rust's type names.
fn plain_words(message: &str) -> (String, Option<String>) {
    let mut text = message.to_owned();
    for (rust, words) in [("f64", "a number"), ("f32", "a number"), ("bool", "true or false"), ("boolean", "true or false")] {
        text = text.replace(&format!("expected {rust}"), &format!("expected {words}"));
        text = text.replace(&format!("expected a {rust}"), &format!("expected {words}"));
    }
    for rust in ["u8", "u16", "u32", "u64", "usize"] {
        text = text.replace(&format!("expected {rust}"), "expected a whole number, 0 or more");
    }
    for rust in ["i8", "i16", "i32", "i64", "isize"] {
        text = text.replace(&format!("expected {rust}"), "expected a whole number");
    }
    text = text.replace("floating point `", "`").replace("integer `", "`");
    (text, None)
}

/// Every kind by its name.
#[derive(Clone, Default)]
pub struct Registry {
    kinds: BTreeMap<String, Arc<dyn Kind>>,
}

impl Registry {
    /// A registry without kinds.
    pub fn new() -> Self {
        Self::default()
    }
    /// Adds a kind.
    pub fn register(&mut self, stage: impl Stage) -> &mut Self {
        let (inputs, outputs) = (stage.inputs(), stage.outputs());
        let erased = Erased { stage, inputs, outputs, schema: OnceLock::new() };
        self.kinds.insert(erased.name().to_owned(), Arc::new(erased));
        self
    }
    /// Adds a kind that is not a [`Stage`].
    pub fn register_kind(&mut self, kind: Arc<dyn Kind>) -> &mut Self {
        self.kinds.insert(kind.name().to_owned(), kind);
        self
    }
    /// Adds a kind, by value.
    #[must_use]
    pub fn with(mut self, stage: impl Stage) -> Self {
        self.register(stage);
        self
    }
    /// The kind of that name.
    pub fn get(&self, name: &str) -> Option<&Arc<dyn Kind>> {
        self.kinds.get(name)
    }
    /// All kinds, by name.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<dyn Kind>> {
        self.kinds.values()
    }
    /// All names.
    pub fn names(&self) -> impl Iterator<Item = &str> + Clone {
        self.kinds.keys().map(String::as_str)
    }
}
