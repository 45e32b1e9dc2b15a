//! Two trainers that each see half of a step and sum what they accumulated are one that sees all of it.

use flow_lm::config::{Bits, ModelConfig, Preset, Weights};
use flow_lm::graph::{Moments, NewtonSchulz, Optimizer, Storage};
use flow_lm::rng::Rng;
use flow_lm::tokenizer::TokenId;
use flow_lm::train::{Hyper, MicroBatch, TrainShape, Trainer, initial_values};
use flow_shaders::device::open;
use std::collections::BTreeMap;

const SHAPE: TrainShape = TrainShape {
    batch: 2,
    seq: 16,
    top_k: 0,
    ns: NewtonSchulz::quintic(5),
    recompute: false,
    moments: Moments::Float32,
    storage: Storage::Float32,
    evaluates: false,
};

fn trainer(config: &ModelConfig, storage: Storage) -> Trainer {
    let device = open("cpu", 1).expect("the CPU");
    let mut trainer = Trainer::new(&device, config.clone(), TrainShape { storage, ..SHAPE }, Optimizer::Muon).expect("fits");
    trainer.load_with(|t| initial_values(config, t, 7)).expect("loads");
    trainer
}

/// One of two micro-batches of a step: its rows weigh half of it.
fn half(vocab: usize, n: u64) -> MicroBatch {
    let (mut rng, rows) = (Rng::new(n, "micro-batch"), SHAPE.batch * SHAPE.seq);
    MicroBatch {
        ids: (0..rows).map(|_| TokenId(rng.below(vocab) as u32)).collect(),
        mask: vec![1; rows],
        labels: (0..rows).map(|_| rng.below(vocab) as i32).collect(),
        meta: vec![[0.0, 0.0, 0.5 / rows as f32, 0.0]; rows],
        ..MicroBatch::default()
    }
}

/// A part without a micro-batch adds nothing, whatever the step before has left.
#[test]
fn an_empty_part_of_a_step_adds_nothing() {
    let config =
        ModelConfig { vocab: 64, dim: 32, layers: 1, heads: 2, kv_heads: 1, head_dim: 16, mlp: 64, seq: 16, ..Preset::Poc.config() };
    let hyper = Hyper {
        step: 1,
        lr: 1e-3,
        muon_lr: 0.02,
        betas: (0.9, 0.95, 1e-8),
        weight_decay: 0.1,
        muon: (0.95, 0.1),
        clip: 1.0,
        tau: 1.0,
        bits: Bits::Eight,
        softness: Default::default(),
        relation: 0.0,
    };
    let mut one = trainer(&config, Storage::Float32);
    one.step(&[half(64, 1)], &hyper).expect("steps");
    one.accumulate(&[], &hyper, true).expect("accumulates");
    let mut seen = 0;
    one.reduce(|name, values| {
        seen += 1;
        assert!(values.iter().all(|v| *v == 0.0), "{name}");
        Ok(())
    })
    .expect("reads");
    assert!(seen > 5);
}

#[test]
fn halves_that_are_summed_train_as_the_whole() {
    let config = ModelConfig {
        vocab: 64,
        dim: 32,
        layers: 2,
        heads: 2,
        kv_heads: 1,
        head_dim: 16,
        mlp: 64,
        seq: 16,
        weights: Weights::Float,
        ..Preset::Poc.config()
    };
    // Full precision: a code that rounds the other way would be a difference of its own.
    for storage in [Storage::Float32, Storage::Float16] {
        let (mut whole, mut ranks) = (trainer(&config, storage), [trainer(&config, storage), trainer(&config, storage)]);
        for step in 1..=4 {
            let (lr, muon_lr, betas) = (3e-3, 0.02, (0.9, 0.95, 1e-8));
            let hyper = Hyper {
                step,
                lr,
                muon_lr,
                betas,
                weight_decay: 0.1,
                muon: (0.95, 0.1),
                clip: 1.0,
                tau: 1.0,
                bits: Bits::Eight,
                softness: Default::default(),
                relation: 0.0,
            };
            let micros = [half(64, 2 * step), half(64, 2 * step + 1)];
            let all = whole.step(&micros, &hyper).expect("steps");
            let mut sums: BTreeMap<String, Vec<f32>> = BTreeMap::new();
            for (rank, micro) in ranks.iter_mut().zip(&micros) {
                rank.accumulate(std::slice::from_ref(micro), &hyper, true).expect("accumulates");
                // The first pass only reads; the order of the sum is that of the ranks.
                rank.reduce(|name, values| {
                    let sum = sums.entry(name.to_owned()).or_insert_with(|| vec![0.0; values.len()]);
                    sum.iter_mut().zip(values.iter()).for_each(|(s, v)| *s += v);
                    Ok(())
                })
                .expect("reads");
            }
            for rank in &mut ranks {
                rank.reduce(|name, values| {
                    values.copy_from_slice(&sums[name]);
                    Ok(())
                })
                .expect("writes");
                let one = rank.apply().expect("updates");
                let near = |a: f32, b: f32| (a - b).abs() <= 2e-3 * b.abs();
                assert!(near(one.total(), all.total()) && near(one.grad_norm, all.grad_norm), "{step}: {one:?} {all:?}");
            }
        }
        let [a, b] = ranks.map(|mut rank| rank.tensors().expect("reads"));
        assert!(a == b, "ranks stay alike");
        for (name, values) in whole.tensors().expect("reads") {
            let worst = values.iter().zip(&a[&name]).map(|(x, y)| (x - y).abs()).fold(0.0, f32::max);
            assert!(worst < 3e-3, "{name} is {worst} off with {storage:?}");
        }
    }
}
