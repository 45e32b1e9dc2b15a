//! SentencePiece BPE (`tokenizer.ggml.model` = `llama`) as a BPE with byte fallback.
//!
//! SentencePiece merges the neighbours whose concatenation is the piece with the best score. As ranked merges: every way
//! to cut a piece into two pieces, ranked by the score of the whole.

use std::collections::{HashMap, HashSet};

use serde_json::{Value as Json, json};

use super::read::GgufFile;
use super::vocabulary::Vocabulary;
use super::write::Value;
use crate::error::Result;

const SPACE: &str = "\u{2581}";

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
    let mut ranked: Vec<(f32, Cut)> = cuts(tokens).map(|cut| (scores[cut.whole], cut)).collect();
    ranked.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
    ranked.iter().map(|(_, cut)| json!([tokens[cut.left], tokens[cut.right]])).collect()
}

/// Ids of a token and of two tokens that make it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Cut {
    whole: usize,
    left: usize,
    right: usize,
}

/// Every way to cut a token into two.
fn cuts(tokens: &[String]) -> impl Iterator<Item = Cut> {
    let ids: HashMap<&str, usize> = tokens.iter().enumerate().map(|(id, t)| (t.as_str(), id)).collect();
    tokens.iter().enumerate().flat_map(move |(whole, token)| {
        let halves = token.char_indices().skip(1).map(|(cut, _)| (ids.get(&token[..cut]), ids.get(&token[cut..])));
        let found = halves.filter_map(|(left, right)| Some(Cut { whole, left: *left?, right: *right? }));
        found.collect::<Vec<_>>()
    })
}

/// Whether a token stands for a byte.
pub(super) fn is_byte(name: &str) -> bool {
    let digits = name.strip_prefix("<0x").and_then(|n| n.strip_suffix('>'));
    digits.is_some_and(|d| d.len() == 2 && d.bytes().all(|b| b.is_ascii_digit() || (b'A'..=b'F').contains(&b)))
}

/// Whether a `tokenizer.json` puts a space before every text, as llama.cpp does or does not by `add_space_prefix`.
/// `Metaspace` does so in other places (`first`: not after a special token; `always`: not where a space stands).
pub(super) fn adds_space(json: &Json) -> Result<bool, String> {
    let never = |p: &Json| p["type"] == "Metaspace" && p["prepend_scheme"] == "never" && p["split"] == false;
    match &json["pre_tokenizer"] {
        Json::Null => {}
        pre if never(pre) && json["normalizer"].is_null() && pre["replacement"] == SPACE => return Ok(false),
        pre => {
            return Err(format!("its pre-tokenizer `{}` adds spaces where llama.cpp does not", pre["type"].as_str().unwrap_or_default()));
        }
    }
    let normalizer = &json["normalizer"];
    let steps = normalizer["normalizers"].as_array().map_or(std::slice::from_ref(normalizer), Vec::as_slice);
    let replaces = |n: &Json| n["type"] == "Replace" && n["pattern"]["String"] == " " && n["content"] == SPACE;
    let prepends = |n: &Json| n["type"] == "Prepend" && n["prepend"] == SPACE;
    match steps {
        [space] if replaces(space) => Ok(false),
        [prefix, space] if prepends(prefix) && replaces(space) => Ok(true),
        _ => Err("its normalizer is not SentencePiece's (`▁` for a space, and one before a text)".into()),
    }
}

/// Scores that rank the merges of a `tokenizer.json` as it does: there must be a merge for every way to cut a token, those
/// of one token together. Merges of added tokens count for nothing, such a token is found before a text is cut.
pub(super) fn scores(json: &Json, tokens: &[String], pairs: &[(String, String)]) -> Result<Vec<f32>, String> {
    if let Some(byte) = (0..=255u8).map(|b| format!("<0x{b:02X}>")).find(|name| !tokens.contains(name)) {
        return Err(format!("it has no token `{byte}`"));
    }
    let added: HashSet<&str> = json["added_tokens"].as_array().into_iter().flatten().filter_map(|t| t["content"].as_str()).collect();
    let ids: HashMap<&str, usize> = tokens.iter().enumerate().map(|(id, t)| (t.as_str(), id)).collect();
    let (mut scores, mut last, mut rank, mut count) = (vec![f32::NAN; tokens.len()], None, 0u32, 0);
    for (left, right) in pairs {
        let name = format!("{left}{right}");
        let Some(id) = ids.get(name.as_str()).copied().filter(|_| !added.contains(name.as_str())) else { continue };
        count += 1;
        if last == Some(id) {
            continue;
        }
        if !scores[id].is_nan() {
            return Err(format!("its merges are not ranked by token: those of `{name}` stand apart"));
        }
        (scores[id], last, rank) = (-(rank as f32), Some(id), rank + 1);
    }
    let wanted = cuts(tokens).filter(|cut| !added.contains(tokens[cut.whole].as_str())).count();
    if count != wanted {
        return Err(format!("it has {count} merges, SentencePiece would have {wanted} for its tokens"));
    }
    // Single characters, bytes and control tokens: nothing merges into them.
    Ok(scores.into_iter().map(|s| if s.is_nan() { -(rank as f32) } else { s }).collect())
}
