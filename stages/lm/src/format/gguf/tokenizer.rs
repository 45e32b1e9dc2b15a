//! A `tokenizer.json` out of the tokenizer keys of a GGUF file.
//!
//! `tokenizer.ggml.model` is `gpt2` (byte-level BPE, whose pieces `tokenizer.ggml.pre` names) or `llama`
//! (SentencePiece BPE, whose merges follow from the pieces and their scores).

use serde_json::{Value as Json, json};

use super::read::GgufFile;
use super::vocabulary::Vocabulary;
use super::write::Value;
use crate::error::Result;

/// GPT-2's pieces, which the byte-level pre-tokenizer of the `tokenizers` crate has built in, are not spelled out here.
const LLAMA_3: &str =
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const QWEN_2: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// Content of a `tokenizer.json` that encodes as the file's own tokenizer does.
pub fn json(file: &GgufFile) -> Result<Json> {
    let vocabulary = Vocabulary::read(file)?;
    let model = file.text("tokenizer.ggml.model")?.unwrap_or_default();
    let (model, normalizer, pre_tokenizer, decoder) = match model {
        "gpt2" => {
            let pre = file.text("tokenizer.ggml.pre")?.unwrap_or("default");
            let model = bpe(&vocabulary, merges(file)?, pre == "llama-bpe");
            (model, Json::Null, pieces(file, pre)?, byte_level(true))
        }
        "llama" => {
            let (model, normalizer, decoder) = super::sentencepiece::parts(file, &vocabulary)?;
            (model, normalizer, Json::Null, decoder)
        }
        other => {
            return Err(file
                .wrong_field("tokenizer.ggml.model", format!("`{other}` is not built in"))
                .help("tokenizers that are read: gpt2 (byte-level BPE), llama (SentencePiece BPE)"));
        }
    };
    Ok(json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": vocabulary.added(), "normalizer": normalizer,
        "pre_tokenizer": pre_tokenizer, "post_processor": null, "decoder": decoder, "model": model,
    }))
}

fn bpe(vocabulary: &Vocabulary<'_>, merges: Vec<Json>, ignore_merges: bool) -> Json {
    json!({
        "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null, "end_of_word_suffix": null,
        "fuse_unk": false, "byte_fallback": false, "ignore_merges": ignore_merges, "vocab": vocabulary.ids(), "merges": merges,
    })
}

fn merges(file: &GgufFile) -> Result<Vec<Json>> {
    let field = "tokenizer.ggml.merges";
    let Some(Value::Texts(merges)) = file.keys.get(field) else {
        return Err(file.missing_field(field).help("a gpt2 tokenizer needs its merges"));
    };
    let pair = |(i, merge): (usize, &String)| {
        let cut = merge.split_once(' ').filter(|(a, b)| !a.is_empty() && !b.is_empty() && !b.contains(' '));
        cut.map(|(a, b)| json!([a, b])).ok_or_else(|| file.wrong_field(field, format!("item {i} is `{merge}`, expected two tokens")))
    };
    merges.iter().enumerate().map(pair).collect()
}

fn byte_level(use_regex: bool) -> Json {
    json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": use_regex})
}

/// The pre-tokenizer that llama.cpp calls `pre`.
fn pieces(file: &GgufFile, pre: &str) -> Result<Json> {
    let then_bytes = |first: Json, use_regex| json!({"type": "Sequence", "pretokenizers": [first, byte_level(use_regex)]});
    let split = |regex: &str| {
        let split = json!({"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": false});
        then_bytes(split, false)
    };
    Ok(match pre {
        "gpt-2" | "phi-2" | "olmo" | "jais" | "gigachat" => byte_level(true),
        "smollm" | "starcoder" | "refact" | "command-r" | "codeshell" => {
            then_bytes(json!({"type": "Digits", "individual_digits": true}), true)
        }
        "llama-bpe" | "llama3" | "llama-v3" | "dbrx" | "smaug-bpe" => split(LLAMA_3),
        "qwen2" | "stablelm2" | "megrez" | "deepseek-r1-qwen" => split(QWEN_2),
        other => {
            return Err(file
                .wrong_field("tokenizer.ggml.pre", format!("`{other}` is not built in"))
                .help("pre-tokenizers that are read: gpt-2, smollm, starcoder, refact, command-r, llama-bpe, dbrx, qwen2 and their aliases; or give a directory with `tokenizer.json`"));
        }
    })
}
