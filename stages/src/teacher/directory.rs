//! A Hugging Face directory as a teacher's: its weights, and what its many small files say about tokens in one place.

use crate::task;
use std::path::Path;

use flow_engine::plugin::StageError;
use serde_json::json;

use super::files::{WINDOW, copy, window, write};
use flow_lm::chat::{self, CHAT_TEMPLATE};
use flow_lm::format::directory::roles;
use flow_lm::format::{hf, json_or_none};
use flow_lm::tokenizer::Tokenizer;

/// Whether the files are there that a teacher needs.
pub fn complete(from: &Path) -> Result<(), StageError> {
    let missing = |name: &str, help: &'static str| Err(StageError::new(format!("{}: no {name}", from.display())).help(help));
    if !from.join("config.json").is_file() {
        return missing(
            "config.json",
            "`path` is a `.gguf` file (the first, where there are parts), or a directory with config.json, safetensors and tokenizer.json",
        );
    }
    if !from.join("tokenizer.json").is_file() {
        return missing(
            "tokenizer.json",
            "a fast tokenizer is needed: in Python, `AutoTokenizer.from_pretrained(…).save_pretrained(…)` writes it",
        );
    }
    Ok(())
}

/// Copies what a teacher needs; `config.json` gets the window and the roles of tokens.
pub fn import(from: &Path, to: &Path, seq: Option<usize>) -> Result<usize, StageError> {
    let mut config = json_or_none(&from.join("config.json"))?.unwrap_or_default();
    let tokenizer = from.join("tokenizer.json");
    let ours = config["model_type"] == "flow";
    let (place, field) = if ours { (&mut config["config"], "seq") } else { (&mut config, "max_position_embeddings") };
    let context = place[field].as_u64().map_or(WINDOW, |context| context as usize);
    let seq = window(from, seq, context)?;
    place[field] = seq.into();
    let settings = json_or_none(&from.join("tokenizer_config.json"))?.unwrap_or_default();
    if !ours || config["extra"]["tokens"].is_null() && !settings.is_null() {
        let roles = roles(from, &config, &Tokenizer::load(&tokenizer)?)?;
        config["extra"]["tokens"] = json!(roles);
    }
    task::write_json(&to.join("config.json"), &config)?;
    if let Some((_, template)) = chat::in_directory(from)? {
        write(&to.join(CHAT_TEMPLATE), &template)?;
    }
    copy(&tokenizer, &to.join("tokenizer.json"))?;
    for file in hf::weight_files(from)? {
        if let Some(name) = file.file_name() {
            copy(&file, &to.join(name))?;
        }
    }
    let index = from.join(hf::INDEX);
    if index.is_file() {
        copy(&index, &to.join(hf::INDEX))?;
    }
    Ok(seq)
}
