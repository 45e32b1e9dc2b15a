//! `bitnet.dryrun`: what a shape needs to run and to train, planned; and, where it fits, allocated and run with random
//! packed weights.

use crate::task;
use std::time::Instant;

use flow_engine::plugin::{OutputPort, ParamError, Stage, StageError, TaskContext};
use flow_shaders::device::{self, Device, DeviceError};
use flow_shaders::kernels::ternary::packed_words;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::json;

use flow_lm::config::{Bits, ModelConfig, Preset, Role, Weights};
use flow_lm::format::tensors::half_pair;
use flow_lm::graph::Graph;
use flow_lm::graph::Storage;
use flow_lm::graph::{Moments, Optimizer};
use flow_lm::infer::{Session, Uses};
use flow_lm::rng::Rng;
use flow_lm::train::Recipe;
use flow_lm::train::{TrainShape, Trainer};

/// Whether to allocate and run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(untagged)]
pub enum Run {
    /// Yes or no.
    Always(bool),
    /// Where the plan fits.
    Auto(Auto),
}

/// The word `auto`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Auto {
    /// Run where the plan fits the free memory.
    Auto,
}

/// Parameters of `bitnet.dryrun`.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct DryRunParams {
    /// Shape.
    pub preset: Preset,
    /// Tokens of the forward pass.
    pub seq: usize,
    /// Sequences.
    pub batch: usize,
    /// `true`, `false`, or `auto`: run where the plan fits `max_memory` of what is free.
    pub run: Run,
    /// Share of the free memory that `auto` may take.
    pub max_memory: f64,
    /// Seed of the random weights.
    pub seed: u64,
}

impl Default for DryRunParams {
    fn default() -> Self {
        Self { preset: Preset::B7, seq: 64, batch: 1, run: Run::Auto(Auto::Auto), max_memory: 0.85, seed: 1234 }
    }
}

/// `bitnet.dryrun`.
pub struct DryRunStage;

impl Stage for DryRunStage {
    type Params = DryRunParams;
    const KIND: &'static str = "bitnet.dryrun";
    const REVISION: u32 = 2;
    const SUMMARY: &'static str = "Plans a shape's memory and, where it fits, runs it packed at A8 and A4.";
    const HEAVY: bool = true;

    fn inputs(&self) -> Vec<flow_engine::plugin::InputPort> {
        Vec::new()
    }
    fn outputs(&self) -> Vec<OutputPort> {
        vec![OutputPort::measured("report", "DryRun", "Planned and measured memory, speed (JSON).")]
    }
    fn fingerprints(&self) -> Vec<(String, String)> {
        crate::fingerprints::inference()
    }
    fn check(&self, p: &DryRunParams) -> Result<Vec<String>, ParamError> {
        if p.seq == 0 || p.batch == 0 {
            return Err(ParamError { path: "seq".into(), message: "seq and batch must be above 0".into(), help: None });
        }
        if !(p.max_memory > 0.0 && p.max_memory <= 1.0) {
            return Err(ParamError { path: "max_memory".into(), message: format!("{} is not in (0, 1]", p.max_memory), help: None });
        }
        Ok(Vec::new())
    }
    fn run(&self, p: DryRunParams, ctx: &TaskContext) -> Result<(), StageError> {
        let mut config = p.preset.config();
        config.seq = p.seq;
        let uses = Uses { score: Some((p.batch, p.seq)), logits: true, half_tables: true, ..Uses::default() };
        let device = task::device(ctx)?;
        let planned = Session::planned_bytes_on(&device, config.clone(), &uses);
        let free = device.free_memory();
        let fits = free.is_none_or(|f| planned as f64 <= p.max_memory * f as f64);
        let why_not = match p.run {
            Run::Always(true) => None,
            Run::Always(false) => Some("`run: false`: planned only".to_owned()),
            Run::Auto(_) if fits => None,
            Run::Auto(_) => Some(format!(
                "{} MiB are planned, {} of {} MiB free may be taken",
                planned >> 20,
                (p.max_memory * free.unwrap_or(0) as f64) as u64 >> 20,
                free.unwrap_or(0) >> 20
            )),
        };
        let mut out = json!({
            "preset": p.preset.name(), "config": config, "parameters": config.parameters(), "seq": p.seq, "batch": p.batch,
            "planned_bytes": planned, "free_bytes": free, "ran": why_not.is_none(), "why_not": why_not, "device": device.name(),
            "training": training(&p, &config),
        });
        if why_not.is_none() {
            if !fits && matches!(p.run, Run::Always(true)) {
                return Err(StageError::new(format!(
                    "out of memory before it happens: {} needs {} MiB, {} MiB are free",
                    p.preset.name(),
                    planned >> 20,
                    free.unwrap_or(0) >> 20
                ))
                .help("choose a smaller preset or sequence, or say `run: auto`"));
            }
            let measured = execute(&p, &config, uses, &device, ctx)?;
            for (key, value) in measured.as_object().into_iter().flatten() {
                out[key] = value.clone();
            }
            if let Some(m) = out["measured_bytes"].as_u64() {
                out["ratio"] = json!(m as f64 / planned as f64);
            }
        }
        task::write_json(ctx.output("report")?, &out)
    }
}

/// Bytes that a training step of this batch and sequence would hold, by what the recipe says of memory.
fn training(p: &DryRunParams, config: &ModelConfig) -> serde_json::Value {
    let plan = |recompute, moments, storage| {
        let shape = TrainShape {
            batch: p.batch,
            seq: p.seq,
            top_k: 20,
            ns: Recipe::default().newton_schulz(),
            recompute,
            moments,
            storage,
            evaluates: false,
        };
        Trainer::planned_bytes(config.clone(), shape, Optimizer::Adamw)
    };
    json!({
        "float32": plan(false, Moments::Float32, Storage::Float32),
        "recompute": plan(true, Moments::Float32, Storage::Float32),
        "moments_int8": plan(false, Moments::Int8, Storage::Float32),
        "storage_float16": plan(false, Moments::Float32, Storage::Float16),
        "all_three": plan(true, Moments::Int8, Storage::Float16),
    })
}

/// Bytes that the process holds, now and at most so far (Linux), or what the adapter's allocator counts.
fn memory(device: &Device) -> Option<(u64, u64)> {
    if let Device::Gpu(gpu) = device {
        return gpu.allocated_bytes().map(|b| (b, b));
    }
    let text = std::fs::read_to_string("/proc/self/status").ok()?;
    let field = |name: &str| {
        let line = text.lines().find(|l| l.starts_with(name))?;
        line.split_whitespace().nth(1)?.parse::<u64>().ok().map(|kib| kib * 1024)
    };
    Some((field("VmRSS:")?, field("VmHWM:")?))
}

fn execute(
    p: &DryRunParams,
    config: &ModelConfig,
    uses: Uses,
    device: &Device,
    ctx: &TaskContext,
) -> Result<serde_json::Value, StageError> {
    let before = memory(device).map_or(0, |m| m.0);
    let fill = |graph: &Graph, session: &mut device::Session| random_weights(graph, session, p.seed);
    let mut lm = Session::with_weights(device, config.clone(), uses, fill)?;
    let rows = p.batch * p.seq;
    let mut rng = Rng::new(p.seed, "dry-run tokens");
    let ids: Vec<u32> = (0..rows).map(|_| rng.below(config.vocab) as u32).collect();
    let mask = vec![1; rows];
    let mut runs = Vec::new();
    let mut logits: Vec<Vec<f32>> = Vec::new();
    for bits in [Bits::Eight, Bits::Four] {
        lm.set_bits(bits)?;
        let bits = bits.count();
        let start = Instant::now();
        // The last position is enough to compare, and costs no memory beside what is measured.
        let last = lm.last_logits(&ids, &mask)?;
        let seconds = start.elapsed().as_secs_f64();
        if last.iter().any(|x| !x.is_finite()) {
            return Err(StageError::new(format!("{} at A{bits}: a logit is not finite", p.preset.name())));
        }
        logits.push(last);
        let (steady, peak) = memory(device).unwrap_or((0, 0));
        runs.push(json!({"bits": bits, "tokens_per_second": rows as f64 / seconds,
            "peak_bytes": peak.saturating_sub(before), "steady_bytes": steady.saturating_sub(before)}));
        ctx.progress(runs.len() as u64, 2, "forward passes");
    }
    let differences: Vec<f32> = logits[0].iter().zip(&logits[1]).map(|(a, b)| (a - b).abs()).collect();
    let peak = runs.iter().filter_map(|r| r["peak_bytes"].as_u64()).max();
    Ok(json!({
        "runs": runs, "measured_bytes": peak,
        "max_logit_difference": differences.iter().copied().fold(0.0, f32::max),
        "mean_logit_difference": differences.iter().sum::<f32>() / differences.len().max(1) as f32,
    }))
}

/// Random codes, straight into the packed buffers: no float copy of a linear ever exists.
fn random_weights(graph: &Graph, session: &mut device::Session, seed: u64) -> Result<(), DeviceError> {
    for t in &graph.tensors {
        let mut rng = Rng::new(seed, &t.spec.name);
        if let Some((codes, scale)) = t.packed {
            let words = t.spec.shape[0] * packed_words(t.spec.shape[1]);
            // A pair of bits of 00, 01 or 10: clear the high bit wherever both are set.
            session.write_with(codes, words, |_| {
                let x = rng.bits() as u32;
                x & !((x & 0x5555_5555) << 1)
            })?;
            let s = 1.2 / (t.spec.shape[1] as f32).sqrt();
            session.write_f32(scale, &vec![s; t.spec.shape[0]])?;
        }
        if let Some(half) = t.half {
            session.write_with(half, t.spec.len() / 2, |_| half_pair(0.04 * (rng.uniform() - 0.5), 0.04 * (rng.uniform() - 0.5)))?;
        }
        if let Some(master) = t.master {
            let norm = matches!(t.spec.role, Role::Norm | Role::Scale);
            debug_assert!(graph.config.weights != Weights::Float || t.packed.is_none());
            session.write_with(master, t.spec.len(), |_| {
                let x = if norm { 1.0f32 } else { 0.04 * (rng.uniform() - 0.5) };
                x.to_bits()
            })?;
        }
    }
    Ok(())
}
