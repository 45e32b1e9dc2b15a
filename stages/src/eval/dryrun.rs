//! A shape, planned and run with random packed weights.

use std::time::Instant;

use flow_engine::plugin::{StageError, TaskContext};
use flow_lm::config::{Bits, ModelConfig, Role};
use flow_lm::format::Checkpoint;
use flow_lm::format::tensors::half_pair;
use flow_lm::graph::{Graph, Moments, Optimizer, Packed, Storage};
use flow_lm::infer::{Session, Uses};
use flow_lm::rng::Rng;
use flow_lm::tokenizer::TokenId;
use flow_lm::train::{Beside, InLoop, Recipe, TokenWeight, TrainShape, Trainer};
use flow_shaders::device::{self, Device, DeviceError};
use flow_shaders::kernels::ternary::groups::scale_words;
use flow_shaders::kernels::ternary::packed_words;
use serde_json::json;

/// Bytes that a training step of this batch and sequence would hold, by what the recipe says of memory.
pub fn training((batch, seq): (usize, usize), config: &ModelConfig) -> serde_json::Value {
    plans((batch, seq, 20), config, &Beside::default())
}

/// The same of a training whose weights soften, with this teacher in the loop, whose logits and the student's exist for a chunk
/// of rows.
pub fn training_beside((batch, seq): (usize, usize), config: &ModelConfig, model: Checkpoint) -> serde_json::Value {
    let parameters = model.config.parameters();
    let teacher = InLoop { model, token_weight: TokenWeight::Even, relation: None }.shape();
    let rows = teacher.rows_at_once(config, batch * seq);
    let mut all = plans((batch, seq, 0), config, &Beside { softens: true, teacher: Some(teacher) });
    all["teacher_parameters"] = json!(parameters);
    all["rows_at_once"] = json!(rows);
    all["chunk_bytes"] = json!(2 * rows * config.vocab * 4);
    all
}

fn plans((batch, seq, top_k): (usize, usize, usize), config: &ModelConfig, beside: &Beside) -> serde_json::Value {
    let plan = |recompute, moments, storage| {
        let shape = TrainShape { batch, seq, top_k, ns: Recipe::default().newton_schulz(), recompute, moments, storage, evaluates: false };
        Trainer::planned_bytes(config.clone(), shape, Optimizer::Adamw, beside)
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
pub(super) fn memory(device: &Device) -> Option<(u64, u64)> {
    if let Device::Gpu(gpu) = device {
        return gpu.allocated_bytes().map(|b| (b, b));
    }
    flow_engine::memory::resident().map(|r| (r.now, r.peak))
}

/// Runs a forward pass of random tokens over random weights at A8 and A4: speed, memory, and how far the logits are apart.
pub fn execute(
    (config, name): (&ModelConfig, &str),
    uses: Uses,
    seed: u64,
    device: &Device,
    ctx: &TaskContext,
) -> Result<serde_json::Value, StageError> {
    let before = memory(device).map_or(0, |m| m.0);
    let fill = |graph: &Graph, session: &mut device::Session| random_weights(graph, session, seed);
    let rows = uses.score.map_or(0, |(batch, seq)| batch * seq);
    let mut lm = Session::with_weights(device, config.clone(), uses, fill)?;
    let mut rng = Rng::new(seed, "dry-run tokens");
    let ids: Vec<TokenId> = (0..rows).map(|_| TokenId(rng.below(config.vocab) as u32)).collect();
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
            return Err(StageError::new(format!("{} at A{bits}: a logit is not finite", name)));
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
        if let Some(Packed { codes, scale, groups }) = t.packed {
            let words = t.spec.shape[0] * packed_words(t.spec.shape[1]);
            // A pair of bits of 00, 01 or 10: clear the high bit wherever both are set.
            session.write_with(codes, words, |_| {
                let x = rng.bits() as u32;
                x & !((x & 0x5555_5555) << 1)
            })?;
            let s = 1.2 / (t.spec.shape[1] as f32).sqrt();
            let word = if groups == 1 { s.to_bits() } else { half_pair(s, s) };
            session.write_with(scale, scale_words(t.spec.shape[0], groups), |_| word)?;
        }
        if let Some(half) = t.half {
            session.write_with(half, t.spec.len() / 2, |_| half_pair(0.04 * (rng.uniform() - 0.5), 0.04 * (rng.uniform() - 0.5)))?;
        }
        if let Some(master) = t.master {
            let norm = matches!(t.spec.role, Role::Norm | Role::Scale);
            session.write_with(master, t.spec.len(), |_| {
                let x = if norm { 1.0f32 } else { 0.04 * (rng.uniform() - 0.5) };
                x.to_bits()
            })?;
        }
    }
    Ok(())
}
