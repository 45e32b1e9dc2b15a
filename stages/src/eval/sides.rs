//! What stands on a side of a comparison: its weights, windows and memory, from its configuration and its files.

use std::path::Path;

use flow_engine::plugin::StageError;
use flow_lm::config::{Bits, Group, ModelConfig, Weights};
use flow_lm::format::Checkpoint;
use flow_lm::format::stored::Stored;
use flow_lm::infer::{KvCache, Session, Uses};
use flow_lm::tokenizer::Tokenizer;

use super::speed::Speed;
use crate::measurements::{Side, TokenizerOf};

/// Bytes of a model where it decodes one sequence of its window.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Memory {
    /// Of its weights: as its files hold them, or as `flow` does, whichever is less.
    pub weights: u64,
    /// These, keys and values, activations.
    pub planned: u64,
}

/// What of a session decodes one sequence.
pub fn decoding(model: &Checkpoint, cache: KvCache) -> Uses {
    let uses = Uses { decode: Some((1, model.config.seq)), cache: cache.form(), ..Uses::default() };
    uses.for_tensors(&model.config, &model.tensors)
}

/// The memory of a model as it would be run, in files that hold it like this. A file of 4-bit blocks is run in 4 bits by those
/// who use it, whatever form `flow` computes in.
pub fn memory(model: &Checkpoint, stored: &Stored, cache: KvCache) -> Memory {
    let uses = decoding(model, cache);
    let (all, held) = (Session::planned_bytes(model.config.clone(), &uses), Session::weight_bytes(model.config.clone(), &uses));
    let weights = held.min(stored.bytes());
    Memory { weights, planned: all - held + weights }
}

/// One side: a model at activation `bits`, in `files`.
pub fn side(
    (model, tokenizer, files): (&Checkpoint, &Tokenizer, &Path),
    (bits, cache): (Bits, KvCache),
    measured: &Speed,
) -> Result<Side, StageError> {
    let config = &model.config;
    let stored = Stored::of(files)?;
    let memory = memory(model, &stored, cache);
    Ok(Side {
        weights: weights(config, &stored),
        activation_bits: config.quantises().then(|| bits.count()),
        window: config.seq,
        stride: config.seq,
        tokenizer: tokenizer_of(tokenizer),
        weights_bytes: memory.weights,
        memory_planned_bytes: memory.planned,
        session_planned_bytes: measured.planned_bytes,
        session_measured_bytes: measured.measured_bytes,
    })
}

/// A tokenizer in a report.
pub fn tokenizer_of(tokenizer: &Tokenizer) -> TokenizerOf {
    TokenizerOf { digest: tokenizer.digest().to_owned(), vocab: tokenizer.vocab_size() }
}

/// Weights in words.
fn weights(config: &ModelConfig, stored: &Stored) -> String {
    if config.weights == Weights::Float {
        return format!("float, stored as {stored}");
    }
    let of = match config.group {
        Group::Tensor => "a scale for each matrix".to_owned(),
        Group::Row => "a scale for each row".to_owned(),
        Group::Of(n) => format!("a scale for {n}"),
    };
    let tables = match (config.ternary_embedding, config.ternary_head || (config.tied && config.ternary_embedding)) {
        (true, true) => ", embedding and head too",
        (true, false) => ", the embedding too",
        (false, true) => ", the head too",
        (false, false) => "",
    };
    format!("ternary, {of}{tables}")
}
