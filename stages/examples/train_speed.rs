//! Tokens per second of a training step: `cargo run --release -p flow-stages --example train_speed -- [preset] [batch] [adamw|muon]`.
//!
//! The work is that of one `train.bitnet` step (KL over Top-20 + Other, CE), on random tokens and targets.

use std::collections::BTreeMap;
use std::time::Instant;

use flow_shaders::device::open;
use flow_stages::model::config::{Preset, Role};
use flow_stages::model::optimizer::Optimizer;
use flow_stages::model::trainer::{Hyper, MicroBatch, TrainShape, Trainer};

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let arg = |i: usize, d: &str| args.get(i).cloned().unwrap_or_else(|| d.to_owned());
    let name = arg(0, "poc");
    let preset = Preset::ALL.into_iter().find(|p| p.name() == name).expect("a preset");
    let config = preset.config();
    let batch: usize = arg(1, "8").parse().expect("a number");
    let optimizer = if arg(2, "adamw") == "muon" { Optimizer::Muon } else { Optimizer::Adamw };
    let device = open(&std::env::var("FLOW_DEVICE").unwrap_or_else(|_| "cpu".into()), 0).expect("a device");
    let shape = TrainShape { batch, seq: config.seq, top_k: 20, ns_steps: 5 };
    let mut trainer = Trainer::new(&device, config.clone(), shape, optimizer).expect("fits");
    let mut x = 1u32;
    let mut next = move || {
        x = x.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        x >> 8
    };
    let tensors: BTreeMap<String, Vec<f32>> = config
        .tensors()
        .iter()
        .map(|t| {
            let value = |r: u32| if matches!(t.role, Role::Norm | Role::Scale) { 1.0 } else { (r as f32 / 8_388_608.0 - 1.0) * 0.05 };
            (t.name.clone(), (0..t.len()).map(|_| value(next())).collect())
        })
        .collect();
    trainer.load(&tensors).expect("loads");
    let rows = batch * config.seq;
    let v = config.vocab as u32;
    let micro = MicroBatch {
        ids: (0..rows).map(|_| next() % v).collect(),
        mask: vec![1; rows],
        labels: (0..rows).map(|_| (next() % v) as i32).collect(),
        topk_ids: (0..rows * 20).map(|i| ((i as u32 % 20) * (v / 20) + next() % (v / 20)) as i32).collect(),
        topk_logprobs: vec![-3.5; rows * 20],
        meta: vec![[-0.93, 1.0 / rows as f32, 0.25 / rows as f32, 0.0]; rows],
    };
    let mut times = Vec::new();
    for step in 1..=13 {
        let hyper = Hyper {
            step,
            lr: 1e-3,
            muon_lr: 0.02,
            betas: (0.9, 0.95, 1e-8),
            weight_decay: 0.1,
            muon: (0.95, 0.0),
            clip: 1.0,
            tau: 1.0,
            bits: 8,
        };
        let t = Instant::now();
        let stats = trainer.step(std::slice::from_ref(&micro), &hyper).expect("runs");
        if step > 3 {
            times.push(t.elapsed().as_secs_f64());
        }
        assert!(stats.total().is_finite());
    }
    times.sort_by(f64::total_cmp);
    let median = times[times.len() / 2];
    println!(
        "{} {} batch {batch}: {:.0} tokens/s, {:.1} ms a step, planned {} MiB",
        device.name(),
        name,
        rows as f64 / median,
        median * 1e3,
        trainer.session_bytes() >> 20
    );
}
