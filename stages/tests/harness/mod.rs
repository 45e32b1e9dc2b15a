//! Runs a kind outside the engine.
#![allow(dead_code)]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use flow_engine::plugin::{EventSink, InputArtifact, Stage, StageError, Task, TaskContext, TaskEvent};
use flow_lm::config::{ModelConfig, Preset, Role, Weights};

#[derive(Default)]
pub struct Events(pub Mutex<Vec<TaskEvent>>);

/// Asks the stage to stop once it has told of progress so many times.
struct StopAfter(AtomicUsize, Arc<AtomicBool>);

impl EventSink for StopAfter {
    fn emit(&self, event: TaskEvent) {
        if matches!(event, TaskEvent::Progress { .. }) && self.0.fetch_sub(1, Ordering::Relaxed) == 1 {
            self.1.store(true, Ordering::Relaxed);
        }
    }
}

impl EventSink for Events {
    fn emit(&self, event: TaskEvent) {
        self.0.lock().expect("lock").push(event);
    }
}

/// Runs `stage` with `(port, type, path)` inputs; outputs go to `dir/<port>`.
pub fn run<S: Stage>(
    stage: &S,
    params: serde_json::Value,
    inputs: &[(&str, &str, &Path)],
    dir: &Path,
) -> Result<BTreeMap<String, PathBuf>, StageError> {
    let context = |task| TaskContext::new(task, Arc::new(Events::default()), Arc::new(AtomicBool::new(false)));
    run_in(stage, params, inputs, dir, context)
}

/// The same, asked to stop after `reports` reports of progress.
pub fn run_and_stop<S: Stage>(
    stage: &S,
    params: serde_json::Value,
    inputs: &[(&str, &str, &Path)],
    dir: &Path,
    reports: usize,
) -> Result<BTreeMap<String, PathBuf>, StageError> {
    let stop = Arc::new(AtomicBool::new(false));
    let sink = Arc::new(StopAfter(AtomicUsize::new(reports), stop.clone()));
    run_in(stage, params, inputs, dir, |task| TaskContext::new(task, sink, stop))
}

fn run_in<S: Stage>(
    stage: &S,
    params: serde_json::Value,
    inputs: &[(&str, &str, &Path)],
    dir: &Path,
    context: impl FnOnce(Task) -> TaskContext,
) -> Result<BTreeMap<String, PathBuf>, StageError> {
    let outputs: BTreeMap<String, PathBuf> = stage.outputs().iter().map(|o| (o.name.to_string(), dir.join(&*o.name))).collect();
    let task = Task {
        kind: S::KIND.into(),
        params: params.clone(),
        inputs: inputs
            .iter()
            .map(|(port, ty, path)| InputArtifact {
                port: (*port).into(),
                path: path.to_path_buf(),
                ty: (*ty).into(),
                digest: "00".into(),
                from: format!("stage.{port}"),
                operational: serde_json::Value::Null,
            })
            .collect(),
        outputs: outputs.clone(),
        ..task(dir)
    };
    let context = context(task);
    let params: S::Params = serde_json::from_value(params).map_err(|e| StageError::new(e.to_string()))?;
    stage.check(&params).map_err(|e| StageError::new(format!("{}: {}", e.path, e.message)))?;
    stage.run(params, &context)?;
    Ok(outputs)
}

/// A ternary model that trains in a moment.
pub fn small_model(vocab: usize) -> ModelConfig {
    let shape = Preset::Poc.config();
    ModelConfig { vocab, dim: 32, layers: 1, heads: 2, kv_heads: 1, head_dim: 16, mlp: 64, seq: 16, weights: Weights::Absmean, ..shape }
}

/// A task in a directory, without inputs and outputs.
pub fn task(dir: &Path) -> Task {
    std::fs::create_dir_all(dir.join("state")).expect("state");
    Task {
        flow: 1,
        stage: "test".into(),
        kind: String::new(),
        key: "00".into(),
        params: serde_json::Value::Null,
        inputs: Vec::new(),
        outputs: BTreeMap::new(),
        dir: dir.to_path_buf(),
        state: dir.join("state"),
        answers: dir.join("answers"),
        withheld: Vec::new(),
        device: "cpu".into(),
        threads: 2,
        provenance: Vec::new(),
        run: String::new(),
    }
}

/// The repository's pipelines' data.
pub fn corpus() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../pipelines/data/corpus.txt")
}

/// Golden files: `FLOW_GOLDEN_DIR` or the repository's own.
pub fn golden() -> PathBuf {
    std::env::var_os("FLOW_GOLDEN_DIR").map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden"), PathBuf::from)
}

/// Deterministic weights: every tensor its own pattern.
pub fn made_up(config: &ModelConfig) -> BTreeMap<String, Vec<f32>> {
    let one = |seed: usize, n: usize, norm: bool| -> Vec<f32> {
        let mut state = seed as u64 + 99;
        let mut next = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 40) as f32 / (1 << 24) as f32 - 0.5
        };
        (0..n).map(|_| if norm { 1.0 + 0.1 * next() } else { 0.08 * next() }).collect()
    };
    config.tensors().into_iter().enumerate().map(|(i, t)| (t.name.clone(), one(i, t.len(), t.role == Role::Norm))).collect()
}
