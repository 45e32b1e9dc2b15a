//! How much is done together: it changes speed and memory, never a result.

use super::kv::KvCache;
use super::program::Uses;
use crate::config::ModelConfig;

/// Bytes that the logits of windows scored together may take, and the KV cache of sequences decoded together.
const BATCH_BYTES: usize = 256 << 20;

/// Tokens of prompts that are read together. It does not depend on the batch: how a prompt is cut decides on roundings.
pub const CHUNK: usize = 32;

/// Windows of the model's length to score together: eight, or fewer where their logits would pass [`BATCH_BYTES`]. How
/// many changes no result.
pub fn windows_together(config: &ModelConfig) -> usize {
    (BATCH_BYTES / (4 * config.seq * config.vocab).max(1)).clamp(1, 8)
}

/// What continuing some prompts needs of a session.
#[derive(Clone, Copy, Debug)]
pub struct Decoding {
    /// Sequences together, at most.
    pub batch: usize,
    /// Tokens of the longest prompt.
    pub longest: usize,
    /// Tokens of a continuation, at most.
    pub max_tokens: usize,
    /// Whether tokens are drawn.
    pub draws: bool,
    /// How keys and values are held.
    pub cache: KvCache,
}

impl Decoding {
    /// Tokens that a sequence may have in a model for `seq` of them, its prompt included.
    pub fn room(&self, seq: usize) -> usize {
        (self.longest + self.max_tokens).min(seq.max(self.longest + 1))
    }

    /// Adds to what a session is for; `sequences` of them there are.
    #[must_use]
    pub fn uses(&self, config: &ModelConfig, sequences: usize, uses: Uses) -> Uses {
        let kv_len = self.room(config.seq);
        // All of a prompt but its last token is read by chunks.
        let (read, prefill) = if self.longest > 1 { ((self.longest - 1).next_multiple_of(CHUNK), CHUNK) } else { (0, 0) };
        let head = 4 * self.cache.form().fitting(config.head_dim).words(config.head_dim);
        let bytes = 2 * config.layers * kv_len * config.kv_heads * head;
        let slots = self.batch.min(sequences).min(BATCH_BYTES / bytes.max(1)).max(1);
        let (draws, cache) = (self.draws, self.cache.form());
        Uses { decode: Some((slots, kv_len.max(read))), draws, prefill, cache, ..uses }
    }
}
