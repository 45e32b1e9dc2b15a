//! One optimizer step of knowledge distillation on random tokens and targets, over and over.

use std::time::Instant;

use flow_engine::plugin::StageError;
use flow_shaders::device::Device;
use serde_json::{Value, json};

use super::figures::{median, peak_rss, rounded};
use super::speed::product_speed;
use crate::estimate::{muon_work, training_work};
use flow_lm::config::{Bits, ModelConfig, Preset};
use flow_lm::graph::Storage;
use flow_lm::graph::{Moments, NewtonSchulz, Optimizer};
use flow_lm::rng::Rng;
use flow_lm::tokenizer::TokenId;
use flow_lm::train::initial_values;
use flow_lm::train::{Hyper, MicroBatch, TrainShape, Trainer};

/// What is trained.
#[derive(Clone, Copy, Debug)]
pub struct TrainBench {
    /// Shape of the model.
    pub preset: Preset,
    /// Sequences of a step.
    pub batch: usize,
    /// Tokens of a sequence; the preset's where `None`.
    pub seq: Option<usize>,
    /// Activation bits.
    pub bits: Bits,
    /// Steps that count, after three that do not.
    pub steps: usize,
    /// Optimizer of the block linears.
    pub optimizer: Optimizer,
    /// How Muon makes updates orthogonal.
    pub ns: NewtonSchulz,
    /// Whether a block's activations are computed again in the backward pass.
    pub recompute: bool,
    /// How AdamW's moments are held.
    pub moments: Moments,
    /// How activations and gradients are kept.
    pub storage: Storage,
}

/// Buckets of a target, as in the main job.
const TOP_K: usize = 20;

/// Measures; tokens/s are those of `batch · seq` tokens over the median step.
pub fn train(device: &Device, b: &TrainBench) -> Result<Value, StageError> {
    let mut config = b.preset.config();
    config.seq = b.seq.unwrap_or(config.seq);
    let shape = TrainShape {
        batch: b.batch,
        seq: config.seq,
        top_k: TOP_K,
        ns: b.ns,
        recompute: b.recompute,
        moments: b.moments,
        storage: b.storage,
        evaluates: false,
    };
    let mut trainer = Trainer::new(device, config.clone(), shape, b.optimizer)?;
    trainer.load_with(|t| initial_values(&config, t, 1))?;
    let micro = random_batch(&config, b.batch);
    let mut seconds = Vec::new();
    for step in 1..=b.steps as u64 + 3 {
        let hyper = Hyper {
            step,
            lr: 6e-4,
            muon_lr: 0.02,
            betas: (0.9, 0.95, 1e-8),
            weight_decay: 0.1,
            muon: (0.95, 0.0),
            clip: 1.0,
            tau: 1.3,
            bits: b.bits,
            softness: Default::default(),
            relation: 0.0,
        };
        let began = Instant::now();
        let stats = trainer.step(std::slice::from_ref(&micro), &hyper)?;
        if step > 3 {
            seconds.push(began.elapsed().as_secs_f64());
        }
        if !stats.total().is_finite() {
            return Err(StageError::new(format!("step {step}: the loss is not finite")));
        }
    }
    let tokens = (b.batch * config.seq) as f64;
    let step = median(seconds);
    let work =
        training_work(&config, tokens as u64, b.recompute) + if b.optimizer == Optimizer::Muon { muon_work(&config, b.ns) } else { 0.0 };
    let product = product_speed(device)?;
    Ok(json!({
        "bench": "train", "preset": b.preset.name(), "batch": b.batch, "seq": config.seq, "bits": b.bits.count(),
        "optimizer": b.optimizer, "recompute": b.recompute, "moments": b.moments, "storage": b.storage,
        "parameters": config.parameters(), "steps": b.steps,
        "tokens_per_second": rounded(tokens / step), "step_ms": rounded(step * 1e3),
        "product_gflops": rounded(product / 1e9), "share_of_product": rounded(work / step / product),
        "planned_bytes": trainer.session_bytes(), "peak_rss_bytes": peak_rss(), "device": device.name(),
    }))
}

fn random_batch(config: &ModelConfig, batch: usize) -> MicroBatch {
    let mut rng = Rng::new(1, "bench batch");
    let (rows, v) = (batch * config.seq, config.vocab);
    // Different buckets of a row come from different parts of the vocabulary.
    let part = v / TOP_K;
    let mut logprobs = Vec::with_capacity(rows * TOP_K);
    let mut meta = Vec::with_capacity(rows);
    for _ in 0..rows {
        let drawn: Vec<f64> = (0..=TOP_K).map(|_| f64::from(rng.normal())).collect();
        let sum: f64 = drawn.iter().map(|x| x.exp()).sum();
        logprobs.extend(drawn[..TOP_K].iter().map(|x| (x - sum.ln()) as f32));
        meta.push([(drawn[TOP_K] - sum.ln()) as f32 / 1.3, 1.0 / rows as f32, 0.25 / rows as f32, 0.0]);
    }
    MicroBatch {
        ids: (0..rows).map(|_| TokenId(rng.below(v) as u32)).collect(),
        mask: vec![1; rows],
        labels: (0..rows).map(|_| rng.below(v) as i32).collect(),
        topk_ids: (0..rows * TOP_K).map(|i| ((i % TOP_K) * part + rng.below(part)) as i32).collect(),
        targets: logprobs,
        meta,
    }
}
