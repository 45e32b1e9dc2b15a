//! A model that exists already becomes a teacher's directory.

use std::path::Path;

use flow_engine::plugin::StageError;
use flow_lm::chat::CHAT_TEMPLATE;
use flow_lm::format::gguf::{self, GgufFile, roles};
use flow_lm::format::{GGUF_TYPE, MODEL_GGUF};
use serde_json::json;

use super::directory;
use super::files::{copy, window, write};
use crate::task;

/// Takes a GGUF file or a directory of safetensors over into `to`, with windows of `seq` tokens where that is asked for.
pub fn import(from: &Path, to: &Path, seq: Option<usize>) -> Result<(), StageError> {
    if from.is_dir() { directory::import(from, to, seq) } else { import_gguf(from, to, seq) }
}

/// The file itself, and beside it what its keys say in the form that other teachers have.
fn import_gguf(from: &Path, to: &Path, seq: Option<usize>) -> Result<(), StageError> {
    let file = GgufFile::read(from)?;
    let config = gguf::model::config(&file)?;
    let tokenizer = gguf::tokenizer::json(&file)?;
    let name = file.text("general.name")?.unwrap_or_default();
    let about = json!({
        "model_type": GGUF_TYPE,
        "seq": window(from, seq, config.seq)?,
        "extra": {"name": name, "tokens": roles::of(&file)?},
    });
    task::write_json(&to.join("config.json"), &about)?;
    write(&to.join("tokenizer.json"), &tokenizer.to_string())?;
    if let Some(template) = file.text("tokenizer.chat_template")? {
        write(&to.join(CHAT_TEMPLATE), template)?;
    }
    copy(from, &to.join(MODEL_GGUF))
}
