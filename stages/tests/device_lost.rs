//! A device that goes away in the middle of a training: the stage fails with what to do next, and goes on from its last
//! checkpoint with the bytes of a training that never stopped.

mod common;
mod harness;

use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use flow_engine::plugin::{EventSink, StageError, TaskContext, TaskEvent};
use flow_lm::tokenizer::Tokenizer;
use flow_lm::train::LossWeights;
use flow_lm::train::Recipe;
use flow_lm::train::{Trained, Training};
use flow_shaders::device::{Device, open};
use flow_stages::distil::Distillation;
use flow_stages::distil::windows::windows_of_traces;
use flow_stages::task::train;
use flow_stages::traces::{Origin, ProjectedRow, SequenceRow, TraceMeta, TraceReader, TraceWriter};

/// Takes the device away at one of the reports of progress, and keeps what the task says.
struct Taking {
    device: Option<(Device, AtomicUsize)>,
    said: Mutex<Vec<String>>,
}

impl EventSink for Taking {
    fn emit(&self, event: TaskEvent) {
        match (&self.device, event) {
            (Some((Device::Gpu(gpu), left)), TaskEvent::Progress { .. }) if left.fetch_sub(1, Ordering::Relaxed) == 1 => gpu.lose(),
            (_, TaskEvent::Log { message, .. }) => self.said.lock().expect("lock").push(message),
            _ => {}
        }
    }
}

fn traces(dir: &Path, tokenizer: &Tokenizer) {
    let meta = TraceMeta { tokenizer_hash: tokenizer.digest(), vocab: 4096, top_k: 2, ..TraceMeta::default() };
    let mut writer = TraceWriter::<ProjectedRow>::create(dir, &meta).expect("a writer");
    for s in 0..6 {
        let rows = (0..40).map(|t| ProjectedRow {
            sample_id: (s * 7 + t) % 4000,
            topk_ids: vec![(s * 7 + t) % 4000, (s + t) % 100 + 4000 - 1],
            topk_logprobs: vec![-0.5, -1.5],
            other_logprob: -1.8,
            kd_weight: 1.0,
            ..ProjectedRow::default()
        });
        let (context, context_ids) = (Vec::new(), None);
        let about =
            SequenceRow { prompt_idx: s.into(), sample_idx: 0, source: Origin::Text, context, context_ids, finish_reason: "text".into() };
        writer.push(about, rows).expect("a sequence");
    }
    writer.finish().expect("written");
}

#[test]
fn a_training_goes_on_after_its_device_was_lost() {
    let Some(adapter) = common::devices().into_iter().find(|d| matches!(d, Device::Gpu(_))) else { return };
    let dir = tempfile::tempdir().expect("a directory");
    let tokenizer = Tokenizer::load(&common::golden_dir().join("models/student-tokenizer-4096.json")).expect("a tokenizer");
    traces(&dir.path().join("traces"), &tokenizer);
    let recipe = Recipe { batch: 2, log_every: 1, checkpoint_every: 2, ..Recipe::default() };
    let job = Training {
        config: harness::small_model(4096),
        recipe: &recipe,
        weights: LossWeights { kd: 1.0, ce: 0.25, format: 0.0 },
        tau: 1.3,
        budget_tokens: 200,
        flip_fraction: Some(0.5),
        start: None,
        validation: None,
        ternary: Default::default(),
        teacher: None,
    };
    let run = |name: &str, lost_at: Option<usize>| -> (Result<Trained, StageError>, Vec<String>) {
        let device = open(&adapter.name(), 0).expect("it opened before");
        let taking = Arc::new(Taking { device: lost_at.map(|n| (device.clone(), AtomicUsize::new(n))), said: Mutex::default() });
        let ctx = TaskContext::new(harness::task(&dir.path().join(name)), taking.clone(), Arc::new(AtomicBool::new(false)));
        let reader = TraceReader::<ProjectedRow>::open(&dir.path().join("traces")).expect("traces");
        let mut loader = windows_of_traces(reader, &tokenizer, job.config.seq, Distillation::new(1.3, &[]), 3).expect("windows").0;
        let trained = train(&job, &mut loader, &device, &ctx);
        let said = taking.said.lock().expect("lock").clone();
        (trained, said)
    };
    let whole = run("whole", None).0.expect("trains");
    assert!(whole.progress.step > 5, "{} steps", whole.progress.step);
    let Err(failure) = run("lost", Some(5)).0 else { panic!("it trained on a lost device") };
    let text = failure.to_string();
    assert!(text.contains("the device was lost") && text.contains("run again"), "{text}");
    let (resumed, said) = run("lost", None);
    assert!(said.iter().any(|line| line.contains("continues from step 4")), "{said:?}");
    let resumed = resumed.expect("trains");
    assert_eq!(whole.progress.curve, resumed.progress.curve);
    assert!(whole.tensors == resumed.tensors, "other weights");
}
