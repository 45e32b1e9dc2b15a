//! The tokens of a GGUF file that begin a text and end an answer.

use super::pieces;
use super::read::GgufFile;
use super::write::Value;
use crate::error::{Error, Result};
use crate::tokenizer::{Roles, TokenId};

/// Tokens that end a turn or a text in the families that are read; files often name only one of them.
pub const END_NAMES: [&str; 8] =
    ["<|im_end|>", "<|eot_id|>", "<|eom_id|>", "<|end_of_text|>", "<|endoftext|>", "<|end|>", "<end_of_turn>", "</s>"];

/// Roles by the keys, and by the names of well-known tokens.
pub fn of(file: &GgufFile) -> Result<Roles> {
    let id = |name: &str| Ok::<_, Error>(file.whole(&format!("tokenizer.ggml.{name}"))?.map(|id| TokenId(id as u32)));
    let eos = id("eos_token_id")?;
    let mut ends: Vec<TokenId> = [eos, id("eot_token_id")?, id("eom_token_id")?].into_iter().flatten().collect();
    if let Some(Value::Texts(tokens)) = file.keys.get("tokenizer.ggml.tokens") {
        ends.extend(tokens.iter().enumerate().filter(|(_, t)| END_NAMES.contains(&t.as_str())).map(|(id, _)| TokenId(id as u32)));
    }
    ends.sort_unstable();
    ends.dedup();
    // llama.cpp's defaults where the file does not say.
    let adds = match file.text("tokenizer.ggml.model")? {
        Some("gpt2") => file.text("tokenizer.ggml.pre")?.and_then(pieces::named).is_some_and(|p| p.adds_bos),
        model => model == Some("llama"),
    };
    Ok(Roles { bos: id("bos_token_id")?, eos, ends, add_bos: file.flag("tokenizer.ggml.add_bos_token")?.unwrap_or(adds) })
}
