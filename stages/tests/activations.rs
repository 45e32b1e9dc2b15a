//! What goes to 4 bits with the flip.

mod common;

use std::collections::BTreeMap;

use common::{devices, noise};
use flow_lm::config::{A4, Bits, ModelConfig, Preset, Role};
use flow_lm::graph::Storage;
use flow_lm::graph::{Moments, NewtonSchulz, Optimizer};
use flow_lm::tokenizer::TokenId;
use flow_lm::train::{MicroBatch, TrainShape, Trainer};
use flow_shaders::device::Device;

/// Losses of random text, with `o` and `down` as drawn or zero.
fn losses(device: &Device, a4: A4, sub_norm: bool, bits: u32, inner: f32) -> Vec<u32> {
    let shape = Preset::Poc.config();
    let config =
        ModelConfig { vocab: 90, dim: 64, layers: 2, heads: 4, kv_heads: 2, head_dim: 16, mlp: 112, seq: 12, a4, sub_norm, ..shape };
    let shape = TrainShape {
        batch: 2,
        seq: config.seq,
        top_k: 0,
        ns: NewtonSchulz::quintic(5),
        recompute: false,
        moments: Moments::Float32,
        storage: Storage::Float32,
        evaluates: true,
    };
    let mut trainer = Trainer::new(device, config.clone(), shape, Optimizer::Adamw).unwrap();
    let mut next = noise(3);
    let mut tensors = BTreeMap::new();
    for t in config.tensors() {
        let factor = if t.name.ends_with(".o") || t.name.ends_with(".down") { inner } else { 1.0 };
        let value = |x: f32| if t.role == Role::Norm { 1.0 + x } else { factor * x };
        tensors.insert(t.name.clone(), (0..t.len()).map(|_| value(next())).collect());
    }
    trainer.load(&tensors).unwrap();
    let rows = 2 * config.seq;
    let ids: Vec<u32> = (0..rows).map(|_| ((next() + 0.5) * 90.0) as u32 % 90).collect();
    let micro = MicroBatch {
        labels: ids.iter().skip(1).chain([&0]).map(|t| *t as i32).collect(),
        ids: TokenId::of_words(ids),
        mask: vec![1; rows],
        meta: vec![[0.0, 0.0, 1.0, 0.0]; rows],
        ..MicroBatch::default()
    };
    trainer.evaluate(&micro, 1.0, Bits::of(bits).unwrap()).unwrap().into_iter().map(|(_, ce)| ce.to_bits()).collect()
}

/// A hybrid is the same model at 8 bits, and at 4 but for what `o` and `down` take.
#[test]
fn a_hybrid_keeps_the_inner_inputs_at_8_bits() {
    for device in devices() {
        for sub_norm in [true, false] {
            let of = |a4, bits, inner| losses(&device, a4, sub_norm, bits, inner);
            assert_eq!(of(A4::All, 8, 1.0), of(A4::Hybrid, 8, 1.0));
            assert_eq!(of(A4::All, 4, 0.0), of(A4::Hybrid, 4, 0.0));
            let [eight, all, hybrid] = [of(A4::All, 8, 1.0), of(A4::All, 4, 1.0), of(A4::Hybrid, 4, 1.0)];
            assert!(all != hybrid && hybrid != eight, "sub_norm {sub_norm}");
            let apart = |x: &[u32]| {
                let off = |(a, b): (&u32, &u32)| (f32::from_bits(*a) - f32::from_bits(*b)).powi(2);
                x.iter().zip(&eight).map(off).sum::<f32>()
            };
            assert!(apart(&hybrid) < apart(&all), "sub_norm {sub_norm}: {} {}", apart(&hybrid), apart(&all));
        }
    }
}
