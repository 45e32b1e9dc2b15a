//! What the small files of a Hugging Face directory say about its tokens, in one place.

use std::path::Path;

use serde_json::Value;

use super::gguf::roles::END_NAMES;
use crate::error::{Error, FormatError, Result};
use crate::tokenizer::{Roles, TokenId, Tokenizer};

/// A JSON file; none where there is no such file.
pub fn json_or_none(path: &Path) -> Result<Option<Value>> {
    match std::fs::read(path) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(Error::io("cannot read", path, e)),
        Ok(text) => serde_json::from_slice(&text).map(Some).map_err(|e| FormatError::not_json(path, &e)),
    }
}

/// Ids of `bos_token_id`, `eos_token_id` (one or several) of `config` and of `generation_config.json`, and of the texts in
/// `tokenizer_config.json`, by the directory's tokenizer.
pub fn roles(dir: &Path, config: &Value, tokenizer: &Tokenizer) -> Result<Roles> {
    let settings = json_or_none(&dir.join("tokenizer_config.json"))?.unwrap_or_default();
    let generation = json_or_none(&dir.join("generation_config.json"))?.unwrap_or_default();
    let ids = |v: &Value| -> Vec<TokenId> {
        let one = |v: &Value| v.as_u64().and_then(|id| u32::try_from(id).ok()).map(TokenId);
        v.as_array().map_or_else(|| one(v).into_iter().collect(), |all| all.iter().filter_map(one).collect())
    };
    let named = |field: &str| {
        let token = &settings[field];
        tokenizer.id_of(token.as_str().or(token["content"].as_str())?)
    };
    let first = |field: &str| ids(&config[field]).first().copied();
    let mut ends = [ids(&config["eos_token_id"]), ids(&generation["eos_token_id"])].concat();
    let eos = named("eos_token").or_else(|| first("eos_token_id"));
    ends.extend(eos);
    ends.extend(END_NAMES.iter().filter_map(|n| tokenizer.id_of(n)));
    ends.sort_unstable();
    ends.dedup();
    let add_bos = match settings["add_bos_token"].as_bool() {
        Some(said) => said,
        None => first_special(&json_or_none(&dir.join("tokenizer.json"))?.unwrap_or_default()["post_processor"]).is_some(),
    };
    Ok(Roles { bos: named("bos_token").or_else(|| first("bos_token_id")), eos, ends, add_bos })
}

/// The special token that a post-processor puts before a text.
pub(super) fn first_special(post: &Value) -> Option<&str> {
    let first = post["single"][0]["SpecialToken"]["id"].as_str();
    first.or_else(|| post["processors"].as_array()?.iter().find_map(first_special))
}
