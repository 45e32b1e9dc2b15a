//! What traces say about themselves: `meta.json`, repeated in every Parquet file's own metadata.

use std::collections::BTreeMap;
use std::path::Path;

use flow_engine::plugin::StageError;
use serde::{Deserialize, Serialize};

/// Whose ids the rows hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, Default)]
#[serde(rename_all = "lowercase")]
pub enum Layout {
    /// The teacher's, with bytes.
    #[default]
    Raw,
    /// The student's.
    Projected,
}

/// How continuations were drawn; the logprobs in the rows are those of temperature 1.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, Default)]
#[serde(default)]
pub struct Sampling {
    /// Temperature of the draw.
    pub temperature: f64,
    /// Nucleus of the draw.
    pub top_p: f64,
    /// Longest continuation.
    pub max_tokens: usize,
    /// Samples of each prompt.
    pub samples: usize,
    /// Seed.
    pub seed: u64,
}

/// Everything about traces that holds for all rows.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, Default)]
#[serde(default)]
pub struct TraceMeta {
    /// Version of `flow` that wrote them.
    pub flow: String,
    /// Raw or projected; set by the writer.
    pub layout: Layout,
    /// Teacher in words.
    pub teacher: String,
    /// Digest of the teacher, hex; for a hosted one, of its base URL and model.
    pub teacher_digest: String,
    /// Template of the context, with `{prompt}`.
    pub template: String,
    /// blake3 of the template; set by the writer.
    pub template_hash: String,
    /// Digest of the tokenizer that the ids belong to: [`flow_lm::tokenizer::Tokenizer::digest`].
    pub tokenizer_hash: String,
    /// The teacher's tokenizer, kept when the rows are projected.
    pub teacher_tokenizer_hash: String,
    /// Id of the token that ends a text, in the rows' ids.
    pub eos_id: Option<i32>,
    /// Vocabulary of the rows' ids, 0 where unknown.
    pub vocab: usize,
    /// What a row keeps ([`crate::teacher::method::Method`]); empty in older traces: `top_k`.
    pub method: String,
    /// Bits of mantissa that logprobs were rounded to.
    pub logprob_bits: Option<u32>,
    /// Candidates per row, at most.
    pub top_k: usize,
    /// Temperatures of `other_lse`.
    pub taus: Vec<f32>,
    /// How continuations were drawn.
    pub sampling: Sampling,
    /// `logprob_temperature` and other conventions in words.
    pub conventions: BTreeMap<String, String>,
    /// How ids were projected; projected traces only.
    pub projection: Option<String>,
}

impl TraceMeta {
    /// What a row keeps.
    pub fn method_name(&self) -> &str {
        if self.method.is_empty() { "top_k" } else { &self.method }
    }
    /// The metadata with what the writer sets.
    pub(super) fn completed(&self, layout: Layout) -> Self {
        let mut meta = self.clone();
        meta.flow = env!("CARGO_PKG_VERSION").into();
        meta.layout = layout;
        meta.template_hash = blake3::hash(meta.template.as_bytes()).to_hex().to_string();
        meta.conventions.entry("logprobs".into()).or_insert_with(|| "natural log, teacher at temperature 1, before top_p".into());
        meta.conventions
            .entry("alignment".into())
            .or_insert_with(|| "row t is the distribution that token t was drawn from: the target of the logits at token t-1".into());
        meta
    }
}

/// Sizes of a traces directory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, Default)]
#[serde(default)]
pub struct TraceCounts {
    /// Sequences.
    pub sequences: u64,
    /// Rows.
    pub rows: u64,
    /// Row shards.
    pub shards: u64,
    /// Rows by source.
    pub rows_by_source: BTreeMap<String, u64>,
    /// Structural rows.
    pub structural_rows: u64,
}

/// Content of `meta.json`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, Default)]
#[serde(default)]
pub(super) struct MetaFile {
    pub meta: TraceMeta,
    pub counts: TraceCounts,
}

impl MetaFile {
    pub fn read(dir: &Path) -> Result<Self, StageError> {
        let path = dir.join("meta.json");
        let text = std::fs::read(&path).map_err(|e| {
            StageError::io("cannot read", &path, &e).help("a traces directory holds meta.json, sequences.parquet and rows-*.parquet; Parquet files of another tool come in by the kind `kd.import`")
        })?;
        serde_json::from_slice(&text).map_err(|e| StageError::new(format!("{}: not the metadata of traces: {e}", path.display())))
    }
}
