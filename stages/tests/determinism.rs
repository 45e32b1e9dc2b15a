//! The same bytes whatever the number of threads, after a resume, and run after run on one device.

mod common;

use std::collections::BTreeMap;

use common::{devices, hyper, is_software, noise};
use flow_lm::config::{ModelConfig, Preset, Role, Weights};
use flow_lm::graph::Storage;
use flow_lm::graph::{Moments, NewtonSchulz, Optimizer};
use flow_lm::infer::{Session, Uses};
use flow_lm::tokenizer::TokenId;
use flow_lm::train::{MicroBatch, TrainShape, Trainer};
use flow_shaders::device::{Device, Opening, open, open_with};
use flow_shaders::kernels::attention::Cached;

const SHAPE: TrainShape = TrainShape {
    batch: 3,
    seq: 24,
    top_k: 4,
    ns: NewtonSchulz::quintic(5),
    recompute: false,
    moments: Moments::Float32,
    storage: Storage::Float32,
    evaluates: false,
};

type Tensors = BTreeMap<String, Vec<f32>>;

/// Odd sizes, so that no tile and no thread gets an equal share.
fn config(weights: Weights) -> ModelConfig {
    ModelConfig { vocab: 301, dim: 72, layers: 2, heads: 6, kv_heads: 2, head_dim: 12, mlp: 200, seq: 24, weights, ..Preset::Poc.config() }
}

fn weights(config: &ModelConfig) -> Tensors {
    let fill = |(i, t): (usize, flow_lm::config::TensorSpec)| {
        let mut next = noise(i as u64 + 1);
        let values = (0..t.len()).map(|_| match t.role {
            Role::Norm => 1.0 + 0.1 * next(),
            Role::Scale => 0.05 + 0.01 * next(),
            _ => 0.1 * next(),
        });
        (t.name.clone(), values.collect())
    };
    config.tensors().into_iter().enumerate().map(fill).collect()
}

fn micro(step: u64, vocab: usize, shape: &TrainShape) -> MicroBatch {
    let (rows, seq) = (shape.batch * shape.seq, shape.seq);
    let mut next = noise(step + 1000);
    let mut token = || ((next() + 0.5) * vocab as f32) as u32 % vocab as u32;
    let labels: Vec<i32> = (0..rows).map(|r| if r % seq > 20 { -100 } else { token() as i32 }).collect();
    MicroBatch {
        ids: (0..rows).map(|_| TokenId(token())).collect(),
        mask: (0..rows).map(|r| u32::from(r % seq <= 20)).collect(),
        topk_ids: (0..rows).flat_map(|r| [0, 1, 2, 3].map(|k| ((r * 7 + k * 50) % vocab) as i32)).collect(),
        targets: (0..rows).flat_map(|_| [-1.0, -1.5, -2.0, -2.5].map(|l| l * (1.0 / 1.3))).collect(),
        meta: labels.iter().map(|l| if *l < 0 { [0.0; 4] } else { [-1.4, 0.01, 0.0025, 0.002] }).collect(),
        labels,
    }
}

fn train(trainer: &mut Trainer, from: u64, to: u64) {
    train_at(trainer, &SHAPE, from, to);
}

/// Steps `from .. to` (from 1) of a run that accumulates two micro-batches and flips to A4 at step 3.
fn train_at(trainer: &mut Trainer, shape: &TrainShape, from: u64, to: u64) {
    for step in from..to {
        let hyper = hyper(step, 1.3, if step < 3 { 8 } else { 4 });
        let vocab = trainer.config().vocab;
        let stats = trainer.step(&[micro(2 * step, vocab, shape), micro(2 * step + 1, vocab, shape)], &hyper).unwrap();
        assert!(!stats.skipped && stats.total().is_finite() && stats.grad_norm > 0.0, "step {step}: {stats:?}");
    }
}

fn start(device: &Device, weights_of: Weights, optimizer: Optimizer) -> Trainer {
    let config = config(weights_of);
    let mut trainer = Trainer::new(device, config.clone(), SHAPE, optimizer).unwrap();
    trainer.load(&weights(&config)).unwrap();
    trainer
}

/// Parameters and optimizer state as bits.
fn bits(trainer: &mut Trainer) -> BTreeMap<String, Vec<u32>> {
    let mut all = trainer.tensors().unwrap();
    all.extend(trainer.optimizer_state().unwrap());
    all.into_iter().map(|(name, values)| (name, bytemuck::cast_vec(values))).collect()
}

fn same(what: &str, a: &BTreeMap<String, Vec<u32>>, b: &BTreeMap<String, Vec<u32>>) {
    assert!(a.keys().eq(b.keys()), "{what}");
    let different: Vec<&String> = a.keys().filter(|k| a[*k] != b[*k]).collect();
    assert!(different.is_empty(), "{what}: these differ: {different:?}");
}

static RECIPES: [(Weights, Optimizer); 3] =
    [(Weights::Absmean, Optimizer::Muon), (Weights::Threshold, Optimizer::Adamw), (Weights::Float, Optimizer::Muon)];

/// All recipes, or those of a range where the adapter is a CPU that plays one.
fn some(device: &Device, few: std::ops::Range<usize>) -> &'static [(Weights, Optimizer)] {
    if is_software(device) { &RECIPES[few] } else { &RECIPES }
}

#[test]
fn cpu_training_does_not_depend_on_the_number_of_threads() {
    for (weights, optimizer) in RECIPES {
        let [one, three] = [1, 3].map(|threads| {
            let mut trainer = start(&open("cpu", threads).unwrap(), weights, optimizer);
            train(&mut trainer, 1, 4);
            bits(&mut trainer)
        });
        same(&format!("{weights:?} {optimizer:?}, 1 and 3 threads"), &one, &three);
    }
}

#[test]
fn what_is_computed_again_has_the_same_bits() {
    for device in devices() {
        for &(weights, optimizer) in some(&device, 0..1) {
            let [kept, again] = [false, true].map(|recompute| {
                let shape = TrainShape { recompute, ..SHAPE };
                let mut trainer = Trainer::new(&device, config(weights), shape, optimizer).unwrap();
                trainer.load(&self::weights(&config(weights))).unwrap();
                train(&mut trainer, 1, 4);
                (bits(&mut trainer), trainer.session_bytes())
            });
            same(&format!("{weights:?} {optimizer:?} on {}", device.name()), &kept.0, &again.0);
            assert!(again.1 < kept.1, "{} bytes instead of {}", again.1, kept.1);
        }
    }
}

#[test]
fn a_resumed_run_has_the_bytes_of_one_that_never_stopped() {
    for device in devices() {
        for &(weights, optimizer) in some(&device, 1..2) {
            let mut whole = start(&device, weights, optimizer);
            train(&mut whole, 1, 3);
            let (tensors, state) = (whole.tensors().unwrap(), whole.optimizer_state().unwrap());
            train(&mut whole, 3, 5);
            let mut resumed = Trainer::new(&device, config(weights), SHAPE, optimizer).unwrap();
            resumed.load(&tensors).unwrap();
            assert!(resumed.load_optimizer_state(&state).unwrap());
            train(&mut resumed, 3, 5);
            same(&format!("{weights:?} {optimizer:?} on {}", device.name()), &bits(&mut whole), &bits(&mut resumed));
        }
    }
}

#[test]
fn the_same_run_twice_on_a_device_has_the_same_bytes() {
    for device in devices() {
        for &(weights, optimizer) in some(&device, 2..3) {
            let [a, b] = [(); 2].map(|()| {
                let mut trainer = start(&device, weights, optimizer);
                train(&mut trainer, 1, 4);
                bits(&mut trainer)
            });
            same(&format!("{weights:?} {optimizer:?} on {}", device.name()), &a, &b);
        }
    }
}

/// With bindings smaller than embedding, logits, queries and caches, steps are cut into parts: the same bits.
#[test]
fn what_is_bound_in_parts_has_the_same_bits() {
    for device in devices().into_iter().filter(|d| !d.name().starts_with("cpu")) {
        let small = |bytes| open_with(&device.name(), Opening { binding: Some(bytes), ..Opening::default() }).unwrap();
        let (config, shape) = (config(Weights::Absmean), TrainShape { batch: 8, seq: 64, ..SHAPE });
        let rows = shape.batch * shape.seq;
        assert!([config.vocab * config.dim, rows * config.vocab, rows * config.dim].into_iter().all(|n| n * 4 > 80_000));
        let [whole, parts] = [&device, &small(80_000)].map(|device| {
            let mut trainer = Trainer::new(device, config.clone(), shape, Optimizer::Muon).unwrap();
            trainer.load(&weights(&config)).unwrap();
            train_at(&mut trainer, &shape, 1, 2);
            bits(&mut trainer)
        });
        same(&format!("bound in parts on {}", device.name()), &whole, &parts);
        // Each kernel that takes a cache in parts has its own test.
        let caches = if is_software(&device) { 1..2 } else { 0..3 };
        for cache in [Cached::Float, Cached::Half, Cached::Int8][caches].iter().copied() {
            let [whole, parts] = [&device, &small(1_100_000)].map(|device| decoded(device, cache, 80));
            assert!(whole == parts, "{cache:?}, bound in parts on {}", device.name());
        }
    }
}

/// Logits of a packed model, and the tokens that it decodes for some sequences.
fn decoded(device: &Device, cache: Cached, sequences: usize) -> Vec<u32> {
    let path = common::golden_dir().join("gguf/student-tq2_0.gguf");
    let (config, tensors) = flow_lm::format::gguf::model::load(flow_lm::format::gguf::GgufFile::read(&path).unwrap()).unwrap();
    let uses = Uses { score: Some((1, 20)), logits: true, decode: Some((sequences, 200)), prefill: 8, cache, ..Uses::default() };
    let mut lm = Session::new(device, config.clone(), &tensors, uses).unwrap();
    let ids: Vec<TokenId> = (0..20).map(|i| TokenId(i * 37 % config.vocab as u32)).collect();
    let mut all: Vec<u32> = bytemuck::cast_vec(lm.logits(&ids, &[1; 20]).unwrap());
    let starts: Vec<&[TokenId]> = (0..sequences).map(|s| [&ids[..19], &ids[3..9], &ids[..0]][s % 3]).collect();
    lm.read_starts(&starts).unwrap();
    let mut next: Vec<TokenId> = (5..).take(sequences).map(TokenId).collect();
    for t in 0..3 {
        let pos: Vec<u32> = starts.iter().map(|start| start.len() as u32 + t).collect();
        next = lm.step(&next, &pos).unwrap();
        all.extend(TokenId::words(&next));
    }
    all
}

/// What a CPU computes, as one digest: trained parameters of every recipe, and the tokens that a packed model decodes with
/// every form of the cache.
fn digest_of_everything() -> String {
    let cpu = open("cpu", 2).unwrap();
    let mut hash = blake3::Hasher::new();
    for (weights, optimizer) in RECIPES {
        let mut trainer = start(&cpu, weights, optimizer);
        train(&mut trainer, 1, 4);
        for words in bits(&mut trainer).values() {
            hash.update(bytemuck::cast_slice(words));
        }
    }
    for cache in [Cached::Float, Cached::Half, Cached::Int8] {
        hash.update(bytemuck::cast_slice(&decoded(&cpu, cache, 3)));
    }
    hash.finalize().to_hex().to_string()
}

/// In this variable the test finds that it is its own child: it prints the digest and what computed it.
const CHILD: &str = "FLOW_TEST_PRINT_DIGEST";

#[test]
fn every_instruction_set_has_the_same_bits() {
    let here = digest_of_everything();
    if std::env::var_os(CHILD).is_some() {
        return println!("digest {here} by {}.", flow_shaders::simd::level());
    }
    for set in flow_shaders::simd::NAMES {
        let run = std::process::Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "every_instruction_set_has_the_same_bits", "--nocapture"])
            .envs([("FLOW_SIMD", set), (CHILD, "1")])
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&run.stdout);
        let said = text.split("digest ").nth(1).and_then(|rest| rest.split_once('.')).and_then(|(said, _)| said.split_once(" by "));
        let (digest, level) = said.unwrap_or_else(|| panic!("{set}: {text}{}", String::from_utf8_lossy(&run.stderr)));
        assert_eq!(digest, here, "{set}, {level}");
        // The smallest one is what it says; the largest is what this process runs.
        assert!(set != "portable" || level == "portable", "{level}");
        assert!(set != "all" || level == flow_shaders::simd::level(), "{level}");
    }
}
