//! The plugin contract: what a kind declares, and what a running task sees of the world.

use std::borrow::Cow;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::SystemTime;

use schemars::JsonSchema;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;

pub use crate::estimate::{Estimate, Wired};

/// Whether an output is a function of the action key or a measurement.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Purity {
    /// Byte-identical from run to run on the same device, and on every CPU.
    Pure,
    /// Speed, memory, timestamps: the key of a task that fills one holds the machine.
    Measured,
}

/// An input port of a kind; its texts are written in the kind, or come from a pipeline or a plugin.
#[derive(Clone, Debug)]
pub struct InputPort {
    /// Name in `in:`.
    pub name: Cow<'static, str>,
    /// Artifact types that fit; a list port usually takes several.
    pub types: Vec<Cow<'static, str>>,
    /// Whether the pipeline must wire it.
    pub required: bool,
    /// Whether it takes a list of artifacts.
    pub list: bool,
    /// One sentence for `flow kinds`.
    pub doc: Cow<'static, str>,
}

/// An output port of a kind.
#[derive(Clone, Debug)]
pub struct OutputPort {
    /// Name after the dot in `stage.port`.
    pub name: Cow<'static, str>,
    /// Artifact type, matched against [`InputPort::types`].
    pub ty: Cow<'static, str>,
    /// Pure or measured.
    pub purity: Purity,
    /// One sentence for `flow kinds`.
    pub doc: Cow<'static, str>,
}

impl InputPort {
    fn new(name: &'static str, types: &[&'static str], doc: &'static str) -> Self {
        let types = types.iter().map(|ty| Cow::Borrowed(*ty)).collect();
        Self { name: name.into(), types, required: true, list: false, doc: doc.into() }
    }
    /// A required single input.
    pub fn required(name: &'static str, types: &[&'static str], doc: &'static str) -> Self {
        Self::new(name, types, doc)
    }
    /// An input that the pipeline may leave out.
    pub fn optional(name: &'static str, types: &[&'static str], doc: &'static str) -> Self {
        Self { required: false, ..Self::new(name, types, doc) }
    }
    /// A required list of inputs.
    pub fn list(name: &'static str, types: &[&'static str], doc: &'static str) -> Self {
        Self { list: true, ..Self::new(name, types, doc) }
    }
}

impl OutputPort {
    fn new(name: &'static str, ty: &'static str, purity: Purity, doc: &'static str) -> Self {
        Self { name: name.into(), ty: ty.into(), purity, doc: doc.into() }
    }
    /// A pure output.
    pub fn pure(name: &'static str, ty: &'static str, doc: &'static str) -> Self {
        Self::new(name, ty, Purity::Pure, doc)
    }
    /// A measured output.
    pub fn measured(name: &'static str, ty: &'static str, doc: &'static str) -> Self {
        Self::new(name, ty, Purity::Measured, doc)
    }
}

/// A file whose *content* is part of the action key; in a task it is an absolute path.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(transparent)]
#[schemars(extend("x-flow" = "source-file"))]
pub struct SourceFile(pub PathBuf);

/// A directory whose *content* is part of the action key; in a task it is an absolute path.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(transparent)]
#[schemars(extend("x-flow" = "source-dir"))]
pub struct SourceDir(pub PathBuf);

/// A file or a directory whose *content* is part of the action key; in a task it is an absolute path.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(transparent)]
#[schemars(extend("x-flow" = "source-path"))]
pub struct SourcePath(pub PathBuf);

/// A path or glob whose files' *contents* are part of the action key; relative to the pipeline's folder.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(transparent)]
#[schemars(extend("x-flow" = "source-glob"))]
pub struct SourceGlob(pub String);

/// Why a parameter combination cannot work, found at plan time.
#[derive(Clone, Debug)]
pub struct ParamError {
    /// Path inside `with:`, e.g. `vocab_size`.
    pub path: String,
    /// What is wrong and what was expected.
    pub message: String,
    /// What to do next.
    pub help: Option<String>,
}

/// What a built-in kind implements. `Params` must derive `JsonSchema`, `Serialize`, `Deserialize`,
/// use `#[serde(deny_unknown_fields)]`, and give every optional field a default.
pub trait Stage: Send + Sync + 'static {
    /// The parameters under `with:`.
    type Params: DeserializeOwned + Serialize + JsonSchema;
    /// `family.verb`.
    const KIND: &'static str;
    /// Recipe revision: raise it whenever the same inputs would give other bytes.
    const REVISION: u32;
    /// One sentence for `flow kinds`.
    const SUMMARY: &'static str;
    /// Heavy stages run in a child process, so that a crash or an out-of-memory kill fails them alone.
    const HEAVY: bool = false;
    /// Whether it needs the secrets that the makers of its inputs name; the variables of all others are withheld.
    const NEEDS_SECRETS: bool = false;
    /// Typed inputs.
    fn inputs(&self) -> Vec<InputPort>;
    /// Typed outputs; an output is a file or a directory.
    fn outputs(&self) -> Vec<OutputPort>;
    /// Further parts of the key, such as the fingerprints of the kernels that a stage with these parameters and inputs runs:
    /// (name, value).
    fn fingerprints(&self, _params: &Self::Params, _wired: &[&str]) -> Vec<(String, String)> {
        Vec::new()
    }
    /// Ranges and combinations that the schema cannot say. `Ok` carries notes that `plan` prints (degradations).
    fn check(&self, _params: &Self::Params) -> Result<Vec<String>, ParamError> {
        Ok(Vec::new())
    }
    /// Whether the inputs that are wired go together and with the parameters, where ports alone cannot say it.
    fn wiring(&self, _params: &Self::Params, _wired: &[&str]) -> Result<(), StageError> {
        Ok(())
    }
    /// What an execution will take, where that can be said without one and without reading what is large.
    fn estimate(&self, _params: &Self::Params, _wired: &Wired<'_>) -> Option<Estimate> {
        None
    }
    /// Computes every output port from the inputs and parameters.
    fn run(&self, params: Self::Params, ctx: &TaskContext) -> Result<(), StageError>;
}

/// The failure of a stage: what went wrong, where, and what to do next.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct StageError {
    /// What is wrong, with file, row and field where there are some.
    pub message: String,
    /// What to do next.
    pub help: Option<String>,
    /// Whether the task stopped because it was asked to (Ctrl-C), with its state kept.
    pub interrupted: bool,
}

impl StageError {
    /// An error with its message.
    pub fn new(message: impl Into<String>) -> Self {
        Self { message: message.into(), help: None, interrupted: false }
    }
    /// Adds what to do next.
    #[must_use]
    pub fn help(mut self, help: impl Into<String>) -> Self {
        self.help = Some(help.into());
        self
    }
    /// The error of a task that was asked to stop.
    pub fn interrupted() -> Self {
        Self { message: "interrupted".into(), help: None, interrupted: true }
    }
    /// An I/O error with what was being done to which path.
    pub fn io(doing: &str, path: &Path, error: &std::io::Error) -> Self {
        Self::new(format!("{doing} {}: {error}", path.display()))
    }
}

/// A library's error, with what it says to do next.
impl<E: miette::Diagnostic> From<E> for StageError {
    fn from(error: E) -> Self {
        let help = error.help().map(|h| h.to_string());
        Self { help, ..Self::new(error.to_string()) }
    }
}

/// One artifact on an input port.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct InputArtifact {
    /// Input port.
    pub port: String,
    /// Where to read it; read-only.
    pub path: PathBuf,
    /// Artifact type.
    pub ty: String,
    /// blake3 of its content, hex.
    pub digest: String,
    /// `stage.port` that made it.
    pub from: String,
    /// The maker's parameters that never enter a key, as the pipeline says now: prices, limits, the names of credentials.
    /// What reads the artifact may follow them as it follows such parameters of its own: never in the bytes it makes.
    #[serde(default, skip_serializing_if = "Value::is_null")]
    pub operational: Value,
}

/// How an ancestor's artifact came to be: measured, outside the key, for reports only.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Provenance {
    /// Stage name in the pipeline.
    pub stage: String,
    /// Kind.
    pub kind: String,
    /// Stages that it reads.
    pub after: Vec<String>,
    /// Wall seconds of the execution that made the outputs.
    pub seconds: f64,
    /// Whether this run reused it.
    pub reused: bool,
    /// Device that made it.
    pub device: String,
    /// Unix seconds when the execution ended.
    pub finished: u64,
    /// Last value of every metric that it reported.
    pub metrics: std::collections::BTreeMap<String, f64>,
}

/// `task.json`: everything that one execution needs to know.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Task {
    /// Contract version, 1.
    pub flow: u32,
    /// Stage name in the pipeline.
    pub stage: String,
    /// Kind.
    pub kind: String,
    /// Action key, hex.
    pub key: String,
    /// Canonical parameters, source paths made absolute.
    pub params: Value,
    /// Input artifacts in port order.
    pub inputs: Vec<InputArtifact>,
    /// Output port name → path that the task must create (file or directory).
    pub outputs: std::collections::BTreeMap<String, PathBuf>,
    /// Folder of the pipeline file: source paths and globs start there.
    #[serde(default)]
    pub dir: PathBuf,
    /// Private resumable state; survives a crash, handed back for the same key, deleted on success.
    pub state: PathBuf,
    /// The cache's `answers/`: paid answers, kept by what was asked, shared by all tasks.
    #[serde(default)]
    pub answers: PathBuf,
    /// Environment variables with other stages' secrets, which nothing that the task starts may inherit.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub withheld: Vec<String>,
    /// `auto`, `gpu`, `cpu` or an adapter name.
    pub device: String,
    /// CPU threads that the task may use.
    pub threads: usize,
    /// Ancestors in the DAG, topological order; empty where every output is pure.
    pub provenance: Vec<Provenance>,
    /// The run that executes it; empty where every output is pure, as these are no function of it.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub run: String,
}

/// What a task tells while it runs; one JSON object per line in `events.jsonl`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum TaskEvent {
    /// Work done of a total, in `unit`.
    Progress {
        /// Units done.
        done: u64,
        /// Units in all.
        total: u64,
        /// `tokens`, `rows`, `bytes`, …
        unit: String,
    },
    /// A measurement; the last value per name goes into the provenance.
    Metric {
        /// Name, e.g. `tokens_per_second`.
        name: String,
        /// Value.
        value: f64,
    },
    /// A line for the log.
    Log {
        /// Text.
        message: String,
    },
    /// Something that the person should read at the end of the run.
    Warning {
        /// Text.
        message: String,
    },
    /// Which device computes (adapter name or CPU).
    Device {
        /// Name.
        name: String,
    },
}

/// Where a task's events go.
pub trait EventSink: Send + Sync {
    /// Takes one event; must not block for long.
    fn emit(&self, event: TaskEvent);
}

/// What a running task sees: its description, its events, the clock, secrets, and whether it should stop.
#[derive(Clone)]
pub struct TaskContext {
    task: Arc<Task>,
    sink: Arc<dyn EventSink>,
    stop: Arc<AtomicBool>,
}

impl TaskContext {
    /// Wraps a task for execution.
    pub fn new(task: Task, sink: Arc<dyn EventSink>, stop: Arc<AtomicBool>) -> Self {
        Self { task: Arc::new(task), sink, stop }
    }
    /// The whole description.
    pub fn task(&self) -> &Task {
        &self.task
    }
    /// Path of the one artifact on a required port.
    pub fn input(&self, port: &str) -> Result<&Path, StageError> {
        self.input_opt(port).ok_or_else(|| StageError::new(format!("input `{port}` is not wired")))
    }
    /// Path of the artifact on an optional port.
    pub fn input_opt(&self, port: &str) -> Option<&Path> {
        self.task.inputs.iter().find(|i| i.port == port).map(|i| i.path.as_path())
    }
    /// All artifacts on a list port, in the order of the pipeline file.
    pub fn inputs<'a>(&'a self, port: &'a str) -> impl Iterator<Item = &'a InputArtifact> {
        self.task.inputs.iter().filter(move |i| i.port == port)
    }
    /// Path at which the stage must create output `port`.
    pub fn output(&self, port: &str) -> Result<&Path, StageError> {
        self.task
            .outputs
            .get(port)
            .map(PathBuf::as_path)
            .ok_or_else(|| StageError::new(format!("kind {} declares no output `{port}`", self.task.kind)))
    }
    /// The task's own directory: everything that it writes lies below.
    pub fn task_dir(&self) -> &Path {
        self.task.state.parent().unwrap_or(&self.task.state)
    }
    /// Folder of the pipeline file.
    pub fn dir(&self) -> &Path {
        &self.task.dir
    }
    /// Directory for resumable state; exists.
    pub fn state_dir(&self) -> &Path {
        &self.task.state
    }
    /// Where paid answers are kept; may not exist yet.
    pub fn answers_dir(&self) -> &Path {
        &self.task.answers
    }
    /// The unkeyed parameters of the stage that made the artifact on `port`; null where there is none.
    pub fn operational(&self, port: &str) -> &Value {
        self.task.inputs.iter().find(|i| i.port == port).map_or(&Value::Null, |i| &i.operational)
    }
    /// Device that the run asks for (`auto`, `gpu`, `cpu`, adapter name).
    pub fn device(&self) -> &str {
        &self.task.device
    }
    /// CPU threads to use.
    pub fn threads(&self) -> usize {
        self.task.threads
    }
    /// Passes an event on.
    pub fn tell(&self, event: TaskEvent) {
        self.sink.emit(event);
    }
    /// Reports progress.
    pub fn progress(&self, done: u64, total: u64, unit: &str) {
        self.sink.emit(TaskEvent::Progress { done, total, unit: unit.into() });
    }
    /// Reports a measurement (kept as provenance, never in a pure output).
    pub fn metric(&self, name: &str, value: f64) {
        self.sink.emit(TaskEvent::Metric { name: name.into(), value });
    }
    /// Writes a log line.
    pub fn log(&self, message: impl Into<String>) {
        self.sink.emit(TaskEvent::Log { message: message.into() });
    }
    /// Says something that the person should read at the end.
    pub fn warn(&self, message: impl Into<String>) {
        self.sink.emit(TaskEvent::Warning { message: message.into() });
    }
    /// Names the device that computes.
    pub fn computes_on(&self, name: &str) {
        self.sink.emit(TaskEvent::Device { name: name.into() });
    }
    /// Whether the run was asked to stop: checkpoint into [`Self::state_dir`] and return [`StageError::interrupted`].
    pub fn should_stop(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }
    /// Wall clock, for measured outputs only.
    pub fn now(&self) -> SystemTime {
        SystemTime::now()
    }
    /// A secret by the name of its environment variable; never put it into an output, an event or an error.
    pub fn secret(&self, variable: &str) -> Result<String, StageError> {
        std::env::var(variable).map_err(|_| {
            StageError::new(format!("environment variable {variable} is not set"))
                .help(format!("export {variable}=… before the run; flow never stores it"))
        })
    }
}
