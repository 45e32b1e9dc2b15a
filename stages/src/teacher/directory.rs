//! A Hugging Face directory as a teacher's: its weights, and what its many small files say about tokens in one place.

use crate::task;
use std::path::Path;

use flow_engine::plugin::StageError;
use serde_json::json;

use super::files::{copy, window, write};
use flow_lm::chat::{self, CHAT_TEMPLATE};
use flow_lm::format::directory::roles;
use flow_lm::format::{hf, json_or_none};
use flow_lm::tokenizer::Tokenizer;

/// Copies what a teacher needs; `config.json` gets the window and the roles of tokens.
pub fn import(from: &Path, to: &Path, seq: Option<usize>) -> Result<(), StageError> {
    let mut config = json_or_none(&from.join("config.json"))?.ok_or_else(|| {
        StageError::new(format!("{}: no config.json", from.display()))
            .help("`path` is a `.gguf` file, or a directory with config.json, safetensors and tokenizer.json")
    })?;
    let tokenizer = from.join("tokenizer.json");
    if !tokenizer.is_file() {
        return Err(StageError::new(format!("{}: no tokenizer.json", from.display()))
            .help("a fast tokenizer is needed: in Python, `AutoTokenizer.from_pretrained(…).save_pretrained(…)` writes it"));
    }
    let ours = config["model_type"] == "flow";
    let (place, field) = if ours { (&mut config["config"], "seq") } else { (&mut config, "max_position_embeddings") };
    if let Some(context) = place[field].as_u64() {
        place[field] = window(from, seq, context as usize)?.into();
    }
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
    if index.is_file() { copy(&index, &to.join(hf::INDEX)) } else { Ok(()) }
}
