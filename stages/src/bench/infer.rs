//! Reading a prompt and decoding after it, out of a GGUF file.

use std::path::Path;
use std::time::Instant;

use flow_engine::plugin::StageError;
use flow_shaders::device::Device;
use flow_shaders::kernels::attention::Cached;
use serde_json::{Value, json};

use super::figures::{median, peak_rss, resident, rounded};
use flow_lm::format::gguf::{GgufFile, model};
use flow_lm::infer::{Generator, Request, Session, Takes, Uses};
use flow_lm::rng::Rng;
use flow_lm::tokenizer::TokenId;

/// What is inferred.
#[derive(Clone, Copy, Debug)]
pub struct InferBench {
    /// Tokens of the prompt.
    pub prompt: usize,
    /// Tokens decoded after it.
    pub decode: usize,
    /// Sequences together.
    pub batch: usize,
    /// Rounds that count, after one that does not.
    pub repeat: usize,
    /// What linears take; as the model was trained where not said.
    pub takes: Option<Takes>,
    /// How the KV cache is held.
    pub cache: Cached,
    /// Positions of the cache, where more than prompt and decoded tokens; all of them are written.
    pub context: Option<usize>,
    /// Score the prompt, logits at every position, instead of reading it into the cache.
    pub score: bool,
}

/// Tokens that are read together.
const CHUNK: usize = 128;

/// Measures; tokens/s count those of all sequences.
pub fn infer(device: &Device, path: &Path, b: &InferBench) -> Result<Value, StageError> {
    let began = Instant::now();
    let (config, tensors) = model::load(GgufFile::read(path)?)?;
    let chunk = CHUNK.min(b.prompt).max(1);
    let kv_len = (b.prompt.next_multiple_of(chunk) + b.decode).max(b.context.unwrap_or(0));
    let mut uses = Uses { decode: Some((b.batch, kv_len)), prefill: chunk, cache: b.cache, ..Uses::default() };
    if b.score {
        uses = Uses { score: Some((b.batch, b.prompt)), top_k: 20, ..Uses::default() };
    }
    let takes = Takes::fitting(b.takes, &config).map_err(|e| StageError::new(format!("--{} {}", e.field, e.why)))?;
    let mut lm = Session::new(device, config.clone(), &tensors, uses.taking(takes))?;
    lm.set_bits(takes.bits())?;
    let load = began.elapsed().as_secs_f64();
    let mut rng = Rng::new(1, "bench prompt");
    if b.context.is_some() {
        // Small numbers in each of a cache's forms.
        lm.fill_cache(|| 0x3c00_0000 | (rng.bits() as u32 & 0x0003_ffff))?;
    }
    let (mut read, mut decoded) = (Vec::new(), Vec::new());
    for round in 0..=b.repeat {
        let ids: Vec<TokenId> = (0..b.batch * b.prompt).map(|_| TokenId(rng.below(config.vocab) as u32)).collect();
        let began = Instant::now();
        if b.score {
            lm.top_k(&ids, &vec![1; ids.len()])?;
        } else {
            prefill(&mut lm, &ids, b, chunk)?;
            let prompt_seconds = began.elapsed().as_secs_f64();
            let decode_seconds = decode(&mut lm, &ids, b)?;
            if round > 0 {
                decoded.push((b.batch * b.decode) as f64 / decode_seconds);
                read.push(ids.len() as f64 / prompt_seconds);
            }
            continue;
        }
        if round > 0 {
            read.push(ids.len() as f64 / began.elapsed().as_secs_f64());
        }
    }
    let name = if b.score { "score_tokens_per_second" } else { "prefill_tokens_per_second" };
    let mut out = json!({
        "bench": "infer", "model": path.file_name().map(|n| n.to_string_lossy()), "parameters": config.parameters(),
        "prompt": b.prompt, "decode": b.decode, "batch": b.batch, "activations": takes.name(), "load_seconds": rounded(load),
        name: rounded(median(read)), "planned_bytes": lm.bytes(), "cache_bytes": lm.cache_bytes(), "resident_bytes": resident(), "peak_rss_bytes": peak_rss(), "device": device.name(),
    });
    if !b.score {
        out["decode_tokens_per_second"] = rounded(median(decoded));
    }
    Ok(out)
}

fn prefill(lm: &mut Session, ids: &[TokenId], b: &InferBench, chunk: usize) -> Result<(), StageError> {
    for first in (0..b.prompt).step_by(chunk) {
        let len = chunk.min(b.prompt - first);
        let part: Vec<TokenId> = ids.chunks_exact(b.prompt).flat_map(|s| s[first..first + len].iter().copied()).collect();
        lm.prefill(&part, first, len)?;
    }
    Ok(())
}

/// Seconds that the sequences take in the session's slots, from their first tokens on.
fn decode(lm: &mut Session, ids: &[TokenId], b: &InferBench) -> Result<f64, StageError> {
    let mut generator = Generator::new(lm);
    for prompt in ids.chunks_exact(b.prompt) {
        generator.join(Request { prompt: prompt.to_vec(), max_tokens: b.decode + 1, ..Request::default() })?;
    }
    generator.step()?;
    let began = Instant::now();
    for _ in 0..b.decode {
        generator.step()?;
    }
    Ok(began.elapsed().as_secs_f64())
}
