//! Targets reach the loss whole: what a student learns from rows is the divergence that they stand for, whatever they keep of
//! a distribution, however a step is cut, and without the steps that were skipped.

mod common;
mod harness;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use common::{devices, noise};
use flow_engine::plugin::{EventSink, Stage, StageError, TaskContext, TaskEvent};
use flow_lm::config::{Bits, ModelConfig, Preset, Role, Weights};
use flow_lm::format;
use flow_lm::graph::Storage;
use flow_lm::graph::{Moments, NewtonSchulz, Optimizer};
use flow_lm::infer::{Session, Uses};
use flow_lm::tokenizer::{TokenId, Tokenizer};
use flow_lm::train::Recipe;
use flow_lm::train::{Hyper, MicroBatch, TrainShape, Trainer};
use flow_lm::train::{Loader, LossWeights};
use flow_lm::train::{Trained, Training};
use flow_shaders::device::{Device, open};
use flow_stages::distil::Distillation;
use flow_stages::distil::windows::windows_of_traces;
use flow_stages::kinds::kd_collect::CollectStage;
use flow_stages::kinds::kd_project::ProjectStage;
use flow_stages::kinds::tokenizer_bpe::BpeStage;
use flow_stages::kinds::train_bitnet::{StudentParams, StudentStage};
use flow_stages::task::train;
use flow_stages::teacher::method::softmax;
use flow_stages::traces::{Origin, ProjectedRow, SequenceRow, TraceMeta, TraceReader, TraceWriter};
use serde_json::{Value, json};

type Tensors = BTreeMap<String, Vec<f32>>;

/// Tokens of the one window that is scored.
const SEQ: usize = 24;

fn config(vocab: usize, seq: usize, weights: Weights) -> ModelConfig {
    ModelConfig { vocab, dim: 24, layers: 1, heads: 2, kv_heads: 1, head_dim: 12, mlp: 32, seq, weights, ..Preset::Poc.config() }
}

/// Values of `size`, so that distributions are neither flat nor certain.
fn tensors(config: &ModelConfig, seed: u64, size: f32) -> Tensors {
    let fill = |(i, t): (usize, flow_lm::config::TensorSpec)| {
        let mut next = noise(seed * 100 + i as u64);
        let value = |n: f32| if t.role == Role::Norm { 1.0 + 0.1 * n } else { size * n };
        (t.name.clone(), (0..t.len()).map(|_| value(next())).collect())
    };
    config.tensors().into_iter().enumerate().map(fill).collect()
}

/// A teacher whose vocabulary is padded beyond its tokenizer's, and a text that fills one window.
struct Setting {
    dir: tempfile::TempDir,
    tokenizer: PathBuf,
    vocab: usize,
    tokens: Vec<u32>,
    teacher: (ModelConfig, Tensors),
}

impl Setting {
    fn new() -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let inputs = [("text", "Text", &*harness::corpus())];
        let tokenizer = harness::run(&BpeStage, json!({"vocab_size": 300}), &inputs, &dir.path().join("bpe")).expect("a tokenizer");
        let tokenizer = tokenizer["tokenizer"].clone();
        let loaded = Tokenizer::load(&tokenizer).expect("loads");
        let text = "The people of the United States, in order to form a more perfect union.";
        std::fs::write(dir.path().join("text"), text).expect("a text");
        let tokens = TokenId::words(&loaded.encode(text)[..SEQ]).to_vec();
        let config = config(loaded.vocab_size() + 4, SEQ, Weights::Float);
        let tensors = tensors(&config, 3, 1.5);
        let all = tensors.iter().map(|(n, v)| (n.as_str(), v.as_slice()));
        format::save(&dir.path().join("teacher"), &config, all, Some(&tokenizer), &json!({})).expect("a teacher");
        Self { vocab: loaded.vocab_size(), dir, tokenizer, tokens, teacher: (config, tensors) }
    }

    /// The micro-batch of the window, collected and projected, and how many candidates a row has.
    fn collected(&self, name: &str, mut params: Value) -> (MicroBatch, usize) {
        let at = |part: &str| self.dir.path().join(format!("{name}-{part}"));
        params["text_tokens"] = SEQ.into();
        let (teacher, text) = (self.dir.path().join("teacher"), self.dir.path().join("text"));
        let wired = [("teacher", "Teacher", teacher.as_path()), ("text", "Text", &text)];
        let raw = harness::run(&CollectStage, params, &wired, &at("collected")).expect("collects");
        let wired = [("traces", "Traces", raw["traces"].as_path()), ("tokenizer", "Tokenizer", &self.tokenizer)];
        let projected = harness::run(&ProjectStage, json!({}), &wired, &at("projected")).expect("projects");
        let tokenizer = Tokenizer::load(&self.tokenizer).expect("loads");
        let reader = TraceReader::open(&projected["traces"]).expect("traces");
        let mut loader = windows_of_traces(reader, &tokenizer, SEQ, Distillation::new(1.0, &[]), 1).expect("windows").0;
        let (mut step, targets) = loader.step(0, 1, 1, &LossWeights { kd: 1.0, ce: 0.0, format: 0.0 }).expect("a step");
        assert_eq!((loader.len(), targets), (1, SEQ as u64));
        (step.remove(0), loader.top_k())
    }

    /// The teacher's distributions at the window's positions, in f64, over what its tokenizer has.
    fn distributions(&self) -> Vec<Vec<f64>> {
        let (config, tensors) = &self.teacher;
        let uses = Uses { score: Some((1, SEQ)), logits: true, ..Uses::default() };
        let tensors: flow_lm::format::tensors::Tensors = tensors.clone().into();
        let mut lm = Session::new(&open("cpu", 0).expect("the CPU"), config.clone(), &tensors, uses).expect("fits");
        let bos = Tokenizer::load(&self.tokenizer).expect("loads").bos();
        let ids: Vec<TokenId> = std::iter::once(bos).chain(self.tokens.iter().map(|t| TokenId(*t))).take(SEQ).collect();
        let logits = lm.logits(&ids, &[1; SEQ]).expect("scores");
        logits.chunks(config.vocab).map(|z| softmax(&z[..self.vocab])).collect()
    }
}

/// A student that a step leaves as it is.
struct Student(Trainer);

impl Student {
    fn new(device: &Device, vocab: usize, top_k: usize) -> Self {
        let shape = TrainShape {
            batch: 1,
            seq: SEQ,
            top_k,
            ns: NewtonSchulz::quintic(5),
            recompute: false,
            moments: Moments::Float32,
            storage: Storage::Float32,
            evaluates: false,
        };
        let config = config(vocab, SEQ, Weights::Absmean);
        let mut trainer = Trainer::new(device, config.clone(), shape, Optimizer::Adamw).expect("fits");
        trainer.load(&tensors(&config, 7, 0.8)).expect("loads");
        Self(trainer)
    }

    /// KL and CE of a step, and its gradient on eight fixed directions, in units of its norm over a random direction's.
    fn step(&mut self, micros: &[MicroBatch]) -> (f64, f64, [f64; 8]) {
        let hyper = Hyper {
            step: 1,
            lr: 0.0,
            muon_lr: 0.0,
            betas: (0.9, 0.95, 1e-8),
            weight_decay: 0.0,
            muon: (0.0, 0.0),
            clip: 1.0,
            tau: 1.0,
            bits: Bits::Eight,
            softness: Default::default(),
            relation: 0.0,
        };
        let stats = self.0.step(micros, &hyper).expect("steps");
        assert!(!stats.skipped);
        let gradient: Vec<f32> = self.0.gradients().expect("gradients").into_values().flatten().collect();
        let direction = |d: u64| {
            let mut next = noise(1000 + d);
            gradient.iter().map(|g| f64::from(*g) * if next() < 0.0 { -1.0 } else { 1.0 }).sum()
        };
        (f64::from(stats.kl), f64::from(stats.ce), std::array::from_fn(|d| direction(d as u64)))
    }
}

fn entropy(p: &[f64]) -> f64 {
    -p.iter().filter(|p| **p > 0.0).map(|p| p * p.ln()).sum::<f64>()
}

/// The cross-entropy H(p, q) and its gradient by the definition, without the distillation loss: each token of the vocabulary
/// is once the label of every position, with its probability as weight.
fn by_definition(setting: &Setting, like: &MicroBatch, p: &[Vec<f64>]) -> (f64, [f64; 8]) {
    let micros: Vec<MicroBatch> = (0..setting.vocab)
        .map(|token| MicroBatch {
            labels: vec![token as i32; SEQ],
            meta: p.iter().map(|p| [0.0, 0.0, (p[token] / SEQ as f64) as f32, 0.0]).collect(),
            topk_ids: Vec::new(),
            targets: Vec::new(),
            ..like.clone()
        })
        .collect();
    let (_, ce, gradient) = Student::new(&open("cpu", 0).expect("the CPU"), setting.vocab, 0).step(&micros);
    (ce, gradient)
}

/// `full` rows give loss and gradient of the exact KL on every device; `sampled` rows give them in the mean over seeds.
#[test]
fn full_rows_are_exact_and_sampled_ones_are_in_the_mean() {
    const SEEDS: usize = 32;
    let setting = Setting::new();
    let p = setting.distributions();
    let mean_entropy = p.iter().map(|p| entropy(p)).sum::<f64>() / SEQ as f64;
    let (full, top_k) = setting.collected("full", json!({"method": "full"}));
    assert_eq!(top_k, setting.vocab, "projection keeps what collection kept");
    let (ce, exact) = by_definition(&setting, &full, &p);
    let size = exact.iter().map(|g| g * g).sum::<f64>().sqrt();
    assert!(mean_entropy > 1.0 && ce - mean_entropy > 0.1, "a distribution worth learning: {mean_entropy} of {ce}");
    for device in devices() {
        let (kl, _, got) = Student::new(&device, setting.vocab, top_k).step(std::slice::from_ref(&full));
        // Other's floor of 1e-6 against the student's empty rest, e^-80: 1e-6 · 66.
        assert!((kl - (ce - mean_entropy)).abs() < 1e-4, "{kl} instead of {} on {}", ce - mean_entropy, device.name());
        let apart = got.iter().zip(&exact).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
        assert!(apart < 1e-4 * size, "{apart} of {size} on {}", device.name());
    }

    let mut student = Student::new(&open("cpu", 0).expect("the CPU"), setting.vocab, 12);
    // The KL to drawn shares lacks their own entropy, which is no part of what a student learns: with it, H(draws, q).
    let mut loss = |name: &str, params: Value| {
        let (batch, top_k) = setting.collected(name, params);
        assert!(top_k == 12);
        let shares = batch.topk_ids.chunks(12).zip(batch.targets.chunks(12));
        let own = shares.map(|(ids, l)| {
            let present = ids.iter().zip(l).filter(|(id, _)| **id >= 0).map(|(_, l)| f64::from(*l).exp());
            entropy(&present.collect::<Vec<_>>())
        });
        let own = own.sum::<f64>() / SEQ as f64;
        let (kl, _, gradient) = student.step(&[batch]);
        [&[kl + own], &gradient[..]].concat()
    };
    let wanted = [&[ce], &exact[..]].concat();
    let drawn: Vec<Vec<f64>> =
        (0..SEEDS).map(|seed| loss(&format!("sampled-{seed}"), json!({"method": "sampled", "draws": 12, "seed": seed}))).collect();
    let biased = loss("top", json!({"method": "top_k", "top_k": 12}));
    let mut farthest_of_top = 0f64;
    for (i, want) in wanted.iter().enumerate() {
        let mean = drawn.iter().map(|d| d[i]).sum::<f64>() / SEEDS as f64;
        let variance = drawn.iter().map(|d| (d[i] - mean).powi(2)).sum::<f64>() / (SEEDS - 1) as f64;
        let error = (variance / SEEDS as f64).sqrt();
        assert!((mean - want).abs() < 3.0 * error, "quantity {i}: {mean} instead of {want}, standard error {error}");
        farthest_of_top = farthest_of_top.max((biased[i] - want).abs() / error);
    }
    assert!(farthest_of_top > 3.0, "the bar would let biased rows pass: {farthest_of_top}");
}

/// Whole rows of a vocabulary of 49,152 are refused before anything is scored, with the disk that they would take.
#[test]
fn whole_rows_of_a_large_vocabulary_are_refused() {
    let dir = tempfile::tempdir().expect("a directory");
    let tokenizer = common::golden_dir().join("models/smollm2-tokenizer.json");
    let config = ModelConfig { vocab: 49_152, dim: 8, heads: 1, head_dim: 8, mlp: 8, ..config(0, SEQ, Weights::Float) };
    let tensors = tensors(&config, 1, 0.1);
    let all = tensors.iter().map(|(n, v)| (n.as_str(), v.as_slice()));
    format::save(&dir.path().join("teacher"), &config, all, Some(&tokenizer), &json!({})).expect("a teacher");
    let (teacher, text) = (dir.path().join("teacher"), harness::corpus());
    let wired = [("teacher", "Teacher", teacher.as_path()), ("text", "Text", &text)];
    let params = json!({"method": "full", "text_tokens": 100_000});
    let error = harness::run(&CollectStage, params, &wired, &dir.path().join("out")).expect_err("too large");
    for part in ["keeps 49152 candidates a row", "up to 100000 rows", "take 36.6 GiB on the disk"] {
        assert!(error.message.contains(part), "{error}");
    }
    assert!(!dir.path().join("out/traces").exists() && error.help.is_some());
}

/// What traces of a test are made of: windows of 16 tokens.
const WINDOW: usize = 16;

fn student_tokenizer() -> Tokenizer {
    Tokenizer::load(&common::golden_dir().join("models/student-tokenizer-4096.json")).expect("a tokenizer")
}

/// Traces of one window a sequence, whose rows `change` may alter by window and place.
fn traces(dir: &Path, windows: usize, taus: &[f32], change: impl Fn(usize, usize, &mut ProjectedRow)) -> PathBuf {
    let dir = dir.join("traces");
    let tokenizer_hash = student_tokenizer().digest();
    let meta = TraceMeta { tokenizer_hash, vocab: 4096, top_k: 2, taus: taus.to_vec(), ..TraceMeta::default() };
    let mut writer = TraceWriter::<ProjectedRow>::create(&dir, &meta).expect("a writer");
    for s in 0..windows {
        let row = |t: usize| {
            let id = |n: usize| (n % 4000) as i32;
            let mut row = ProjectedRow {
                sample_id: id(s * 7 + t * 3),
                topk_ids: vec![id(s * 7 + t * 3), 4000 + (t % 90) as i32],
                topk_logprobs: vec![-0.5, -1.5],
                other_logprob: -1.77,
                other_lse: (!taus.is_empty()).then(|| vec![-1.1; taus.len()]),
                kd_weight: 1.0,
                ..ProjectedRow::default()
            };
            change(s, t, &mut row);
            row
        };
        let (context, context_ids, prompt_idx) = (Vec::new(), None, s as i64);
        let about = SequenceRow { prompt_idx, sample_idx: 0, source: Origin::Text, context, context_ids, finish_reason: "text".into() };
        writer.push(about, (0..WINDOW).map(row).collect::<Vec<_>>()).expect("a sequence");
    }
    writer.finish().expect("written");
    dir
}

fn loader<'a>(dir: &Path, tokenizer: &'a Tokenizer) -> Loader<'a, StageError> {
    let reader = TraceReader::open(dir).expect("traces");
    windows_of_traces(reader, tokenizer, WINDOW, Distillation::new(1.3, &[]), 5).expect("windows").0
}

/// Weights are those of the whole step: two halves with unequal numbers of rows for each part of the loss give what one batch
/// of both gives.
#[test]
fn accumulated_halves_are_a_double_batch() {
    let dir = tempfile::tempdir().expect("a directory");
    let tokenizer = student_tokenizer();
    // The later a window the more of its rows have no KL, and the fewer are structural.
    let dir = traces(dir.path(), 4, &[], |s, t, row| {
        row.kd_weight = if t < s * s { 0.0 } else { 1.0 };
        row.is_struct = t % (s + 2) == 0;
    });
    let weights = LossWeights { kd: 1.0, ce: 0.25, format: 0.5 };
    for device in devices() {
        let [halves, whole] = [(2, 2), (4, 1)].map(|(batch, accumulate)| {
            let (micros, targets) = loader(&dir, &tokenizer).step(0, batch, accumulate, &weights).expect("a step");
            let of_kd = |m: &MicroBatch| m.meta.iter().filter(|x| x[1] > 0.0).count();
            assert_eq!((micros.len(), targets), (accumulate, 4 * WINDOW as u64));
            assert!(accumulate == 1 || of_kd(&micros[0]) != of_kd(&micros[1]), "halves that differ");
            let shape = TrainShape {
                batch,
                seq: WINDOW,
                top_k: 2,
                ns: NewtonSchulz::quintic(5),
                recompute: false,
                moments: Moments::Float32,
                storage: Storage::Float32,
                evaluates: false,
            };
            let config = config(4096, WINDOW, Weights::Absmean);
            let mut trainer = Trainer::new(&device, config.clone(), shape, Optimizer::Adamw).expect("fits");
            trainer.load(&tensors(&config, 9, 0.5)).expect("loads");
            let stats = trainer.step(&micros, &common::hyper(1, 1.3, 8)).expect("steps");
            ([stats.kl, stats.ce, stats.format, stats.grad_norm], trainer.gradients().expect("gradients"))
        });
        for (a, b) in halves.0.iter().zip(&whole.0) {
            assert!(*b > 0.0 && (a - b).abs() < 1e-5 * b, "{:?} and {:?} on {}", halves.0, whole.0, device.name());
        }
        for (name, want) in &whole.1 {
            let size = want.iter().map(|x| x * x).sum::<f32>().sqrt();
            let apart = want.iter().zip(&halves.1[name]).map(|(a, b)| (a - b).powi(2)).sum::<f32>().sqrt();
            assert!(apart <= 1e-5 * size, "{name} on {}: {apart} of {size}", device.name());
        }
    }
}

/// Keeps warnings, and asks the stage to stop once it told of progress so many times.
struct Watch {
    said: Mutex<Vec<String>>,
    left: AtomicUsize,
    stop: Arc<AtomicBool>,
}

impl EventSink for Watch {
    fn emit(&self, event: TaskEvent) {
        match event {
            TaskEvent::Warning { message } => self.said.lock().expect("lock").push(message),
            TaskEvent::Progress { .. } if self.left.fetch_sub(1, Ordering::Relaxed) == 1 => self.stop.store(true, Ordering::Relaxed),
            _ => {}
        }
    }
}

/// A context in `dir` that stops after `reports` reports of progress, and what is said in it.
fn watched(dir: &Path, reports: usize) -> (TaskContext, Arc<Watch>) {
    let stop = Arc::new(AtomicBool::new(false));
    let watch = Arc::new(Watch { said: Mutex::default(), left: AtomicUsize::new(reports), stop: stop.clone() });
    (TaskContext::new(harness::task(dir), watch.clone(), stop), watch)
}

fn job(recipe: &Recipe, budget_tokens: u64) -> Training<'_> {
    let weights = LossWeights { kd: 1.0, ce: 0.25, format: 0.0 };
    Training {
        config: config(4096, WINDOW, Weights::Absmean),
        recipe,
        weights,
        tau: 1.3,
        budget_tokens,
        flip_fraction: Some(0.5),
        start: None,
        validation: None,
        ternary: Default::default(),
        teacher: None,
    }
}

fn trained(job: &Training<'_>, traces: &Path, dir: &Path, reports: usize) -> (Result<Trained, StageError>, Vec<String>) {
    let tokenizer = student_tokenizer();
    let (ctx, watch) = watched(dir, reports);
    let result = train(job, &mut loader(traces, &tokenizer), &open("cpu", 2).expect("the CPU"), &ctx);
    let said = watch.said.lock().expect("lock").clone();
    (result, said)
}

/// A row whose weight no float32 gradient survives: the step that meets it is skipped, and no other one.
fn poisoned(s: usize, t: usize, row: &mut ProjectedRow) {
    if (s, t) == (4, 3) {
        row.kd_weight = 3e38;
    }
}

/// A step without an update takes its windows and nothing else: the budget, AdamW's t and the flip go by the steps that did
/// update, also where the training was stopped and taken up right behind it.
#[test]
fn a_skipped_step_advances_the_cursor_only() {
    let dir = tempfile::tempdir().expect("a directory");
    let traces = traces(dir.path(), 9, &[], poisoned);
    let recipe = Recipe { batch: 1, log_every: 1, max_skipped_share: 0.5, ..Recipe::default() };
    let job = job(&recipe, 24 * WINDOW as u64);
    let whole = trained(&job, &traces, &dir.path().join("whole"), 0).0.expect("trains");
    let p = &whole.progress;
    assert!(p.skipped >= 2 && p.updates() == 24 && p.step == 24 + p.skipped, "{p:?}");
    assert_eq!((p.cursor, p.seen_tokens), (p.step, 24 * WINDOW as u64));
    assert_eq!(p.flip.expect("flips").seen_tokens, 12 * WINDOW as u64);

    // By hand, from the rule.
    let tokenizer = student_tokenizer();
    let mut windows = loader(&traces, &tokenizer);
    let shape = TrainShape {
        batch: 1,
        seq: WINDOW,
        top_k: 2,
        ns: recipe.newton_schulz(),
        recompute: false,
        moments: recipe.moments,
        storage: recipe.storage,
        evaluates: false,
    };
    let mut trainer = Trainer::new(&open("cpu", 2).expect("the CPU"), job.config.clone(), shape, recipe.optimizer).expect("fits");
    trainer.load_with(|t| flow_lm::train::initial_values(&job.config, t, recipe.seed)).expect("loads");
    let (mut t, mut cursor) = (1, 0);
    while t <= 24 {
        let (micros, _) = windows.step(cursor, 1, 1, &job.weights).expect("a step");
        let hyper = recipe.hyper(t, (t - 1) as f64 / 24.0, 1.3, if t <= 12 { Bits::Eight } else { Bits::Four }, &Default::default());
        t += u64::from(!trainer.step(&micros, &hyper).expect("steps").skipped);
        cursor += 1;
    }
    assert_eq!(cursor, p.cursor);
    assert!(trainer.tensors().expect("tensors") == whole.tensors, "other weights than by the rule");

    // Stopped after each of the steps around the first one that is skipped.
    let first = p.curve.iter().zip(1..).find(|(point, n)| point.step != *n).map(|(_, n)| n as usize).expect("a gap in the curve");
    for reports in first - 1..first + 2 {
        let dir = dir.path().join(format!("stopped-{reports}"));
        let (Err(stopped), _) = trained(&job, &traces, &dir, reports) else { panic!("it did not stop") };
        assert!(stopped.interrupted);
        let resumed = trained(&job, &traces, &dir, 0).0.expect("goes on");
        assert!(resumed.tensors == whole.tensors && resumed.progress.curve == p.curve, "stopped after {reports} points");
        assert_eq!((resumed.progress.cursor, resumed.progress.skipped), (p.cursor, p.skipped));
    }
}

#[test]
fn more_skipped_steps_than_the_share_fail_and_say_so() {
    let dir = tempfile::tempdir().expect("a directory");
    let traces = traces(dir.path(), 9, &[], poisoned);
    let run = |name: &str, recipe: Recipe, steps: u64| trained(&job(&recipe, steps * WINDOW as u64), &traces, &dir.path().join(name), 0).0;
    let recipe = Recipe { batch: 1, ..Recipe::default() };
    let Err(error) = run("share", recipe.clone(), 100) else { panic!("2 of 20 steps are more than 2 %") };
    assert!(error.message.contains("of 20 attempted steps were skipped") && error.message.contains("allows 2.00 %"), "{error}");
    // One in a short run is no share of anything; two are too many.
    assert_eq!(run("short", recipe.clone(), 9).expect("one may be skipped").progress.skipped, 1);
    let Err(error) = run("longer", recipe.clone(), 15) else { panic!("two in a short run") };
    assert!(error.message.contains("fewer than 20 may skip one"), "{error}");
    // A learning rate that breaks the model: every step after the first one is skipped, and it ends.
    let Err(error) = run("broken", Recipe { lr: Some(1e30), ..recipe }, 100) else { panic!("it learned with 1e30") };
    assert!(error.message.contains("attempted steps were skipped") && error.help.is_some(), "{error}");
}

#[test]
fn a_step_that_does_not_fit_the_data_or_the_budget_is_said_with_numbers() {
    let dir = tempfile::tempdir().expect("a directory");
    let traces = traces(dir.path(), 5, &[], |_, _, _| ());
    let recipe = Recipe { batch: 3, accumulate: 2, ..Recipe::default() };
    let (result, said) = trained(&job(&recipe, 40), &traces, &dir.path().join("run"), 0);
    assert_eq!(result.expect("trains").progress.seen_tokens, 96);
    assert!(said.iter().any(|s| s.contains("takes 6 windows (batch 3 × accumulate 2), the data has 5")), "{said:?}");
    assert!(said.iter().any(|s| s.contains("96 tokens were seen where the budget is 40")), "{said:?}");
    let (result, said) = trained(&job(&Recipe { batch: 1, ..Recipe::default() }, 40), &traces, &dir.path().join("fits"), 0);
    assert!(result.is_ok() && said.is_empty(), "{said:?}");
}

/// Tails are counted row by row: a quarantined row is none of them, and a row that lost its tail costs its share.
#[test]
fn the_share_of_exact_tails_is_counted_and_said() {
    let root = tempfile::tempdir().expect("a directory");
    let dir = traces(root.path(), 4, &[1.3, 2.0], |s, t, row| {
        if (s, t) == (0, 0) {
            (row.kd_weight, row.other_lse) = (0.0, None);
        }
        if (s, t) == (1, 5) {
            row.other_lse = None;
        }
    });
    let tokenizer = common::golden_dir().join("models/student-tokenizer-4096.json");
    let run = |name: &str, params: Value| -> (Value, Vec<String>) {
        let base = json!({"preset": "poc", "layers": 1, "seq": WINDOW, "budget_tokens": 16, "recipe": {"batch": 1}});
        let mut all = base.as_object().expect("a map").clone();
        all.extend(params.as_object().expect("a map").clone());
        let out = root.path().join(name);
        let (mut ctx_task, watch) =
            (harness::task(&out), Watch { said: Mutex::default(), left: AtomicUsize::new(0), stop: Arc::default() });
        let input = |port: &str, path: &Path| flow_engine::plugin::InputArtifact {
            port: port.into(),
            path: path.to_owned(),
            ty: port.into(),
            digest: "00".into(),
            from: port.into(),
            operational: Value::Null,
        };
        ctx_task.inputs = vec![input("traces", &dir), input("tokenizer", &tokenizer)];
        ctx_task.outputs = [("student", out.join("student")), ("log", out.join("log"))].map(|(n, p)| (n.to_owned(), p)).into();
        let watch = Arc::new(watch);
        let params: StudentParams = serde_json::from_value(Value::Object(all)).expect("parameters");
        StudentStage.run(params, &TaskContext::new(ctx_task, watch.clone(), Arc::default())).expect("trains");
        let log = serde_json::from_slice(&std::fs::read(out.join("log")).expect("a log")).expect("JSON");
        let said = watch.said.lock().expect("lock").clone();
        (log, said)
    };
    let share = |log: &Value| (log["kd_rows"].as_u64().expect("a count"), log["exact_tail_share"].as_f64().expect("a share"));
    let (log, said) = run("held", json!({"tau": 1.3}));
    assert_eq!(share(&log), (63, 62.0 / 63.0));
    assert_eq!(log["kd_scale"], "tau2");
    assert!(said.iter().any(|s| s.contains("1 of 63 rows (1.6 %)") && s.contains("projected")), "{said:?}");
    let (other, said) = run("not-held", json!({"tau": 1.7, "kd_scale": "none"}));
    assert_eq!((share(&other), &other["kd_scale"]), ((63, 0.0), &"none".into()));
    assert!(said.iter().any(|s| s.contains("tails at 1, 1.3, 2 only") && s.contains("name 1.7 in `kd.collect`'s `taus`")), "{said:?}");
    let (one, said) = run("one", json!({"tau": 1.0}));
    assert_eq!(share(&one), (63, 1.0));
    assert!(said.is_empty(), "{said:?}");

    // τ² scales what is minimised; the curve's KL is the KL.
    let (plain, _) = run("plain", json!({"tau": 2.0, "kd_scale": "none"}));
    let (scaled, _) = run("scaled", json!({"tau": 2.0}));
    let first = |log: &Value, of: &str| log["curve"][0][of].as_f64().expect("a number");
    assert!((first(&plain, "kl") - first(&scaled, "kl")).abs() < 2e-6, "{plain} {scaled}");
    assert!((first(&scaled, "loss") - first(&plain, "loss") - 3.0 * first(&plain, "kl")).abs() < 1e-4);
    // At τ = 1 the two are one.
    let (none, _) = run("one-none", json!({"tau": 1.0, "kd_scale": "none"}));
    assert_eq!(one["curve"], none["curve"]);
    let weights = |name: &str| std::fs::read(root.path().join(name).join("student/model.safetensors")).expect("weights");
    assert!(weights("one") == weights("one-none") && weights("plain") != weights("scaled"));
}
