//! The tokenizer keys of a GGUF file, from a `tokenizer.json`.

use std::path::Path;

use serde_json::Value as Json;

use super::write::{GgufWriter, Value};
use crate::error::{Error, FormatError, Result, TokenizerError};
use crate::tokenizer::{TokenId, Tokenizer};

const NORMAL: i32 = 1;
const CONTROL: i32 = 3;
const USER_DEFINED: i32 = 4;
const UNUSED: i32 = 5;

/// Adds `tokenizer.ggml.*` for a byte-level BPE over `vocab` ids.
pub fn add(writer: &mut GgufWriter<'_>, path: &Path, vocab: usize) -> Result<()> {
    let tokenizer = Tokenizer::load(path)?;
    let tokens = tokenizer.vocab_size();
    if tokens > vocab {
        return Err(Error::from(TokenizerError::Beyond { place: path.to_owned(), name: "", tokens, vocab })
            .help("wire the tokenizer that the student was trained with"));
    }
    let raw = std::fs::read(path).map_err(|e| Error::io("cannot read", path, e))?;
    let json: Json = serde_json::from_slice(&raw).map_err(|e| FormatError::not_json(path, &e))?;
    let pre = pre_tokenizer(&json).ok_or_else(|| {
        Error::from(TokenizerError::Unsupported { file: path.to_owned(), why: "llama.cpp has no name for this pre-tokenizer".into() })
            .help("a plain byte-level one (`gpt-2`), alone or after single digits (`smollm`), can be exported")
    })?;
    let merges = merges(&json).ok_or_else(|| FormatError::field(path, "model.merges", "expected pairs of tokens"))?;
    let mut tokens = Vec::with_capacity(vocab);
    let mut types = Vec::with_capacity(vocab);
    let added = json["added_tokens"].as_array().map(Vec::as_slice).unwrap_or_default();
    for id in 0..vocab as u32 {
        let special = added.iter().find(|t| t["id"].as_u64() == Some(u64::from(id)));
        match (tokenizer.name_of(TokenId(id)), special) {
            (Some(name), Some(t)) => {
                tokens.push(name);
                types.push(if t["special"] == true { CONTROL } else { USER_DEFINED });
            }
            (Some(name), None) => {
                tokens.push(name);
                types.push(NORMAL);
            }
            (None, _) => {
                tokens.push(format!("[PAD{id}]"));
                types.push(UNUSED);
            }
        }
    }
    writer.key("tokenizer.ggml.model", Value::Text("gpt2".into()));
    writer.key("tokenizer.ggml.pre", Value::Text(pre.into()));
    writer.key("tokenizer.ggml.tokens", Value::Texts(tokens));
    writer.key("tokenizer.ggml.token_type", Value::I32s(types));
    writer.key("tokenizer.ggml.merges", Value::Texts(merges));
    writer.key("tokenizer.ggml.bos_token_id", Value::U32(tokenizer.bos().0));
    writer.key("tokenizer.ggml.eos_token_id", Value::U32(tokenizer.eos().0));
    writer.key("tokenizer.ggml.add_bos_token", Value::Bool(false));
    Ok(())
}

/// llama.cpp's name of a pre-tokenizer.
fn pre_tokenizer(json: &Json) -> Option<&'static str> {
    let byte_level = |p: &Json| p["type"] == "ByteLevel" && p["add_prefix_space"] == false && p["use_regex"] != false;
    let p = &json["pre_tokenizer"];
    if !json["normalizer"].is_null() {
        return None;
    }
    if byte_level(p) {
        return Some("gpt-2");
    }
    let parts = p["pretokenizers"].as_array()?;
    let digits = parts.len() == 2 && parts[0]["type"] == "Digits" && parts[0]["individual_digits"] == true;
    (digits && byte_level(&parts[1])).then_some("smollm")
}

/// Merges as `left right`, from either of the two forms that files use.
fn merges(json: &Json) -> Option<Vec<String>> {
    let one = |m: &Json| match m {
        Json::String(s) => Some(s.clone()),
        Json::Array(pair) if pair.len() == 2 => Some(format!("{} {}", pair[0].as_str()?, pair[1].as_str()?)),
        _ => None,
    };
    json["model"]["merges"].as_array()?.iter().map(one).collect()
}
