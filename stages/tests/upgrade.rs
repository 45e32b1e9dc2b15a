//! What an earlier `flow` left of a training is read: its traces, its tokenizer, and a checkpoint in the middle, from which the
//! training goes on to the very weights that the earlier one reached.
//!
//! `FLOW_WRITE_FIXTURE=1` writes the checkpoint and what came of it anew; that belongs to the commit that the folder is named after.

mod harness;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use flow_engine::plugin::{EventSink, StageError, TaskContext, TaskEvent};
use flow_lm::graph::Optimizer;
use flow_lm::tokenizer::Tokenizer;
use flow_lm::train::LossWeights;
use flow_lm::train::{Recipe, Schedule};
use flow_lm::train::{Trained, Training};
use flow_shaders::device::open;
use flow_stages::distil::Distillation;
use flow_stages::distil::windows::windows_of_traces;
use flow_stages::task::train;
use flow_stages::traces::{ProjectedRow, TraceReader};

fn fixture() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/a97e9d1/training")
}

/// Asks to stop at a report of progress.
struct StopAt(AtomicUsize, Arc<AtomicBool>);

impl EventSink for StopAt {
    fn emit(&self, event: TaskEvent) {
        if matches!(event, TaskEvent::Progress { .. }) && self.0.fetch_sub(1, Ordering::Relaxed) == 1 {
            self.1.store(true, Ordering::Relaxed);
        }
    }
}

/// Trains in `dir`, from the state that lies there.
fn run(dir: &Path, stop_at: usize) -> Result<Trained, StageError> {
    let tokenizer = Tokenizer::load(&fixture().join("tokenizer.json"))?;
    let recipe = Recipe {
        optimizer: Optimizer::Adamw,
        lr: Some(6e-4),
        lr_min: 0.1,
        schedule: Schedule::Cosine,
        weight_decay: 0.1,
        batch: 2,
        log_every: 1,
        checkpoint_every: 4,
        ..Recipe::default()
    };
    let job = Training {
        config: harness::small_model(tokenizer.vocab_size()),
        recipe: &recipe,
        weights: LossWeights { kd: 1.0, ce: 0.25, format: 0.1 },
        tau: 1.3,
        budget_tokens: 400,
        flip_fraction: Some(0.5),
        start: None,
        validation: None,
        ternary: Default::default(),
        teacher: None,
    };
    let device = open("cpu", 2).map_err(|e| StageError::new(e.to_string()))?;
    let stop = Arc::new(AtomicBool::new(false));
    let ctx = TaskContext::new(harness::task(dir), Arc::new(StopAt(AtomicUsize::new(stop_at), stop.clone())), stop);
    let reader = TraceReader::<ProjectedRow>::open(&fixture().join("traces"))?;
    let distillation = Distillation::new(job.tau, &reader.meta().taus);
    let mut loader = windows_of_traces(reader, &tokenizer, job.config.seq, distillation, 3)?.0;
    train(&job, &mut loader, &device, &ctx)
}

/// Steps, and the digest of all weights.
fn came_of(trained: &Trained) -> String {
    let mut bytes = Vec::new();
    for (name, values) in &trained.tensors {
        bytes.extend_from_slice(name.as_bytes());
        bytes.extend(values.iter().flat_map(|v| v.to_le_bytes()));
    }
    format!("{} steps, weights {}\n", trained.progress.step, blake3::hash(&bytes))
}

#[test]
fn a_checkpoint_of_an_earlier_version_goes_on_to_its_own_end() {
    let dir = tempfile::tempdir().expect("a directory");
    let state = "state/training.safetensors";
    if std::env::var_os("FLOW_WRITE_FIXTURE").is_some() {
        assert!(run(dir.path(), 5).is_err(), "it was to stop");
        std::fs::copy(dir.path().join(state), fixture().join("training.safetensors")).expect("copied");
        let whole = run(&dir.path().join("whole"), usize::MAX).expect("trains");
        std::fs::write(fixture().join("expected.txt"), came_of(&whole)).expect("written");
        return;
    }
    std::fs::create_dir_all(dir.path().join("state")).expect("a directory");
    std::fs::copy(fixture().join("training.safetensors"), dir.path().join(state)).expect("copied");
    let resumed = run(dir.path(), usize::MAX).expect("trains");
    assert!(resumed.progress.step > 5, "it did not go on");
    assert_eq!(came_of(&resumed), std::fs::read_to_string(fixture().join("expected.txt")).expect("recorded"));
}
