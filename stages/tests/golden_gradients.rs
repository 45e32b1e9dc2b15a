//! Gradients with each option of a model's shape: against PyTorch's float64 (`tests/golden/gradients/make.py`), against
//! differences of our own loss, and in less memory; and the codes that they go through against those of the host.

mod common;

use std::collections::BTreeMap;

use common::{Golden, devices, hyper, noise};
use flow_lm::config::{Activations, Bits, Group, ModelConfig, Role, ScaleType, TensorSpec, Weights};
use flow_lm::format::tensors::PackedMatrix;
use flow_lm::format::ternary::pack;
use flow_lm::graph::{Moments, NewtonSchulz, Optimizer, Storage};
use flow_lm::tokenizer::TokenId;
use flow_lm::train::{Hyper, MicroBatch, Softness, TrainShape, Trainer};
use flow_shaders::device::{Device, open};

type Tensors = BTreeMap<String, Vec<f32>>;

/// Largest difference from PyTorch, relative to the largest gradient of a tensor. Codes of activations are those of PyTorch
/// too (its batches keep them from ties), so that models that quantise are held to the same bound.
const TOLERANCE: f64 = 2e-5;

/// The numbers of `make.py`: the high bits of a linear congruential generator.
struct Stream(u64);

impl Stream {
    fn next(&mut self, bits: u32) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        self.0 >> (64 - bits)
    }
}

/// A parameter as `make.py` draws it: matrices leave out magnitudes near half their mean, where codes round.
fn draw(stream: &mut Stream, role: Role) -> f32 {
    loop {
        let k = stream.next(10) as i32 - 512;
        match role {
            Role::Norm => return 1.0 + k as f32 / 2048.0,
            Role::Bias => return k as f32 / 2048.0,
            Role::Scale => return 0.125 + k as f32 / 8192.0,
            _ if !(97..=159).contains(&k.abs()) => return k as f32 / 2048.0,
            _ => {}
        }
    }
}

/// One of the cases of `cases.json`.
struct Case {
    name: String,
    config: ModelConfig,
    bits: u32,
    /// How ternary weights are at that step.
    softness: Softness,
    loss: f64,
    tensors: Tensors,
    micro: MicroBatch,
    sequences: usize,
    /// Larger gradients are stored as every so-manieth element.
    each: usize,
}

impl Case {
    fn all() -> Vec<Self> {
        let text = std::fs::read(common::golden_dir().join("gradients/cases.json")).expect("cases.json");
        let about: serde_json::Value = serde_json::from_slice(&text).expect("JSON");
        about["cases"].as_object().expect("cases").iter().map(|(name, case)| Self::of(name, case, &about)).collect()
    }

    fn named(name: &str) -> Self {
        Self::all().into_iter().find(|c| c.name == name).expect("a case of that name")
    }

    fn of(name: &str, case: &serde_json::Value, about: &serde_json::Value) -> Self {
        let number = |v: &serde_json::Value| v.as_u64().expect("a count");
        let config: ModelConfig = serde_json::from_value(case["config"].clone()).expect("a shape");
        assert_eq!(config.problem(), None, "{name}");
        let seed = number(&case["seed"]) * 1000;
        let fill = |(i, t): (usize, TensorSpec)| {
            let mut stream = Stream(seed + i as u64 + 1);
            let values = (0..t.len()).map(|_| draw(&mut stream, t.role)).collect();
            (t.name, values)
        };
        Self {
            name: name.to_owned(),
            bits: number(&case["bits"]) as u32,
            softness: case.get("soft").map_or(Softness::HARD, |soft| {
                let [pressure, inv_temperature] = ["pressure", "inv_temperature"].map(|k| soft[k].as_f64().expect("a number") as f32);
                Softness { pressure, inv_temperature }
            }),
            loss: case["loss"].as_f64().expect("a number"),
            tensors: config.tensors().into_iter().enumerate().map(fill).collect(),
            micro: micro(&config, number(&about["sequences"]) as usize, number(&about["padded"]) as usize, number(&case["batch_seed"])),
            sequences: number(&about["sequences"]) as usize,
            each: number(&about["each"]) as usize,
            config,
        }
    }

    fn trainer(&self, device: &Device, change: impl FnOnce(&mut TrainShape)) -> Trainer {
        let mut shape = shape(self.sequences, self.config.seq);
        change(&mut shape);
        let mut trainer =
            Trainer::beside(device, self.config.clone(), shape, Optimizer::Adamw, (!self.softness.is_hard(), None)).expect("a trainer");
        trainer.load(&self.tensors).expect("parameters");
        trainer
    }

    fn hyper(&self) -> Hyper {
        Hyper { softness: self.softness, ..hyper(1, 1.0, self.bits) }
    }

    fn gradients(&self, trainer: &mut Trainer) -> Tensors {
        trainer.accumulate(std::slice::from_ref(&self.micro), &self.hyper(), true).expect("a micro-batch");
        trainer.gradients().expect("gradients")
    }
}

fn shape(batch: usize, seq: usize) -> TrainShape {
    TrainShape {
        batch,
        seq,
        top_k: 0,
        ns: NewtonSchulz::quintic(5),
        recompute: false,
        moments: Moments::Float32,
        storage: Storage::Float32,
        evaluates: false,
    }
}

/// Ids and labels as `make.py` draws them: the end of the last sequence is padding, each fifth row has no label.
fn micro(config: &ModelConfig, sequences: usize, padded: usize, seed: u64) -> MicroBatch {
    let rows = sequences * config.seq;
    let mut stream = Stream(seed);
    let mut token = || (stream.next(31) % config.vocab as u64) as u32;
    let ids: Vec<u32> = (0..rows).map(|_| token()).collect();
    let drawn: Vec<u32> = (0..rows).map(|_| token()).collect();
    let label = |r: usize| if r >= rows - padded || r % 5 == 4 { -1 } else { drawn[r] as i32 };
    let labels: Vec<i32> = (0..rows).map(label).collect();
    let weight = 1.0 / labels.iter().filter(|l| **l >= 0).count() as f32;
    MicroBatch {
        ids: TokenId::of_words(ids),
        mask: (0..rows).map(|r| u32::from(r < rows - padded)).collect(),
        meta: labels.iter().map(|l| [0.0, 0.0, if *l < 0 { 0.0 } else { weight }, 0.0]).collect(),
        labels,
        ..MicroBatch::default()
    }
}

fn largest(values: &[f32]) -> f64 {
    assert!(values.iter().all(|v| v.is_finite()));
    values.iter().fold(0f64, |m, v| m.max(f64::from(v.abs())))
}

/// The worst difference of a gradient in units of its largest element; where it is stored in part, of its elements and of its sums over
/// rows and columns, whose rounding grows with the root of how many they are of.
fn apart(golden: &Golden, spec: &TensorSpec, each: usize, got: &[f32]) -> f64 {
    let size = largest(got);
    let worst = |got: &[f64], want: &[f32], terms: usize| {
        assert_eq!(got.len(), want.len(), "{}", spec.name);
        got.iter().zip(want).fold(0f64, |m, (g, w)| m.max((g - f64::from(*w)).abs())) / (size * (terms as f64).sqrt())
    };
    let values: Vec<f64> = got.iter().map(|g| f64::from(*g)).collect();
    if golden.has(&spec.name) {
        return worst(&values, &golden.f32(&spec.name), 1);
    }
    let (rows, cols) = (spec.shape[0], spec.shape[1]);
    let some: Vec<f64> = values.iter().copied().step_by(each).collect();
    let by_row: Vec<f64> = values.chunks(cols).map(|row| row.iter().sum()).collect();
    let by_column: Vec<f64> = (0..cols).map(|c| values.iter().skip(c).step_by(cols).sum()).collect();
    let stored = |part: &str| golden.f32(&format!("{}.{part}", spec.name));
    worst(&some, &stored("each"), 1).max(worst(&by_row, &stored("rows"), cols)).max(worst(&by_column, &stored("columns"), rows))
}

#[test]
fn golden_gradients() {
    for device in devices() {
        for case in Case::all() {
            let golden = Golden::file(&format!("gradients/{}.safetensors", case.name), "gradients/cases.json");
            let mut trainer = case.trainer(&device, |_| {});
            // What softens weights is in their gradient once the step is made.
            let stats = trainer.step(std::slice::from_ref(&case.micro), &case.hyper()).expect("a step");
            let (loss, gradients) = (f64::from(stats.total()), trainer.gradients().expect("gradients"));
            let what = format!("{} on {}", case.name, device.name());
            let loss_apart = (loss / case.loss - 1.0).abs();
            let all = case.config.tensors().into_iter().map(|t| (apart(&golden, &t, case.each, &gradients[&t.name]), t.name));
            let (worst, name) = all.max_by(|a, b| a.0.total_cmp(&b.0)).expect("tensors");
            println!("{what}: loss {loss_apart:.1e} apart; gradients {worst:.1e} ({name}), {:.3} of the tolerance", worst / TOLERANCE);
            assert!(loss_apart < 2e-6, "{what}: a loss of {loss} against {}", case.loss);
            assert!(worst < TOLERANCE, "{what}: the gradient of {name} is {worst} apart");
        }
    }
}

/// Largest difference of a training from PyTorch's: of losses and gradient norms, relative, and of parameters, relative to the
/// largest change of one.
const TRAINING_TOLERANCE: (f64, f64) = (5e-5, 5e-3);

/// Steps of a whole training, whatever the optimizer and the rule of weights: losses, norms and what is left of the parameters.
#[test]
fn golden_trainings() {
    let text = std::fs::read(common::golden_dir().join("gradients/trainings.json")).expect("trainings.json");
    let about: serde_json::Value = serde_json::from_slice(&text).expect("JSON");
    let number = |v: &serde_json::Value| v.as_f64().expect("a number");
    let (adamw, muon) = (&about["adamw"], &about["muon"]);
    let hyper = |step: usize| Hyper {
        lr: number(&adamw["lr"]) as f32,
        muon_lr: number(&muon["lr"]) as f32,
        betas: (number(&adamw["betas"][0]) as f32, number(&adamw["betas"][1]) as f32, number(&adamw["eps"]) as f32),
        weight_decay: number(&adamw["decay"]) as f32,
        muon: (number(&muon["momentum"]) as f32, number(&muon["decay"]) as f32),
        clip: number(&about["clip"]) as f32,
        ..hyper(step as u64, 1.0, 8)
    };
    for (device, (name, case)) in devices().iter().flat_map(|d| about["cases"].as_object().expect("cases").iter().map(move |c| (d, c))) {
        let what = format!("{name} on {}", device.name());
        let mut described = case.clone();
        (described["bits"], described["batch_seed"], described["loss"]) = (8.into(), 1.into(), 0.0.into());
        let case_of = Case::of(name, &described, &about);
        let optimizer = if case["optimizer"] == "muon" { Optimizer::Muon } else { Optimizer::Adamw };
        let mut trainer =
            Trainer::new(device, case_of.config.clone(), shape(case_of.sequences, case_of.config.seq), optimizer).expect("fits");
        trainer.load(&case_of.tensors).expect("parameters");
        let padded = about["padded"].as_u64().expect("a count") as usize;
        let mut worst = 0f64;
        for (step, want) in case["history"].as_array().expect("steps").iter().enumerate() {
            let micro = micro(&case_of.config, case_of.sequences, padded, step as u64 + 1);
            let stats = trainer.step(&[micro], &hyper(step + 1)).expect("a step");
            for (got, want) in [stats.total(), stats.grad_norm].into_iter().zip([&want[0], &want[1]].map(number)) {
                worst = worst.max((f64::from(got) / want - 1.0).abs());
            }
        }
        let golden = Golden::file(&format!("gradients/trained_{name}.safetensors"), "gradients/trainings.json");
        let last = trainer.tensors().expect("parameters");
        let mut parameters = (0f64, String::new());
        for spec in case_of.config.tensors() {
            let (first, last) = (&case_of.tensors[&spec.name], &last[&spec.name]);
            let moved = first.iter().zip(last).fold(0f64, |m, (a, b)| m.max(f64::from((a - b).abs())));
            let off = apart(&golden, &spec, case_of.each, last) * largest(last) / moved;
            if off > parameters.0 {
                parameters = (off, spec.name);
            }
        }
        println!("{what}: losses and norms {worst:.1e} apart, parameters {:.1e} of their way ({})", parameters.0, parameters.1);
        assert!(worst < TRAINING_TOLERANCE.0, "{what}: {worst}");
        assert!(parameters.0 < TRAINING_TOLERANCE.1, "{what}: {parameters:?}");
    }
}

/// Biases and norms, in which the loss is smooth as long as activations are floats: differences of our own loss, so that
/// forward and backward pass are held against each other and not against another program.
#[test]
fn gradients_are_differences_of_the_loss() {
    let device = open("cpu", 0).expect("the CPU is always there");
    for name in ["qwen2_bias", "qwen3_head_norm", "smollm3_no_rope", "row_untied_ternary_head", "all_float_tied"] {
        let case = Case::named(name);
        let mut trainer = case.trainer(&device, |s| s.evaluates = true);
        let gradients = case.gradients(&mut trainer);
        let mut tensors = case.tensors.clone();
        let mut loss = |tensors: &Tensors| {
            trainer.load(tensors).expect("parameters");
            let rows = trainer.evaluate(&case.micro, 1.0, Bits::Eight).expect("losses");
            rows.iter().zip(&case.micro.meta).map(|((_, ce), m)| f64::from(*ce) * f64::from(m[2])).sum::<f64>()
        };
        let mut worst = 0f64;
        for spec in case.config.tensors().iter().filter(|t| matches!(t.role, Role::Norm | Role::Bias)) {
            let gradient = &gradients[&spec.name];
            let size = largest(gradient);
            let steepest = (0..spec.len()).max_by(|a, b| gradient[*a].abs().total_cmp(&gradient[*b].abs())).expect("an element");
            for i in [steepest, spec.len() / 3] {
                let was = tensors[&spec.name][i];
                let [up, down] = [1f32, -1.0].map(|side| {
                    tensors.get_mut(&spec.name).expect("a tensor")[i] = was + side * 0.01;
                    loss(&tensors)
                });
                tensors.get_mut(&spec.name).expect("a tensor")[i] = was;
                let difference = (up - down) / 0.02;
                let error = (difference - f64::from(gradient[i])).abs() / size;
                worst = worst.max(error);
                assert!(error < 0.02, "{name}: {}[{i}]: {difference} against {} of at most {size}", spec.name, gradient[i]);
            }
        }
        println!("{name}: differences are {worst:.1e} apart, {:.3} of the tolerance", worst / 0.02);
    }
}

/// The forms of scales, of rows that words of 16 codes do not divide where there may be such.
fn forms() -> Vec<(Group, ScaleType)> {
    let sized = Group::SIZES.map(|n| (Group::Of(n), ScaleType::F32));
    [(Group::Tensor, ScaleType::F32), (Group::Tensor, ScaleType::F16), (Group::Row, ScaleType::F32)].into_iter().chain(sized).collect()
}

fn packed_config((group, scale): (Group, ScaleType), activations: Activations) -> ModelConfig {
    let wide = ModelConfig { dim: 256, heads: 4, kv_heads: 2, head_dim: 64, mlp: 256, ..ModelConfig::plain() };
    let uneven = ModelConfig { dim: 72, heads: 6, kv_heads: 2, head_dim: 12, mlp: 136, ..ModelConfig::plain() };
    ModelConfig {
        vocab: 70,
        layers: 1,
        seq: 4,
        weights: Weights::Absmean,
        tied: false,
        ternary_embedding: true,
        ternary_head: true,
        group,
        scale,
        activations,
        ..if matches!(group, Group::Of(_)) { wide } else { uneven }
    }
}

/// Nothing, what float16 holds as a subnormal, and what it does not hold.
const EXTREMES: [f32; 3] = [0.0, 2e-5, 1e6];

/// Random matrices. Three whole matrices (`q`, `k`, `v`), three rows and the groups of a row of `gate` are extremes.
fn extreme_tensors(config: &ModelConfig) -> Tensors {
    let per = if let Group::Of(n) = config.group { n } else { config.dim };
    let fill = |(i, t): (usize, TensorSpec)| {
        let mut next = noise(i as u64 + 1);
        let mut values: Vec<f32> = (0..t.len()).map(|_| next()).collect();
        let mut set = |from: usize, n: usize, size: f32| values[from..from + n].iter_mut().for_each(|v| *v = size.copysign(*v));
        match t.name.as_str() {
            "layers.0.q" => set(0, t.len(), EXTREMES[0]),
            "layers.0.k" => set(0, t.len(), EXTREMES[1]),
            "layers.0.v" => set(0, t.len(), EXTREMES[2]),
            "layers.0.gate" => {
                (0..3).for_each(|r| set(r * config.dim, config.dim, EXTREMES[r]));
                (0..(config.dim / per).min(3)).for_each(|g| set(3 * config.dim + g * per, per, EXTREMES[2 - g]));
            }
            _ => {}
        }
        (t.name, values)
    };
    config.tensors().into_iter().enumerate().map(fill).collect()
}

/// How many codes of `got` are not those of `want`. All of them are near ties, and scales are at most a float16 apart, as a
/// sum in another order may be.
fn roundings(what: &str, config: &ModelConfig, w: &[f32], got: &PackedMatrix, want: &PackedMatrix) -> usize {
    let per = match config.group {
        Group::Tensor => w.len(),
        Group::Row => want.cols,
        Group::Of(n) => n,
    };
    let (got, want) = (got.values(), want.values());
    let mut apart = 0;
    for (g, w) in w.chunks(per).enumerate() {
        let mean = w.iter().map(|x| f64::from(x.abs())).sum::<f64>() / per as f64;
        for (i, w) in w.iter().enumerate() {
            let (got, want) = (got[g * per + i], want[g * per + i]);
            let tie = (f64::from(w.abs()) / mean.max(1e-5) - 0.5).abs() < 1e-3;
            assert!(tie || (got - want).abs() <= 1e-3 * want.abs(), "{what}: {got} against {want}, of {w}");
            apart += usize::from((got > 0.0, got < 0.0) != (want > 0.0, want < 0.0));
        }
    }
    apart
}

#[test]
fn codes_and_scales_of_training_are_those_of_the_host() {
    for device in devices() {
        for (form, activations) in forms().into_iter().flat_map(|f| [(f, Activations::Float), (f, Activations::Quantised)]) {
            let config = packed_config(form, activations);
            assert_eq!(config.problem(), None);
            let tensors = extreme_tensors(&config);
            let mut trainer = Trainer::new(&device, config.clone(), shape(1, config.seq), Optimizer::Adamw).expect("a trainer");
            trainer.load(&tensors).expect("parameters");
            trainer.accumulate(&[micro(&config, 1, 0, 1)], &hyper(1, 1.0, 8), true).expect("a micro-batch");
            let packed = trainer.packed().expect("codes");
            assert_eq!(packed.len(), 9);
            let what = format!("{form:?} {activations:?} on {}", device.name());
            let mut apart = 0;
            for (name, got) in &packed {
                let want = pack(&config, &tensors[name], got.cols);
                assert!(*got == want || !device.name().starts_with("cpu"), "{what}: {name}");
                apart += roundings(&format!("{what}: {name}"), &config, &tensors[name], got, &want);
            }
            println!("{what}: {apart} codes rounded otherwise");
            extremes_are_kept(&what, &config, &packed);
        }
    }
}

/// What matrices, rows and groups of one magnitude become.
fn extremes_are_kept(what: &str, config: &ModelConfig, packed: &BTreeMap<String, PackedMatrix>) {
    let stored = |size: f32| {
        let half = half::f16::from_f32(size.max(1e-5)).to_f32().min(65_504.0);
        if config.half_scales() { half } else { size }
    };
    let is = |values: &[f32], size: f32| {
        let want = if size == 0.0 { 0.0 } else { stored(size) };
        values.iter().all(|v| (v.abs() - want).abs() <= 1e-6 * want)
    };
    for (name, size) in ["layers.0.q", "layers.0.k", "layers.0.v"].into_iter().zip(EXTREMES) {
        assert!(is(&packed[name].values(), size), "{what}: {name}");
    }
    if config.group == Group::Tensor {
        return;
    }
    let gate = packed["layers.0.gate"].values();
    for (row, size) in gate.chunks(config.dim).zip(EXTREMES) {
        assert!(is(row, size), "{what}: a row of {size}");
    }
    if let Group::Of(n) = config.group {
        for (group, size) in gate[3 * config.dim..4 * config.dim].chunks(n).zip(EXTREMES.into_iter().rev()) {
            assert!(is(group, size), "{what}: a group of {size}");
        }
    }
}

/// Micro-batches add up in every tensor, and the next step begins anew.
#[test]
fn gradients_of_micro_batches_add_up() {
    for device in devices() {
        for name in ["qwen2_bias", "all_a8_untied", "all_float_tied"] {
            let case = Case::named(name);
            let mut trainer = case.trainer(&device, |_| {});
            let one = case.gradients(&mut trainer);
            trainer.accumulate(&[case.micro.clone(), case.micro.clone()], &hyper(1, 1.0, case.bits), true).expect("two of them");
            let two = trainer.gradients().expect("gradients");
            let again = case.gradients(&mut trainer);
            for (tensor, one) in &one {
                let size = largest(one);
                let apart = one.iter().zip(&two[tensor]).fold(0f64, |m, (a, b)| m.max(f64::from((2.0 * a - b).abs()))) / size;
                assert!(apart < TOLERANCE, "{name}: {tensor} on {}: {apart}", device.name());
                assert!(*one == again[tensor], "{name}: {tensor} on {} of the next step", device.name());
            }
        }
    }
}

/// Float16 in between changes gradients by its rounding, with biases and norms of heads too.
#[test]
fn gradients_with_float16_storage_are_close() {
    for device in devices() {
        for name in ["qwen2_bias", "all_a8_untied", "all_float_tied"] {
            let case = Case::named(name);
            let [whole, half] =
                [Storage::Float32, Storage::Float16].map(|storage| case.gradients(&mut case.trainer(&device, |s| s.storage = storage)));
            let norm = |x: &mut dyn Iterator<Item = f32>| x.map(|v| v * v).sum::<f32>().sqrt();
            for (tensor, want) in &whole {
                let (size, apart) = (norm(&mut want.iter().copied()), norm(&mut want.iter().zip(&half[tensor]).map(|(a, b)| a - b)));
                assert!(apart < 4e-3 * size, "{name}: {tensor} on {}: {apart} of {size}", device.name());
            }
        }
    }
}

/// A block that is computed again has the same bits, with biases and norms of heads too.
#[test]
fn gradients_of_what_is_computed_again_have_the_same_bits() {
    for device in devices() {
        for name in ["qwen2_bias", "all_a8_untied", "all_float_tied"] {
            let case = Case::named(name);
            let [kept, again] = [false, true].map(|recompute| case.gradients(&mut case.trainer(&device, |s| s.recompute = recompute)));
            for (tensor, want) in kept {
                let same = want.iter().zip(&again[&tensor]).all(|(a, b)| a.to_bits() == b.to_bits());
                assert!(same, "{name}: {tensor} on {}", device.name());
            }
        }
    }
}
