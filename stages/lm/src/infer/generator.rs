//! A language model with its tokenizer on a device: what teachers, evaluation and generation share.

use std::path::Path;

use flow_engine::plugin::{StageError, TaskContext};
use flow_shaders::device::{Device, open};
use flow_shaders::kernels::attention::Cached;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::model::checkpoint::{self, Checkpoint};
use crate::model::config::ModelConfig;
use crate::model::inference::{Inference, Uses};
use crate::rng::Rng;
use crate::tokenizer::{Roles, Tokenizer};
use crate::train::device_error;

/// The device that a task asks for.
pub fn device(ctx: &TaskContext) -> Result<Device, StageError> {
    let device = open(ctx.device(), ctx.threads()).map_err(device_error)?;
    ctx.computes_on(&device.name());
    Ok(device)
}

/// A model directory with its tokenizer.
pub fn load(dir: &Path) -> Result<(Checkpoint, Tokenizer), StageError> {
    let model = checkpoint::load(dir)?;
    let path = model.tokenizer.clone().ok_or_else(|| {
        StageError::new(format!("{}: no tokenizer.json", dir.display())).help("a model directory needs its tokenizer beside config.json")
    })?;
    let mut tokenizer = Tokenizer::load(&path)?;
    if let Ok(roles) = serde_json::from_value::<Roles>(model.extra["tokens"].clone()) {
        tokenizer = tokenizer.with_roles(&roles);
    }
    if tokenizer.vocab_size() > model.config.vocab {
        return Err(StageError::new(format!(
            "{}: tokenizer.json has {} tokens, the model {}",
            dir.display(),
            tokenizer.vocab_size(),
            model.config.vocab
        )));
    }
    Ok((model, tokenizer))
}

/// Digest of a directory's files, by name and content: what a baseline is locked to.
pub fn digest(dir: &Path) -> Result<String, StageError> {
    let mut names: Vec<_> = std::fs::read_dir(dir)
        .and_then(|all| all.map(|e| e.map(|e| e.path())).collect::<Result<_, _>>())
        .map_err(|e| StageError::io("cannot read", dir, &e))?;
    names.sort();
    let mut hash = blake3::Hasher::new();
    for path in names {
        let bytes = std::fs::read(&path).map_err(|e| StageError::io("cannot read", &path, &e))?;
        hash.update(path.file_name().unwrap_or_default().as_encoded_bytes());
        hash.update(blake3::hash(&bytes).as_bytes());
    }
    Ok(hash.finalize().to_hex().to_string())
}

/// Bytes that the logits of windows scored together may take, and the KV cache of sequences decoded together.
const BATCH_BYTES: usize = 256 << 20;

/// Windows of the model's length to score together: eight, or fewer where their logits would pass [`BATCH_BYTES`]. How
/// many changes no result.
pub fn windows_together(config: &ModelConfig) -> usize {
    (BATCH_BYTES / (4 * config.seq * config.vocab).max(1)).clamp(1, 8)
}

/// Sequences to decode together: those of `how`, or fewer where their cache would pass [`BATCH_BYTES`].
fn decoded_together(config: &ModelConfig, kv_len: usize, how: &Generation, prompts: usize) -> usize {
    let head = 4 * how.cache.form().fitting(config.head_dim).words(config.head_dim);
    let bytes = 2 * config.layers * kv_len * config.kv_heads * head;
    how.batch.min(prompts).min(BATCH_BYTES / bytes.max(1)).max(1)
}

/// Tokens of prompts that are read together. It does not depend on the batch: how a prompt is cut decides on roundings.
const CHUNK: usize = 32;

/// How the keys and values of earlier tokens are held while a model decodes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum KvCache {
    /// 32-bit floats.
    Float32,
    /// 16-bit floats.
    #[default]
    Float16,
    /// Bytes with a step for each position and head: a quarter of the memory, and an error of at most half a step.
    Int8,
}

impl KvCache {
    /// The form in a program.
    pub fn form(self) -> Cached {
        match self {
            KvCache::Float32 => Cached::Float,
            KvCache::Float16 => Cached::Half,
            KvCache::Int8 => Cached::Int8,
        }
    }
}

/// How continuations are chosen.
#[derive(Clone, Copy, Debug)]
pub struct Generation {
    /// Sequences decoded together.
    pub batch: usize,
    /// Tokens of a continuation, at most.
    pub max_tokens: usize,
    /// Temperature and top-p; greedy without.
    pub sampling: Option<(f32, f32)>,
    /// Seed of the draws.
    pub seed: u64,
    /// Activation bits of ternary linears.
    pub bits: u32,
    /// How keys and values are held.
    pub cache: KvCache,
}

/// One continuation.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Continuation {
    /// Tokens, without the one that ended it.
    pub tokens: Vec<u32>,
    /// Whether EOS, or another token that ends an answer, ended it.
    pub stopped: bool,
}

/// Continues every prompt ([`Tokenizer::context`]), many sequences together; the result does not depend on the batch
/// size. `done` are the first ones, of an earlier attempt; `visit` is told all that are done so far, and how many of them
/// are new.
pub fn generate(
    model: &Checkpoint,
    tokenizer: &Tokenizer,
    device: &Device,
    prompts: &[Vec<u32>],
    how: &Generation,
    done: Vec<Continuation>,
    mut visit: impl FnMut(&[Continuation], usize) -> Result<(), StageError>,
) -> Result<Vec<Continuation>, StageError> {
    if done.len() >= prompts.len() {
        return Ok(done);
    }
    let longest = prompts.iter().map(Vec::len).max().unwrap_or(0);
    let kv_len = (longest + how.max_tokens).min(model.config.seq.max(longest + 1));
    let how = &Generation { batch: decoded_together(&model.config, kv_len, how, prompts.len()), ..*how };
    // All of a prompt but its last token is read by chunks.
    let (read, prefill) = if longest > 1 { ((longest - 1).next_multiple_of(CHUNK), CHUNK) } else { (0, 0) };
    let uses =
        Uses { decode: Some((how.batch, kv_len.max(read))), sampling: how.sampling, prefill, cache: how.cache.form(), ..Uses::default() };
    let mut lm = Inference::new(device, model.config.clone(), &model.tensors, uses).map_err(device_error)?;
    lm.set_bits(how.bits).map_err(device_error)?;
    let mut all = done;
    for prompts in prompts[all.len()..].chunks(how.batch) {
        all.extend(group_of(&mut lm, tokenizer, prompts, all.len(), kv_len, how)?);
        visit(&all, prompts.len())?;
    }
    Ok(all)
}

fn group_of(
    lm: &mut Inference,
    tokenizer: &Tokenizer,
    prompts: &[Vec<u32>],
    first: usize,
    kv_len: usize,
    how: &Generation,
) -> Result<Vec<Continuation>, StageError> {
    let mut rngs: Vec<Rng> = (0..how.batch).map(|i| Rng::new(how.seed, &format!("sample {}", first + i))).collect();
    let mut out = vec![Continuation::default(); prompts.len()];
    let mut done: Vec<bool> = (0..how.batch).map(|i| i >= prompts.len()).collect();
    let starts: Vec<&[u32]> = prompts.iter().map(|p| &p[..p.len() - 1]).collect();
    lm.read_starts(&starts).map_err(device_error)?;
    let mut ids: Vec<u32> = (0..how.batch).map(|i| prompts.get(i).map_or(tokenizer.bos(), |p| p[p.len() - 1])).collect();
    let mut pos: Vec<u32> = (0..how.batch).map(|i| prompts.get(i).map_or(0, |p| p.len() as u32 - 1)).collect();
    while !done.iter().all(|d| *d) {
        let uniform: Option<Vec<f32>> = how.sampling.map(|_| rngs.iter_mut().map(Rng::uniform).collect());
        let next = lm.step(&ids, &pos, uniform.as_deref()).map_err(device_error)?;
        for i in (0..prompts.len()).filter(|i| !done[*i]).collect::<Vec<_>>() {
            if tokenizer.is_end(next[i]) {
                (done[i], out[i].stopped) = (true, true);
                continue;
            }
            out[i].tokens.push(next[i]);
            (ids[i], pos[i]) = (next[i], pos[i] + 1);
            done[i] = out[i].tokens.len() == how.max_tokens || pos[i] as usize == kv_len;
        }
    }
    Ok(out)
}

/// What is scored in one go: a token that is only read, and those that follow it.
#[derive(Clone, Copy, Debug)]
pub struct Window<'a> {
    /// Read first: BOS, or the first token of a prompt that has none.
    pub first: u32,
    /// Scored.
    pub targets: &'a [u32],
}

/// Windows of at most `seq` targets, scored `batch` at a time: ids, mask and labels.
pub struct ScoreBatch {
    /// Inputs `[batch, seq]`.
    pub ids: Vec<u32>,
    /// Real tokens.
    pub mask: Vec<u32>,
    /// Targets, −1 for none.
    pub labels: Vec<i32>,
}

/// Lays windows of targets out for scoring; fewer than `batch` are padded with empty ones.
pub fn score_batch(windows: &[Window<'_>], batch: usize, seq: usize) -> ScoreBatch {
    let mut b = ScoreBatch { ids: vec![0; batch * seq], mask: vec![0; batch * seq], labels: vec![-1; batch * seq] };
    for (i, w) in windows.iter().enumerate() {
        b.ids[i * seq] = w.first;
        for (t, token) in w.targets.iter().enumerate() {
            b.labels[i * seq + t] = *token as i32;
            b.mask[i * seq + t] = 1;
            if t + 1 < seq {
                b.ids[i * seq + t + 1] = *token;
            }
        }
    }
    b
}
