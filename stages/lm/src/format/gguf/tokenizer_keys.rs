//! The tokenizer keys of a GGUF file, from a `tokenizer.json`.

use serde_json::Value as Json;

use super::pieces::Pieces;
use super::sentencepiece;
use super::vocabulary::{BYTE, CONTROL, NORMAL, UNKNOWN, UNUSED, USER_DEFINED};
use super::write::{GgufWriter, Value};
use crate::error::{Error, FormatError, Result, TokenizerError};
use crate::format::tokenizer_file::TokenizerFile;
use crate::tokenizer::{TokenId, Tokenizer};

/// Tokens that end a turn where EOS ends a text.
const END_OF_TURN: [&str; 4] = ["<|eot_id|>", "<|im_end|>", "<|end|>", "<end_of_turn>"];

/// Adds `tokenizer.ggml.*` over `vocab` ids, and the chat template where there is one. The keys say what llama.cpp makes of
/// a text; what it cannot say is refused. One thing it never does is accepted: `NFC` (Qwen's files have it), so
/// texts with decomposed letters get other ids there than by the `tokenizer.json`.
pub fn add(writer: &mut GgufWriter<'_>, of: &TokenizerFile, vocab: usize, template: Option<&str>) -> Result<()> {
    let TokenizerFile { tokenizer, json, place, .. } = of;
    let tokens = tokenizer.vocab_size();
    if tokens > vocab {
        return Err(Error::from(TokenizerError::Beyond { place: place.clone(), name: "", tokens, vocab })
            .help("wire the tokenizer that the student was trained with"));
    }
    let merges = merges(json).ok_or_else(|| FormatError::field(place, "model.merges", "expected pairs of tokens"))?;
    let refused = |why| {
        Error::from(TokenizerError::Unsupported { file: place.clone(), why: format!("llama.cpp cannot read it: {why}") })
            .help("what can be exported: byte-level BPE with the pieces of GPT-2, SmolLM, Llama 3, Qwen or Mistral Nemo, and SentencePiece BPE as in Llama 2")
    };
    added_tokens(json).map_err(refused)?;
    let (tokens, types) = vocabulary(tokenizer, json, vocab);
    let keys_of = if json["model"]["byte_fallback"] == true { sentencepiece_keys } else { byte_level_keys };
    let keys = keys_of(json, &tokens, &merges).map_err(refused)?;
    writer.key("tokenizer.ggml.tokens", Value::Texts(tokens));
    writer.key("tokenizer.ggml.token_type", Value::I32s(types));
    for (name, value) in keys {
        writer.key(format!("tokenizer.ggml.{name}"), value);
    }
    role_keys(writer, of);
    if let Some(template) = template {
        writer.key("tokenizer.chat_template", Value::Text(template.into()));
    }
    Ok(())
}

type Keys = Vec<(&'static str, Value)>;

fn byte_level_keys(json: &Json, _: &[String], merges: &[(String, String)]) -> Result<Keys, String> {
    let model = &json["model"];
    let affix = |field: &str| model[field].as_str().is_some_and(|s| !s.is_empty());
    if affix("continuing_subword_prefix") || affix("end_of_word_suffix") {
        return Err("its tokens are marked by a prefix or a suffix".into());
    }
    match json["normalizer"]["type"].as_str() {
        None | Some("NFC") => {}
        Some(other) => return Err(format!("it normalizes texts by `{other}`")),
    }
    let pieces = Pieces::of(json)?;
    Ok(vec![
        ("model", Value::Text("gpt2".into())),
        ("pre", Value::Text(pieces.names[0].into())),
        ("merges", Value::Texts(merges.iter().map(|(left, right)| format!("{left} {right}")).collect())),
    ])
}

fn sentencepiece_keys(json: &Json, tokens: &[String], merges: &[(String, String)]) -> Result<Keys, String> {
    let prefix = sentencepiece::adds_space(json)?;
    let mut keys = vec![
        ("model", Value::Text("llama".into())),
        ("pre", Value::Text("default".into())),
        ("scores", Value::F32s(sentencepiece::scores(json, tokens, merges)?)),
        ("add_space_prefix", Value::Bool(prefix)),
    ];
    let unknown = json["model"]["unk_token"].as_str().and_then(|name| tokens.iter().position(|t| t == name));
    keys.extend(unknown.map(|id| ("unknown_token_id", Value::U32(id as u32))));
    Ok(keys)
}

/// llama.cpp knows nothing of how an added token treats the text beside it.
fn added_tokens(json: &Json) -> Result<(), String> {
    let odd = ["lstrip", "rstrip", "single_word"];
    for token in json["added_tokens"].as_array().into_iter().flatten() {
        if let Some(flag) = odd.iter().find(|flag| token[**flag] == true) {
            return Err(format!("its token {} has `{flag}`", token["content"]));
        }
    }
    Ok(())
}

/// Names and types of all ids; ids that no token has are padding.
fn vocabulary(tokenizer: &Tokenizer, json: &Json, vocab: usize) -> (Vec<String>, Vec<i32>) {
    let added: std::collections::HashMap<u64, bool> =
        json["added_tokens"].as_array().into_iter().flatten().filter_map(|t| Some((t["id"].as_u64()?, t["special"] == true))).collect();
    let (unknown, fallback) = (json["model"]["unk_token"].as_str(), json["model"]["byte_fallback"] == true);
    let one = |id: u32| {
        let Some(name) = tokenizer.name_of(TokenId(id)) else { return (format!("[PAD{id}]"), UNUSED) };
        let ty = match added.get(&id.into()) {
            _ if fallback && unknown == Some(&name) => UNKNOWN,
            Some(true) => CONTROL,
            Some(false) => USER_DEFINED,
            None if fallback && sentencepiece::is_byte(&name) => BYTE,
            None => NORMAL,
        };
        (name, ty)
    };
    (0..vocab as u32).map(one).unzip()
}

fn role_keys(writer: &mut GgufWriter<'_>, of: &TokenizerFile) {
    let tokenizer = &of.tokenizer;
    let mut id = |name: &str, id: TokenId| writer.key(format!("tokenizer.ggml.{name}"), Value::U32(id.0));
    id("bos_token_id", of.bos());
    id("eos_token_id", tokenizer.eos());
    let turn = END_OF_TURN.iter().find_map(|name| tokenizer.id_of(name));
    if let Some(turn) = turn.filter(|t| tokenizer.is_special(*t)) {
        id("eot_token_id", turn);
    }
    writer.key("tokenizer.ggml.add_bos_token", Value::Bool(of.adds_bos()));
}

/// Merges, from either of the two forms that files use.
fn merges(json: &Json) -> Option<Vec<(String, String)>> {
    let one = |m: &Json| match m {
        Json::String(s) => s.split_once(' ').map(|(a, b)| (a.to_owned(), b.to_owned())),
        Json::Array(pair) if pair.len() == 2 => Some((pair[0].as_str()?.to_owned(), pair[1].as_str()?.to_owned())),
        _ => None,
    };
    json["model"]["merges"].as_array()?.iter().map(one).collect()
}
