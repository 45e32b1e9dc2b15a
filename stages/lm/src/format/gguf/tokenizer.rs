//! A `tokenizer.json` out of the tokenizer keys of a GGUF file.
//!
//! `tokenizer.ggml.model` is `gpt2` (byte-level BPE, whose pieces `tokenizer.ggml.pre` names) or `llama`
//! (SentencePiece BPE, whose merges follow from the pieces and their scores).

use serde_json::{Value as Json, json};

use super::pieces::{self, Pieces, byte_level};
use super::read::GgufFile;
use super::vocabulary::Vocabulary;
use super::write::Value;
use crate::error::Result;

/// Content of a `tokenizer.json` that encodes as the file's own tokenizer does.
pub fn json(file: &GgufFile) -> Result<Json> {
    let vocabulary = Vocabulary::read(file)?;
    let model = file.text("tokenizer.ggml.model")?.unwrap_or_default();
    let (model, normalizer, pre_tokenizer, decoder) = match model {
        "gpt2" => {
            let pieces = pieces(file)?;
            let model = bpe(&vocabulary, merges(file)?, pieces.ignore_merges);
            // No normalizer: llama.cpp has none, Qwen's own NFC included.
            (model, Json::Null, pieces.json(), byte_level(true))
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

/// How llama.cpp cuts the texts of this file.
fn pieces(file: &GgufFile) -> Result<&'static Pieces> {
    let key = "tokenizer.ggml.pre";
    let pre = file.text(key)?.filter(|pre| !pre.is_empty()).ok_or_else(|| {
        // llama.cpp goes on with `default`, by which no published model was trained.
        file.missing_field(key).help(
            "the file does not say how its texts are cut into pieces: it was converted before that was written down. Convert the \
             model anew, or give a directory with `tokenizer.json`",
        )
    })?;
    pieces::named(pre).ok_or_else(|| {
        file.wrong_field(key, format!("`{pre}` is not built in"))
            .help(format!("pre-tokenizers that are read: {}; or give a directory with `tokenizer.json`", pieces::names()))
    })
}
