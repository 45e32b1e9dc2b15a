//! A model that was read, whatever its file.

use std::path::PathBuf;

use serde_json::Value;

use super::tensors::Tensors;
use crate::config::ModelConfig;

/// A model that was read.
#[derive(Clone, Debug)]
pub struct Checkpoint {
    /// Shape and numerics.
    pub config: ModelConfig,
    /// Float32 tensors by the names of [`ModelConfig::tensors`], each of the right size.
    pub tensors: Tensors,
    /// What the writer said beside the shape (preset, activation bits, digests, roles of tokens); `null` where nothing.
    pub extra: Value,
    /// `tokenizer.json`, if the directory holds one.
    pub tokenizer: Option<PathBuf>,
}
