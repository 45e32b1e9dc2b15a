//! `tiny_model_training`: 20 optimizer steps of a whole BitNet-style model with the A8 → A4 flip, against PyTorch.

mod common;

use std::collections::BTreeMap;

use common::{Golden, devices};
use flow_lm::config::{Activation, Bits, ModelConfig, Weights};
use flow_lm::graph::Storage;
use flow_lm::graph::{Moments, NewtonSchulz, Optimizer};
use flow_lm::tokenizer::TokenId;
use flow_lm::train::{Hyper, MicroBatch, TrainShape, Trainer};
use flow_shaders::device::Device;

fn config(c: &serde_json::Value) -> ModelConfig {
    let n = |k: &str| c[k].as_u64().unwrap() as usize;
    ModelConfig {
        vocab: n("vocab"),
        dim: n("dim"),
        layers: n("layers"),
        heads: n("heads"),
        kv_heads: n("kv_heads"),
        head_dim: n("head_dim"),
        mlp: n("ff"),
        seq: n("seq"),
        rope_theta: 10_000.0,
        norm_eps: 1e-5,
        activation: if c["act"] == "swiglu" { Activation::Silu } else { Activation::Relu2 },
        weights: Weights::Absmean,
        sub_norm: true,
        tied: c["tied"].as_bool().unwrap(),
        ..ModelConfig::plain()
    }
}

fn batch(g: &Golden, seq: usize, h: &serde_json::Value) -> MicroBatch {
    let tokens = g.i32("tokens");
    let labels = g.i32("labels");
    let structural = g.u8("is_struct");
    let other = g.f32("other_logprob");
    let f = |k: &str| h[k].as_f64().unwrap() as f32;
    let valid = labels.iter().filter(|l| **l >= 0).count() as f32;
    let formatted = labels.iter().zip(&structural).filter(|(l, s)| **l >= 0 && **s == 1).count() as f32;
    let meta = (0..labels.len())
        .map(|r| {
            if labels[r] < 0 {
                return [0.0; 4];
            }
            let format = if structural[r] == 1 { f("format_weight") / formatted } else { 0.0 };
            [other[r] / f("tau"), 1.0 / valid, f("ce_weight") / valid, format]
        })
        .collect();
    MicroBatch {
        ids: tokens.chunks(seq + 1).flat_map(|s| s[..seq].iter().map(|t| TokenId(*t as u32))).collect(),
        mask: g.u8("pad").into_iter().map(u32::from).collect(),
        labels,
        topk_ids: g.i32("topk_ids"),
        targets: g.f32("topk_logprobs").iter().map(|l| l * (1.0 / f("tau"))).collect(),
        meta,
    }
}

fn close(name: &str, got: &[f32], want: &[f32], rtol: f32, atol: f32) {
    assert_eq!(got.len(), want.len(), "{name}");
    for (i, (g, w)) in got.iter().zip(want).enumerate() {
        assert!((g - w).abs() <= atol + rtol * w.abs(), "{name}[{i}]: {g} against {w}");
    }
}

/// `slack`: times the tolerance of float32.
fn run(device: &Device, storage: Storage, slack: f64) {
    let g = Golden::load("tiny_model_training");
    let (c, h) = (&g.about["config"], &g.about["hyper"]);
    let config = config(c);
    let shape = TrainShape {
        batch: c["batch"].as_u64().unwrap() as usize,
        seq: config.seq,
        top_k: c["topk"].as_u64().unwrap() as usize,
        ns: NewtonSchulz::quintic(5),
        recompute: false,
        moments: Moments::Float32,
        storage,
        evaluates: false,
    };
    let mut trainer = Trainer::new(device, config.clone(), shape, Optimizer::Adamw).unwrap();
    let params: BTreeMap<String, Vec<f32>> =
        config.tensors().iter().map(|t| (t.name.clone(), g.f32(&format!("param.{}", t.name)))).collect();
    trainer.load(&params).unwrap();
    let micro = batch(&g, config.seq, h);
    let f = |k: &str| h[k].as_f64().unwrap() as f32;
    let history = g.f64("history_f64");
    let spread = g.about["f32_spread_max"].as_f64().unwrap();
    let exact = slack == 1.0 && device.name().starts_with("cpu");
    let mut worst = 0f64;
    for step in 0..h["steps"].as_u64().unwrap() as usize {
        let want = &history[step * 7..step * 7 + 7];
        let hyper = Hyper {
            step: step as u64 + 1,
            lr: want[5] as f32,
            muon_lr: 0.0,
            betas: (f("beta1"), f("beta2"), f("eps")),
            weight_decay: f("weight_decay"),
            muon: (0.0, 0.0),
            clip: f("clip"),
            tau: f("tau"),
            bits: Bits::of(want[6] as u32).expect("4 or 8"),
            softness: Default::default(),
            relation: 0.0,
        };
        assert_eq!(want[6], if step < h["flip_step"].as_u64().unwrap() as usize { 8.0 } else { 4.0 });
        let s = trainer.step(std::slice::from_ref(&micro), &hyper).unwrap();
        if step == 0 {
            let grads = trainer.gradients().unwrap();
            for t in config.tensors() {
                close(
                    &format!("grad0.{}", t.name),
                    &grads[&t.name],
                    &g.f32(&format!("grad0.{}", t.name)),
                    2e-3 * slack as f32,
                    2e-5 * slack as f32,
                );
            }
        }
        let got = [s.total(), s.kl, s.ce / f("ce_weight"), s.format / f("format_weight"), s.grad_norm];
        for (i, got) in got.iter().enumerate() {
            // f32 rounding at quantisation boundaries makes later steps drift. Losses: five times the largest relative
            // spread between PyTorch's own float32 and float64 runs. The gradient norm jumps where codes flip (PyTorch's
            // own runs differ by 24 % there): tight before the first flip, 30 % after it, 45 % with rounded storage or the
            // sums of a GPU (an NVIDIA H100 is 35 % off at step 16, its losses are not).
            let error = (f64::from(*got) - want[i]).abs();
            let allowed = match (step, i) {
                (0, 4) => slack * 1e-5 * want[i].abs().max(1.0),
                (0, _) => 1e-5 * want[i].abs().max(1.0),
                (_, 4) if step > 4 => 0.3 * if exact { 1.0 } else { 1.5 } * want[i],
                _ => slack * 5.0 * spread * want[i].abs(),
            };
            assert!(error <= allowed, "step {step} column {i}: {got} against {} (allowed {allowed})", want[i]);
            worst = worst.max(error / want[i].abs().max(1e-9));
        }
        assert!(!s.skipped && s.non_finite == 0.0);
        assert!(s.grad_norm_clipped <= f("clip") * 1.000_01);
    }
    let last = trainer.tensors().unwrap();
    for t in config.tensors() {
        let (got, want) = (&last[&t.name], g.f32(&format!("final.{}", t.name)));
        let error: f64 = got.iter().zip(&want).map(|(a, b)| f64::from(a - b).powi(2)).sum::<f64>().sqrt();
        let size: f64 = want.iter().map(|b| f64::from(*b).powi(2)).sum::<f64>().sqrt();
        assert!(error / size < 0.1, "final {}: relative error {}", t.name, error / size);
    }
    println!("{}: worst relative difference of a history column {worst:.2e}", device.name());
}

#[test]
fn golden_tiny_model_training() {
    for device in devices() {
        run(&device, Storage::Float32, 1.0);
    }
}

/// With what a step keeps as float16 the losses stay as close to PyTorch's float64 run as roundings of 2^-11 allow.
#[test]
fn golden_tiny_model_training_with_float16_storage() {
    for device in devices() {
        run(&device, Storage::Float16, 5.0);
    }
}
