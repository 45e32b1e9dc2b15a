//! Weights that become ternary gradually, and a teacher in the loop: against what is stored of teachers, against differences
//! of the loss, and the same bytes however a training is interrupted.

mod common;

use std::collections::BTreeMap;

use common::{devices, hyper, noise};
use flow_lm::config::{Activations, Group, ModelConfig, Preset, Role, Weights};
use flow_lm::format::Checkpoint;
use flow_lm::graph::{Moments, NewtonSchulz, Optimizer, Storage};
use flow_lm::infer::{Session, Uses};
use flow_lm::tokenizer::TokenId;
use flow_lm::train::{Hyper, InLoop, MicroBatch, Relation, Softness, TokenWeight, TrainShape, Trainer};
use flow_shaders::device::{Device, open};

const VOCAB: usize = 301;

const SHAPE: TrainShape = TrainShape {
    batch: 4,
    seq: 16,
    top_k: 0,
    ns: NewtonSchulz::quintic(5),
    recompute: false,
    moments: Moments::Float32,
    storage: Storage::Float32,
    evaluates: true,
};

/// A student whose matrices are ternary in groups of 64; its embedding too.
fn student(activations: Activations) -> ModelConfig {
    ModelConfig {
        vocab: VOCAB,
        dim: 128,
        layers: 2,
        heads: 4,
        kv_heads: 2,
        head_dim: 32,
        mlp: 192,
        seq: SHAPE.seq,
        weights: Weights::Absmean,
        group: Group::Of(64),
        ternary_embedding: true,
        sub_norm: false,
        activations,
        ..Preset::Poc.config()
    }
}

/// A teacher of other sizes over the same vocabulary.
fn teacher(weights: Weights) -> InLoop {
    let config = ModelConfig {
        dim: 80,
        heads: 5,
        kv_heads: 5,
        head_dim: 16,
        mlp: 96,
        seq: 32,
        weights,
        group: Group::Tensor,
        ternary_embedding: false,
        ..student(Activations::Float)
    };
    let tensors = tensors(&config, 77);
    InLoop {
        model: Checkpoint { config, tensors: tensors.into(), extra: serde_json::Value::Null, tokenizer: None },
        token_weight: TokenWeight::Even,
        relation: None,
    }
}

fn tensors(config: &ModelConfig, seed: u64) -> BTreeMap<String, Vec<f32>> {
    let fill = |(i, t): (usize, flow_lm::config::TensorSpec)| {
        let mut next = noise(seed + i as u64);
        let values = (0..t.len()).map(|_| if t.role == Role::Norm { 1.0 + 0.1 * next() } else { 0.3 * next() });
        (t.name.clone(), values.collect())
    };
    config.tensors().into_iter().enumerate().map(fill).collect()
}

/// A micro-batch of which a teacher says something: the last rows of each window are padding.
fn micro(seed: u64, (kd, ce): (f32, f32)) -> MicroBatch {
    let (rows, seq) = (SHAPE.batch * SHAPE.seq, SHAPE.seq);
    let mut next = noise(seed + 1000);
    let mut token = || ((next() + 0.5) * VOCAB as f32) as u32 % VOCAB as u32;
    let real = |r: usize| r % seq < 13;
    let n = (0..rows).filter(|r| real(*r)).count() as f32;
    MicroBatch {
        ids: (0..rows).map(|_| TokenId(token())).collect(),
        mask: (0..rows).map(|r| u32::from(real(r))).collect(),
        labels: (0..rows).map(|r| if real(r) { token() as i32 } else { -1 }).collect(),
        topk_ids: Vec::new(),
        targets: Vec::new(),
        meta: (0..rows).map(|r| if real(r) { [0.0, kd / n, ce / n, 0.0] } else { [0.0; 4] }).collect(),
    }
}

fn at(softness: Softness, tau: f32) -> Hyper {
    Hyper { softness, ..hyper(1, tau, 8) }
}

/// What the three phases of a schedule compute with.
const PHASES: [Softness; 4] = [
    Softness { pressure: 0.0, inv_temperature: 0.0 },
    Softness { pressure: 0.4, inv_temperature: 0.0 },
    Softness { pressure: 0.7, inv_temperature: 5.0 },
    Softness::HARD,
];

fn close(what: &str, a: &BTreeMap<String, Vec<f32>>, b: &BTreeMap<String, Vec<f32>>, tolerance: f32) {
    for (name, a) in a {
        let b = &b[name];
        let largest = b.iter().fold(1e-6f32, |m, v| m.max(v.abs()));
        let worst = a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0f32, f32::max);
        assert!(worst <= tolerance * largest, "{what}: {name}: {worst} of {largest}");
    }
}

/// A teacher's whole distributions, stored as traces hold them, give the losses and gradients of the teacher in the loop.
#[test]
fn a_teacher_in_the_loop_says_what_traces_of_all_tokens_say() {
    for device in devices() {
        for (weights, tau) in [(Weights::Float, 1.0), (Weights::Absmean, 1.0), (Weights::Float, 1.7)] {
            let teacher = teacher(weights);
            let config = student(Activations::Float);
            let batch = micro(3, (0.8, 0.3));
            let mut taught = Trainer::beside(&device, config.clone(), SHAPE, Optimizer::Adamw, (false, Some(&teacher))).expect("builds");
            taught.load(&tensors(&config, 5)).expect("loads");
            let seen = taught.step(std::slice::from_ref(&batch), &at(Softness::HARD, tau)).expect("steps");
            let gradients = taught.gradients().expect("reads");

            // float16, as it stands in the loop.
            let halves = |t: &flow_lm::config::TensorSpec, v: Vec<f32>| match t.role {
                Role::Norm => v,
                _ => v.into_iter().map(|x| half::f16::from_f32(x).to_f32()).collect(),
            };
            let c = &teacher.model.config;
            let held: BTreeMap<String, Vec<f32>> = c
                .tensors()
                .iter()
                .map(|t| {
                    let values = flow_lm::format::tensors::TensorSource::tensor(&teacher.model.tensors, &t.name).into_owned();
                    (t.name.clone(), if weights == Weights::Float || t.role == Role::Embedding { halves(t, values) } else { values })
                })
                .collect();
            let uses = Uses { score: Some((SHAPE.batch, SHAPE.seq)), logits: true, ..Uses::default() };
            let mut session = Session::new(&device, c.clone(), &held, uses).expect("fits");
            let logits = session.logits(&batch.ids, &batch.mask).expect("runs");
            let full = TrainShape { top_k: VOCAB, ..SHAPE };
            let rows = batch.ids.len();
            // Logits / τ are log-probabilities up to a constant; nothing is left for Other.
            let stored = MicroBatch {
                topk_ids: (0..rows).flat_map(|_| 0..VOCAB as i32).collect(),
                targets: logits
                    .chunks_exact(VOCAB)
                    .flat_map(|row| {
                        let top = row.iter().copied().fold(f32::MIN, f32::max);
                        row.iter().map(move |z| (z - top) / tau).collect::<Vec<_>>()
                    })
                    .collect(),
                meta: batch.meta.iter().map(|m| [-1e4, m[1], m[2], m[3]]).collect(),
                ..batch.clone()
            };
            let mut from_traces = Trainer::new(&device, config.clone(), full, Optimizer::Adamw).expect("builds");
            from_traces.load(&tensors(&config, 5)).expect("loads");
            let read = from_traces.step(&[stored], &at(Softness::HARD, tau)).expect("steps");
            let what = format!("{weights:?} at {tau} on {}", device.name());
            assert!((seen.kl - read.kl).abs() < 2e-5 * read.kl && (seen.ce - read.ce).abs() < 1e-5 * read.ce, "{what}: {seen:?} {read:?}");
            assert!(seen.kl > 0.01, "{what}: {seen:?}");
            close(&what, &gradients, &from_traces.gradients().expect("reads"), 1e-4);
        }
    }
}

/// Differences of the relations' loss are what the gradients of a layer's queries, keys and values say; layers above have none.
#[test]
fn relations_of_a_layer_are_learned() {
    for device in devices() {
        let config = ModelConfig {
            weights: Weights::Float,
            group: Group::Tensor,
            ternary_embedding: false,
            activations: Activations::default(),
            ..student(Activations::Float)
        };
        let start = tensors(&config, 5);
        let batch = micro(4, (0.0, 0.0));
        let teacher = InLoop { relation: Some(Relation { layer: 0, weight: 1.0 }), ..teacher(Weights::Float) };
        let mut t = Trainer::beside(&device, config.clone(), SHAPE, Optimizer::Adamw, (false, Some(&teacher))).expect("builds");
        let h = Hyper { relation: 0.01, ..at(Softness::HARD, 1.0) };
        t.load(&start).expect("loads");
        t.accumulate(std::slice::from_ref(&batch), &h, true).expect("runs");
        let gradients = t.gradients().expect("reads");
        let above = gradients.iter().filter(|(n, _)| n.contains("layers.1"));
        assert!(above.flat_map(|(_, g)| g).all(|x| *x == 0.0), "above the layer nothing moves");
        for name in ["layers.0.q", "layers.0.k", "layers.0.v", "layers.0.attn_norm", "embed"] {
            let mut next = noise(8);
            let direction: Vec<f32> = start[name].iter().map(|_| next()).collect();
            let mut loss = |by: f32| {
                let moved: Vec<f32> = start[name].iter().zip(&direction).map(|(w, d)| by.mul_add(*d, *w)).collect();
                t.load_with(|s| if s.name == name { moved.clone() } else { start[&s.name].clone() }).expect("loads");
                t.accumulate(std::slice::from_ref(&batch), &h, true).expect("runs");
                f64::from(t.relations().expect("reads"))
            };
            let by = 4e-3f32;
            let difference = (loss(by) - loss(-by)) / (2.0 * f64::from(by));
            let said: f64 = gradients[name].iter().zip(&direction).map(|(g, d)| f64::from(*g) * f64::from(*d)).sum();
            let size = f64::from(gradients[name].iter().map(|g| g * g).sum::<f32>().sqrt())
                * f64::from(direction.iter().map(|d| d * d).sum::<f32>().sqrt());
            assert!(
                size > 0.0 && (difference - said).abs() < 0.01 * size,
                "{name} on {}: {said} by the gradient, {difference} by differences",
                device.name()
            );
        }
    }
}

/// The teacher's own cross-entropy weighs each token: with one target a row, the KL's gradient is so many times the even one.
#[test]
fn tokens_are_weighed_by_the_teachers_cross_entropy() {
    let device = open("cpu", 2).expect("opens");
    let config = student(Activations::Float);
    let mut batch = micro(9, (0.0, 0.0));
    batch.meta.iter_mut().for_each(|m| m[1] = 0.0);
    batch.meta[5][1] = 1.0;
    let run = |token_weight| {
        let teacher = InLoop { token_weight, ..teacher(Weights::Float) };
        let mut t = Trainer::beside(&device, config.clone(), SHAPE, Optimizer::Adamw, (false, Some(&teacher))).expect("builds");
        t.load(&tensors(&config, 5)).expect("loads");
        let stats = t.step(std::slice::from_ref(&batch), &at(Softness::HARD, 1.0)).expect("steps");
        (stats.kl, t.gradients().expect("reads"))
    };
    let ((even, of_even), (weighed, of_weighed)) = (run(TokenWeight::Even), run(TokenWeight::TeacherCe));
    let teacher = teacher(Weights::Float);
    let uses = Uses { score: Some((SHAPE.batch, SHAPE.seq)), ..Uses::default() };
    let mut session = Session::new(&device, teacher.model.config.clone(), &teacher.model.tensors, uses).expect("fits");
    let ce = session.nll(&batch.ids, &batch.mask, &batch.labels).expect("runs")[5];
    assert!(ce > 0.5 && (weighed / even - ce).abs() < 1e-2 * ce, "{weighed} of {even}: {ce}");
    let scaled = of_even.into_iter().map(|(n, v)| (n, v.into_iter().map(|x| x * ce).collect())).collect();
    close("gradients", &of_weighed, &scaled, 1e-2);
}

/// Differences of the loss along directions that keep every scale (two masters of a group, one up and one down) are what the
/// gradient says, in the ramp and while the assignment is soft.
#[test]
fn gradients_of_softened_weights_are_differences_of_the_loss() {
    for device in devices() {
        let config = ModelConfig { ternary_embedding: false, ..student(Activations::Float) };
        let start = tensors(&config, 5);
        let batch = micro(4, (0.0, 1.0));
        for softness in [
            Softness { pressure: 0.0, inv_temperature: 0.0 },
            Softness { pressure: 0.5, inv_temperature: 4.0 },
            Softness { pressure: 1.0, inv_temperature: 3.0 },
        ] {
            let mut t = Trainer::beside(&device, config.clone(), SHAPE, Optimizer::Adamw, (true, None)).expect("builds");
            t.load(&start).expect("loads");
            t.step(std::slice::from_ref(&batch), &at(softness, 1.0)).expect("steps");
            let gradients = t.gradients().expect("reads");
            for name in ["layers.0.q", "layers.1.v", "layers.0.o", "layers.1.gate", "layers.0.down"] {
                let w = &start[name];
                let mut direction = vec![0f32; w.len()];
                let mut next = noise(8);
                for group in direction.chunks_mut(64).zip(w.chunks(64)) {
                    for (pair, w) in group.0.chunks_mut(2).zip(group.1.chunks(2)) {
                        let by = next();
                        (pair[0], pair[1]) = (by * w[0].signum(), -by * w[1].signum());
                    }
                }
                let h = 2e-3f32;
                // Masters that would change their sign are left where they are.
                for (pair, w) in direction.chunks_mut(2).zip(w.chunks(2)) {
                    if w[0].abs() < 2.0 * h || w[1].abs() < 2.0 * h {
                        pair.fill(0.0);
                    }
                }
                let mut loss = |by: f32| {
                    let moved: Vec<f32> = w.iter().zip(&direction).map(|(w, d)| by.mul_add(*d, *w)).collect();
                    t.load(&BTreeMap::from_iter(start.iter().map(|(n, v)| (n.clone(), if n == name { moved.clone() } else { v.clone() }))))
                        .expect("loads");
                    let losses = t.evaluate_at(std::slice::from_ref(&batch), 1.0, flow_lm::config::Bits::Eight, softness).expect("runs");
                    losses.iter().zip(&batch.meta).map(|(l, m)| f64::from(l.1) * f64::from(m[2])).sum::<f64>()
                };
                let difference = (loss(h) - loss(-h)) / (2.0 * f64::from(h));
                let said: f64 = gradients[name].iter().zip(&direction).map(|(g, d)| f64::from(*g) * f64::from(*d)).sum();
                let size = f64::from(gradients[name].iter().map(|g| g * g).sum::<f32>().sqrt())
                    * f64::from(direction.iter().map(|d| d * d).sum::<f32>().sqrt());
                assert!(
                    (difference - said).abs() < 0.02 * size.max(1e-4),
                    "{name} at {softness:?} on {}: {said} by the gradient, {difference} by differences",
                    device.name()
                );
            }
        }
    }
}

/// The straight-through gradient of a ramp is the gradient of a model whose weights are the mix.
#[test]
fn a_ramp_passes_the_gradient_of_the_mix_straight_through() {
    let device = open("cpu", 2).expect("opens");
    let config = student(Activations::Float);
    let softness = Softness { pressure: 0.4, inv_temperature: 0.0 };
    let mut t = Trainer::beside(&device, config.clone(), SHAPE, Optimizer::Adamw, (true, None)).expect("builds");
    t.load(&tensors(&config, 5)).expect("loads");
    let batch = micro(4, (0.0, 1.0));
    t.step(std::slice::from_ref(&batch), &at(softness, 1.0)).expect("steps");
    let (gradients, mixed) = (t.gradients().expect("reads"), t.soft_values().expect("reads"));
    let float = ModelConfig {
        weights: Weights::Float,
        group: Group::Tensor,
        ternary_embedding: false,
        activations: Activations::default(),
        ..config
    };
    let mut plain = Trainer::new(&device, float.clone(), SHAPE, Optimizer::Adamw).expect("builds");
    let mut all = tensors(&float, 5);
    all.extend(mixed);
    plain.load(&all).expect("loads");
    plain.step(&[batch], &at(Softness::HARD, 1.0)).expect("steps");
    assert_eq!(gradients, plain.gradients().expect("reads"), "bit for bit");
}

/// Codes, scales and the forward pass at full pressure and no temperature are those of hard weights, bit for bit; activations
/// of 8 bits too, up to the order of roundings.
#[test]
fn the_end_of_every_schedule_is_what_is_exported() {
    for (device, activations) in devices().into_iter().flat_map(|d| [Activations::Float, Activations::Quantised].map(|a| (d.clone(), a))) {
        let config = student(activations);
        let mut t = Trainer::beside(&device, config.clone(), SHAPE, Optimizer::Adamw, (true, None)).expect("builds");
        let masters = tensors(&config, 5);
        t.load(&masters).expect("loads");
        let batch = micro(4, (0.0, 1.0));
        let bits = flow_lm::config::Bits::Eight;
        let hard = t.evaluate(&batch, 1.0, bits).expect("runs");
        // So cold that it is no longer soft, yet computed as if it were.
        let cold = Softness { pressure: 1.0, inv_temperature: 1e30 };
        let soft = t.evaluate_at(std::slice::from_ref(&batch), 1.0, bits, cold).expect("runs");
        let values = t.soft_values().expect("reads");
        for (name, packed) in t.packed().expect("reads") {
            assert_eq!(packed.values(), values[&name], "{name} on {}", device.name());
            let (codes, scale) = flow_shaders::pack_ternary_groups(&masters[&name], packed.cols, 64, packed.groups);
            assert_eq!((codes, scale), (packed.codes, packed.scale), "{name}: what a file holds");
        }
        let exact = activations == Activations::Float && device.name().starts_with("cpu");
        for (a, b) in hard.iter().zip(&soft) {
            // A rounding may move a code of an activation.
            let near = if activations == Activations::Float { 1e-4 } else { 2e-2 };
            assert!(if exact { a == b } else { (a.1 - b.1).abs() < near }, "{a:?} {b:?} on {}", device.name());
        }
    }
}

fn bits_of(trainer: &mut Trainer) -> BTreeMap<String, Vec<u32>> {
    let mut all = trainer.tensors().expect("reads");
    all.extend(trainer.optimizer_state().expect("reads"));
    all.into_iter().map(|(name, values)| (name, bytemuck::cast_vec(values))).collect()
}

/// Steps of a training that goes through every phase, two of each, with two micro-batches a step.
fn train(trainer: &mut Trainer, steps: impl IntoIterator<Item = u64>) {
    for step in steps {
        let h = Hyper { step: step + 1, relation: 2e-3, ..at(PHASES[step as usize / 2], 1.3) };
        let stats = trainer.step(&[micro(2 * step, (0.4, 0.1)), micro(2 * step + 1, (0.4, 0.1))], &h).expect("steps");
        assert!(!stats.skipped && stats.kl > 0.0 && stats.relation > 0.0 && stats.total().is_finite(), "step {step}: {stats:?}");
    }
}

fn start(device: &Device, storage: Storage, teacher: &InLoop) -> Trainer {
    let config = student(if storage == Storage::Float16 { Activations::Quantised } else { Activations::Float });
    let shape = TrainShape { storage, recompute: storage == Storage::Float16, ..SHAPE };
    let teacher = InLoop { relation: Some(Relation { layer: 1, weight: 0.5 }), ..teacher.clone() };
    let mut t = Trainer::beside(device, config.clone(), shape, Optimizer::Muon, (true, Some(&teacher))).expect("builds");
    t.load(&tensors(&config, 5)).expect("loads");
    t.set_temperatures(&vec![1.25; t.softened().count()]).expect("writes");
    t
}

#[test]
fn a_training_that_stops_in_any_phase_ends_with_the_same_bytes() {
    let cpu = open("cpu", 2).expect("opens");
    // An adapter is slow here: it has the one with more that could go wrong.
    for (device, storage) in devices().into_iter().map(|d| (d, Storage::Float16)).chain([(cpu, Storage::Float32)]) {
        let teacher = teacher(Weights::Float);
        let mut whole = start(&device, storage, &teacher);
        train(&mut whole, 0..8);
        let whole = bits_of(&mut whole);
        // Once in each phase.
        let mut resumed = start(&device, storage, &teacher);
        train(&mut resumed, 0..1);
        for stopped in [1, 3, 5, 7] {
            let (tensors, state) = (resumed.tensors().expect("reads"), resumed.optimizer_state().expect("reads"));
            resumed = start(&device, storage, &teacher);
            resumed.load(&tensors).expect("loads");
            assert!(resumed.load_optimizer_state(&state).expect("loads"));
            train(&mut resumed, stopped..(stopped + 2).min(8));
        }
        assert!(bits_of(&mut resumed) == whole, "{storage:?} on {}", device.name());
    }
}

/// In this variable the test finds that it is its own child: it prints the digest and what computed it.
const CHILD: &str = "FLOW_TEST_PRINT_TERNARISED";

#[test]
fn every_thread_count_and_instruction_set_has_the_same_bits() {
    let digest = |threads| {
        let device = open("cpu", threads).expect("opens");
        let mut hash = blake3::Hasher::new();
        for storage in [Storage::Float32, Storage::Float16] {
            let mut t = start(&device, storage, &teacher(Weights::Absmean));
            train(&mut t, [0, 2, 4, 6]);
            bits_of(&mut t).values().for_each(|words| {
                hash.update(bytemuck::cast_slice(words));
            });
        }
        hash.finalize().to_hex().to_string()
    };
    let here = digest(2);
    if std::env::var_os(CHILD).is_some() {
        return println!("digest {here}.");
    }
    assert_eq!(digest(1), here);
    assert_eq!(digest(3), here);
    for set in flow_shaders::simd::NAMES {
        let run = std::process::Command::new(std::env::current_exe().expect("this test"))
            .args(["--exact", "every_thread_count_and_instruction_set_has_the_same_bits", "--nocapture"])
            .envs([("FLOW_SIMD", set), (CHILD, "1")])
            .output()
            .expect("starts");
        let text = String::from_utf8_lossy(&run.stdout);
        assert!(text.contains(&format!("digest {here}.")), "{set}: {text}{}", String::from_utf8_lossy(&run.stderr));
    }
}
