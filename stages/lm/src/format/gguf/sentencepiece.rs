//! SentencePiece BPE (`tokenizer.ggml.model` = `llama`) as a BPE with byte fallback.
//!
//! SentencePiece merges the neighbours whose concatenation is the piece with the best score. As ranked merges: every way
//! to cut a piece into two pieces, ranked by the score of the whole.

use std::collections::HashMap;

use serde_json::{Value as Json, json};

use super::read::GgufFile;
use super::vocabulary::Vocabulary;
use super::write::Value;
use crate::error::Result;

/// Model, normalizer and decoder of a `tokenizer.json`.
pub(super) fn parts(file: &GgufFile, vocabulary: &Vocabulary<'_>) -> Result<(Json, Json, Json)> {
    let field = "tokenizer.ggml.scores";
    let scores = match file.keys.get(field) {
        Some(Value::F32s(scores)) if scores.len() == vocabulary.tokens.len() => scores,
        _ => return Err(file.wrong_field(field, format!("expected a float32 for each of {} tokens", vocabulary.tokens.len()))),
    };
    let unknown = file.whole("tokenizer.ggml.unknown_token_id")?.and_then(|id| vocabulary.tokens.get(id));
    let model = json!({
        "type": "BPE", "dropout": null, "unk_token": unknown, "continuing_subword_prefix": null, "end_of_word_suffix": null,
        "fuse_unk": true, "byte_fallback": true, "ignore_merges": false, "vocab": vocabulary.ids(),
        "merges": merges(vocabulary.tokens, scores),
    });
    let space = json!({"type": "Replace", "pattern": {"String": " "}, "content": "\u{2581}"});
    let prefix = file.flag("tokenizer.ggml.add_space_prefix")?.unwrap_or(true);
    let normalizers = if prefix { vec![json!({"type": "Prepend", "prepend": "\u{2581}"}), space] } else { vec![space] };
    let normalizer = json!({"type": "Sequence", "normalizers": normalizers});
    let mut decoders = vec![
        json!({"type": "Replace", "pattern": {"String": "\u{2581}"}, "content": " "}),
        json!({"type": "ByteFallback"}),
        json!({"type": "Fuse"}),
    ];
    if prefix {
        decoders.push(json!({"type": "Strip", "content": " ", "start": 1, "stop": 0}));
    }
    Ok((model, normalizer, json!({"type": "Sequence", "decoders": decoders})))
}

fn merges(tokens: &[String], scores: &[f32]) -> Vec<Json> {
    let ids: HashMap<&str, usize> = tokens.iter().enumerate().map(|(id, t)| (t.as_str(), id)).collect();
    let mut ranked: Vec<(f32, usize, usize, usize)> = Vec::new();
    for (id, token) in tokens.iter().enumerate() {
        for (cut, _) in token.char_indices().skip(1) {
            if let (Some(left), Some(right)) = (ids.get(&token[..cut]), ids.get(&token[cut..])) {
                ranked.push((scores[id], id, *left, *right));
            }
        }
    }
    ranked.sort_by(|a, b| b.0.total_cmp(&a.0).then((a.1, a.2, a.3).cmp(&(b.1, b.2, b.3))));
    ranked.iter().map(|(_, _, left, right)| json!([tokens[*left], tokens[*right]])).collect()
}
