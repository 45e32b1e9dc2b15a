//! A Hugging Face directory as a teacher's: its weights, and what its many small files say about tokens in one place.

use crate::task;
use std::path::Path;

use flow_engine::plugin::StageError;
use serde_json::{Value, json};

use super::files::{copy, window, write};
use super::template::CHAT_TEMPLATE;
use flow_lm::format::hf;
use flow_lm::tokenizer::{Roles, TokenId, Tokenizer};

/// Copies what a teacher needs; `config.json` gets the window and the roles of tokens.
pub fn import(from: &Path, to: &Path, seq: Option<usize>) -> Result<(), StageError> {
    let mut config = read_json(&from.join("config.json"))?.ok_or_else(|| {
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
    let settings = read_json(&from.join("tokenizer_config.json"))?.unwrap_or_default();
    if !ours || config["extra"]["tokens"].is_null() && !settings.is_null() {
        let roles = roles(from, &config, &settings, &tokenizer)?;
        config["extra"]["tokens"] = json!(roles);
    }
    task::write_json(&to.join("config.json"), &config)?;
    if let Some(template) = chat_template(from, &settings)? {
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

fn read_json(path: &Path) -> Result<Option<Value>, StageError> {
    match std::fs::read(path) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(StageError::io("cannot read", path, &e)),
        Ok(text) => serde_json::from_slice(&text).map(Some).map_err(|e| StageError::new(format!("{}: not JSON: {e}", path.display()))),
    }
}

/// `chat_template.jinja`, or the field of `tokenizer_config.json`: a text, or a list of named ones.
fn chat_template(dir: &Path, settings: &Value) -> Result<Option<String>, StageError> {
    let path = dir.join(CHAT_TEMPLATE);
    match std::fs::read(&path) {
        Ok(bytes) => {
            let text = flow_engine::text::utf8(bytes);
            return text.map(Some).map_err(|e| StageError::new(format!("{} {e}", path.display())).help(e.help()));
        }
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
        Err(e) => return Err(StageError::io("cannot read", &path, &e)),
    }
    let named = |t: &&Value| t["name"] == "default";
    let field = &settings["chat_template"];
    let of = field.as_array().and_then(|all| all.iter().find(named)).map_or(field, |t| &t["template"]);
    Ok(of.as_str().map(str::to_owned))
}

/// Ids of `bos_token_id`, `eos_token_id` (one or several) and of the texts in `tokenizer_config.json`.
fn roles(dir: &Path, config: &Value, settings: &Value, tokenizer: &Path) -> Result<Roles, StageError> {
    let generation = read_json(&dir.join("generation_config.json"))?.unwrap_or_default();
    let ids = |v: &Value| -> Vec<TokenId> {
        let one = |v: &Value| v.as_u64().and_then(|id| u32::try_from(id).ok()).map(TokenId);
        v.as_array().map_or_else(|| one(v).into_iter().collect(), |all| all.iter().filter_map(one).collect())
    };
    let known = Tokenizer::load(tokenizer)?;
    let named = |field: &str| {
        let token = &settings[field];
        known.id_of(token.as_str().or(token["content"].as_str())?)
    };
    let first = |field: &str| ids(&config[field]).first().copied();
    let mut ends = [ids(&config["eos_token_id"]), ids(&generation["eos_token_id"])].concat();
    let eos = named("eos_token").or_else(|| first("eos_token_id"));
    ends.extend(eos);
    ends.extend(flow_lm::format::gguf::roles::END_NAMES.iter().filter_map(|n| known.id_of(n)));
    ends.sort_unstable();
    ends.dedup();
    let add_bos = match settings["add_bos_token"].as_bool() {
        Some(said) => said,
        None => begins_with_special(&read_json(tokenizer)?.unwrap_or_default()["post_processor"]),
    };
    Ok(Roles { bos: named("bos_token").or_else(|| first("bos_token_id")), eos, ends, add_bos })
}

/// Whether a post-processor puts a special token before a text.
fn begins_with_special(post: &Value) -> bool {
    let first = &post["single"][0]["SpecialToken"];
    !first.is_null() || post["processors"].as_array().is_some_and(|all| all.iter().any(begins_with_special))
}
