//! A model that exists already becomes a teacher's directory.

use std::path::Path;

use flow_engine::plugin::StageError;
use flow_lm::chat::CHAT_TEMPLATE;
use flow_lm::format::gguf::{self, GgufFile, roles};
use flow_lm::format::{GGUF_TYPE, MODEL_GGUF, part_name};
use serde_json::json;

use super::directory;
use super::files::{copy, window, write};
use crate::task;

/// Whether everything is there that a teacher needs.
pub fn complete(from: &Path) -> Result<(), StageError> {
    if from.is_dir() { directory::complete(from) } else { Ok(()) }
}

/// Takes a GGUF file or a directory of safetensors over into `to`, with windows of `seq` tokens where that is asked for; gives the
/// tokens of a window.
pub fn import(from: &Path, to: &Path, seq: Option<usize>) -> Result<usize, StageError> {
    if from.is_dir() { directory::import(from, to, seq) } else { import_gguf(from, to, seq) }
}

/// The file itself, and beside it what its keys say in the form that other teachers have.
fn import_gguf(from: &Path, to: &Path, seq: Option<usize>) -> Result<usize, StageError> {
    let file = GgufFile::read(from)?;
    let config = gguf::model::config(&file)?;
    let tokenizer = gguf::tokenizer::json(&file)?;
    let name = file.text("general.name")?.unwrap_or_default();
    let seq = window(from, seq, config.seq)?;
    let about = json!({
        "model_type": GGUF_TYPE,
        "seq": seq,
        "extra": {"name": name, "tokens": roles::of(&file)?},
    });
    task::write_json(&to.join("config.json"), &about)?;
    write(&to.join("tokenizer.json"), &tokenizer.to_string())?;
    if let Some(template) = file.text("tokenizer.chat_template")? {
        write(&to.join(CHAT_TEMPLATE), template)?;
    }
    match gguf::split::parts(from).filter(|_| file.parts() > 1) {
        None => copy(from, &to.join(MODEL_GGUF))?,
        Some((_, parts)) => {
            parts.iter().enumerate().try_for_each(|(i, part)| copy(part, &to.join(part_name(i + 1, parts.len()))))?;
        }
    }
    Ok(seq)
}
