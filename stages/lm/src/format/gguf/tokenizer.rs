//! A `tokenizer.json` out of the tokenizer keys of a GGUF file.
//!
//! `tokenizer.ggml.model` is `gpt2` (byte-level BPE, whose pieces `tokenizer.ggml.pre` names) or `llama`
//! (SentencePiece BPE, whose merges follow from the pieces and their scores).

use flow_engine::plugin::StageError;
use serde_json::{Value as Json, json};

use super::read::GgufFile;
use super::write::Value;

/// `tokenizer.ggml.token_type`.
const UNKNOWN: i32 = 2;
const CONTROL: i32 = 3;
const USER_DEFINED: i32 = 4;
const UNUSED: i32 = 5;

/// GPT-2's pieces, which the byte-level pre-tokenizer of the `tokenizers` crate has built in, are not spelled out here.
const LLAMA_3: &str =
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const QWEN_2: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// Content of a `tokenizer.json` that encodes as the file's own tokenizer does.
pub fn json(file: &GgufFile) -> Result<Json, StageError> {
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
                .error(format!("field `tokenizer.ggml.model`: `{other}` is not built in"))
                .help("tokenizers that are read: gpt2 (byte-level BPE), llama (SentencePiece BPE)"));
        }
    };
    Ok(json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": vocabulary.added(), "normalizer": normalizer,
        "pre_tokenizer": pre_tokenizer, "post_processor": null, "decoder": decoder, "model": model,
    }))
}

/// Tokens and their types, in id order.
pub(super) struct Vocabulary<'a> {
    pub tokens: &'a [String],
    types: &'a [i32],
}

impl<'a> Vocabulary<'a> {
    fn read(file: &'a GgufFile) -> Result<Self, StageError> {
        let field = "tokenizer.ggml.tokens";
        let Some(Value::Texts(tokens)) = file.keys.get(field) else {
            return Err(file.error(format!("field `{field}` is missing")).help("the file holds no tokenizer"));
        };
        let field = "tokenizer.ggml.token_type";
        let types: &[i32] = match file.keys.get(field) {
            Some(Value::I32s(types)) => types,
            _ => &[],
        };
        if !types.is_empty() && types.len() != tokens.len() {
            return Err(file.error(format!("field `{field}`: {} types of {} tokens", types.len(), tokens.len())));
        }
        Ok(Self { tokens, types })
    }

    fn ty(&self, id: usize) -> i32 {
        self.types.get(id).copied().unwrap_or(1)
    }

    /// Tokens that are matched in a text before it is cut into pieces.
    fn added(&self) -> Vec<Json> {
        let of = |(id, token): (usize, &String)| {
            let ty = self.ty(id);
            [UNKNOWN, CONTROL, USER_DEFINED].contains(&ty).then(|| {
                json!({"id": id, "content": token, "single_word": false, "lstrip": false, "rstrip": false, "normalized": false,
                       "special": ty != USER_DEFINED})
            })
        };
        self.tokens.iter().enumerate().filter_map(of).collect()
    }

    /// Token → id. Unused ids stay in it: a model may have more ids than its text reaches. Of two equal tokens the
    /// first counts.
    pub fn ids(&self) -> serde_json::Map<String, Json> {
        let mut ids = serde_json::Map::new();
        for (id, token) in self.tokens.iter().enumerate() {
            let name = if self.ty(id) == UNUSED && ids.contains_key(token) { format!("{token}#{id}") } else { token.clone() };
            ids.entry(name).or_insert_with(|| id.into());
        }
        ids
    }
}

fn bpe(vocabulary: &Vocabulary<'_>, merges: Vec<Json>, ignore_merges: bool) -> Json {
    json!({
        "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null, "end_of_word_suffix": null,
        "fuse_unk": false, "byte_fallback": false, "ignore_merges": ignore_merges, "vocab": vocabulary.ids(), "merges": merges,
    })
}

fn merges(file: &GgufFile) -> Result<Vec<Json>, StageError> {
    let field = "tokenizer.ggml.merges";
    let Some(Value::Texts(merges)) = file.keys.get(field) else {
        return Err(file.error(format!("field `{field}` is missing")).help("a gpt2 tokenizer needs its merges"));
    };
    let pair = |(i, merge): (usize, &String)| {
        let cut = merge.split_once(' ').filter(|(a, b)| !a.is_empty() && !b.is_empty() && !b.contains(' '));
        cut.map(|(a, b)| json!([a, b])).ok_or_else(|| file.error(format!("field `{field}`: item {i} is `{merge}`, expected two tokens")))
    };
    merges.iter().enumerate().map(pair).collect()
}

fn byte_level(use_regex: bool) -> Json {
    json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": use_regex})
}

/// The pre-tokenizer that llama.cpp calls `pre`.
fn pieces(file: &GgufFile, pre: &str) -> Result<Json, StageError> {
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
                .error(format!("field `tokenizer.ggml.pre`: `{other}` is not built in"))
                .help("pre-tokenizers that are read: gpt-2, smollm, starcoder, refact, command-r, llama-bpe, dbrx, qwen2 and their aliases; or give a directory with `tokenizer.json`"));
        }
    })
}
