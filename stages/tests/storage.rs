//! Training in less memory: moments of one byte, activations and gradients as float16 with a loss scale.

mod common;

use std::collections::BTreeMap;

use common::{devices, hyper, is_software, noise};
use flow_lm::config::{ModelConfig, Preset, Role, Weights};
use flow_lm::graph::{LossScale, Storage};
use flow_lm::graph::{Moments, NewtonSchulz, Optimizer};
use flow_lm::tokenizer::TokenId;
use flow_lm::train::{MicroBatch, StepStats, TrainShape, Trainer};
use flow_shaders::device::Device;

/// An odd hidden size: the last float16 of a row shares its word with the next row's first.
fn config(weights: Weights) -> ModelConfig {
    ModelConfig { vocab: 200, dim: 75, layers: 2, heads: 6, kv_heads: 2, head_dim: 12, mlp: 130, seq: 15, weights, ..Preset::Poc.config() }
}

fn trainer(device: &Device, weights: Weights, optimizer: Optimizer, moments: Moments, storage: Storage) -> Trainer {
    let config = config(weights);
    let shape = TrainShape {
        batch: 3,
        seq: config.seq,
        top_k: 0,
        ns: NewtonSchulz::quintic(5),
        recompute: false,
        moments,
        storage,
        evaluates: false,
    };
    let mut trainer = Trainer::new(device, config.clone(), shape, optimizer).unwrap();
    let mut next = noise(3);
    let mut value = |role| match role {
        Role::Norm => 1.0,
        Role::Scale => 0.05,
        _ => 0.2 * next(),
    };
    let tensors: BTreeMap<String, Vec<f32>> =
        config.tensors().into_iter().map(|t| (t.name.clone(), (0..t.len()).map(|_| value(t.role)).collect())).collect();
    trainer.load(&tensors).unwrap();
    trainer
}

/// The same few sequences, whose next tokens are to be learned; `weight` is the sum of the rows' weights.
fn micro(config: &ModelConfig, weight: f32) -> MicroBatch {
    let rows = 3 * config.seq;
    let mut next = noise(9);
    let mut token = || ((next() + 0.5) * config.vocab as f32) as u32 % config.vocab as u32;
    let ids: Vec<u32> = (0..rows).map(|_| token()).collect();
    MicroBatch {
        labels: ids.iter().skip(1).chain([&0]).map(|t| *t as i32).collect(),
        ids: TokenId::of_words(ids),
        mask: vec![1; rows],
        meta: vec![[0.0, 0.0, weight / rows as f32, 0.0]; rows],
        ..MicroBatch::default()
    }
}

fn step(trainer: &mut Trainer, n: u64, weight: f32) -> StepStats {
    let micro = micro(trainer.config(), weight / 2.0);
    trainer.step(&[micro.clone(), micro], &hyper(n, 1.0, 8)).unwrap()
}

/// Every smaller storage learns what float32 learns, in less memory, and continues from its saved state bit by bit.
#[test]
fn smaller_storage_learns_the_same() {
    let small = [(Moments::Int8, Storage::Float16), (Moments::Int8, Storage::Float32), (Moments::Float32, Storage::Float16)];
    for device in devices() {
        // A software adapter takes one recipe with both kinds of storage, and half as far.
        let (recipes, storages, half) = if is_software(&device) { (1, 1, 6) } else { (3, 3, 12) };
        let (saved, to) = (half + 1, 2 * half + 1);
        let all = [(Weights::Absmean, Optimizer::Adamw), (Weights::Float, Optimizer::Muon), (Weights::Threshold, Optimizer::Adamw)];
        for (weights, optimizer) in all.into_iter().take(recipes) {
            let mut whole = trainer(&device, weights, optimizer, Moments::Float32, Storage::Float32);
            let first = step(&mut whole, 1, 1.0);
            let last = (2..to).map(|n| step(&mut whole, n, 1.0)).last().unwrap();
            assert!(last.ce < 0.8 * first.ce, "{weights:?}: it learns: {} {}", first.ce, last.ce);
            for (moments, storage) in small.into_iter().take(storages) {
                let what = format!("{weights:?} {optimizer:?} {moments:?} {storage:?} on {}", device.name());
                let mut lean = trainer(&device, weights, optimizer, moments, storage);
                // Gradients of the threshold rule stay float32, and so small a model has few activations.
                let spares = weights != Weights::Threshold || moments == Moments::Int8;
                assert!(!spares || lean.session_bytes() < whole.session_bytes(), "{what}");
                let one = step(&mut lean, 1, 1.0);
                assert!(
                    (one.ce - first.ce).abs() < 1e-5 * first.ce && (one.grad_norm / first.grad_norm - 1.0).abs() < 5e-3,
                    "{what}: {one:?} {first:?}"
                );
                assert!(one.grad_norm_clipped <= 1.0001, "{what}");
                for n in 2..saved {
                    step(&mut lean, n, 1.0);
                }
                let (tensors, state) = (lean.tensors().unwrap(), lean.optimizer_state().unwrap());
                let end = (saved..to).map(|n| step(&mut lean, n, 1.0)).last().unwrap();
                assert!(!end.skipped && (end.ce / last.ce - 1.0).abs() < 0.2, "{what}: {} {}", end.ce, last.ce);
                let mut resumed = trainer(&device, weights, optimizer, moments, storage);
                resumed.load(&tensors).unwrap();
                assert!(resumed.load_optimizer_state(&state).unwrap());
                let again = (saved..to).map(|n| step(&mut resumed, n, 1.0)).last().unwrap();
                assert_eq!(again.ce.to_bits(), end.ce.to_bits(), "{what}");
                let bits = |t: &mut Trainer| t.tensors().unwrap().into_values().flatten().map(f32::to_bits).collect::<Vec<_>>();
                assert!(bits(&mut lean) == bits(&mut resumed), "{what}");
            }
        }
    }
}

/// Gradients that float16 holds are those of float32 up to its rounding.
#[test]
fn float16_gradients_are_close() {
    for device in devices() {
        let gradients = [Storage::Float32, Storage::Float16].map(|storage| {
            let mut t = trainer(&device, Weights::Absmean, Optimizer::Adamw, Moments::Float32, storage);
            step(&mut t, 1, 1.0);
            t.gradients().unwrap()
        });
        for (name, want) in &gradients[0] {
            let size = want.iter().map(|x| x * x).sum::<f32>().sqrt();
            let apart = want.iter().zip(&gradients[1][name]).map(|(a, b)| (a - b).powi(2)).sum::<f32>().sqrt();
            assert!(apart < 4e-3 * size, "{name} on {}: {apart} of {size}", device.name());
        }
    }
}

#[derive(serde::Deserialize)]
struct Golden {
    init_scale: f32,
    growth_interval: u32,
    steps: Vec<GoldenStep>,
}

#[derive(serde::Deserialize)]
struct GoldenStep {
    overflow: bool,
    skipped: bool,
    scale: f32,
}

/// The scale goes as PyTorch's `GradScaler` goes over the same overflows, which here are real ones: a loss that is weighted
/// so heavily that its gradient passes 65,504 skips the step, leaves the parameters alone and halves the scale.
#[test]
fn the_loss_scale_follows_the_golden_sequence() {
    let golden: Golden = serde_json::from_str(include_str!("data/loss_scale.json")).unwrap();
    let start = LossScale { factor: golden.init_scale, good: 0, interval: golden.growth_interval };
    for device in devices() {
        let mut t = trainer(&device, Weights::Absmean, Optimizer::Adamw, Moments::Float32, Storage::Float16);
        t.set_loss_scale(start);
        // All that happens to a scale has happened once by a third of the way.
        let steps = if is_software(&device) { golden.steps.len() / 3 } else { golden.steps.len() };
        for (n, want) in golden.steps.iter().take(steps).enumerate() {
            let before = want.overflow.then(|| (t.tensors().unwrap(), t.optimizer_state().unwrap()));
            let stats = step(&mut t, n as u64 + 1, if want.overflow { 1e8 } else { 1.0 });
            assert_eq!((stats.overflowed, stats.skipped), (want.overflow, want.skipped), "step {n} on {}: {stats:?}", device.name());
            assert_eq!(t.loss_scale(), want.scale, "step {n} on {}", device.name());
            if let Some((tensors, mut state)) = before {
                let mut after = t.optimizer_state().unwrap();
                after.remove("loss_scale");
                state.remove("loss_scale");
                assert!(t.tensors().unwrap() == tensors && after == state, "step {n}: a skipped step changes nothing");
            }
        }
    }
}
