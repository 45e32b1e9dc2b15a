//! A model with all that it came with: weights, tokenizer, chat template.

use std::path::Path;

use crate::chat::ChatTemplate;
use crate::error::Result;
use crate::format::{Checkpoint, load, tokenizer_of};
use crate::tokenizer::Tokenizer;

/// A model with all that it came with.
pub struct Model {
    /// Shape and weights.
    pub checkpoint: Checkpoint,
    /// Its tokenizer.
    pub tokenizer: Tokenizer,
    /// Its chat template; base models have none.
    pub template: Option<ChatTemplate>,
}

impl Model {
    /// Reads a GGUF file, or a directory of ours or of Hugging Face's.
    pub fn open(path: &Path) -> Result<Self> {
        let checkpoint = load(path)?;
        let tokenizer = tokenizer_of(path, &checkpoint)?;
        let template = ChatTemplate::of(path, &tokenizer)?;
        Ok(Self { checkpoint, tokenizer, template })
    }
}
