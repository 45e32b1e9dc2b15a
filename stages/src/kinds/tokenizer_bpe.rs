//! `tokenizer.bpe`: a byte-level BPE learned from a text.

use flow_engine::plugin::{InputPort, OutputPort, ParamError, Stage, StageError, TaskContext};
use flow_lm::error::TokenizerError;
use flow_lm::tokenizer::train;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Parameters of `tokenizer.bpe`.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct BpeParams {
    /// Number of tokens, special tokens and the 256 bytes included; the text must allow as many.
    pub vocab_size: usize,
    /// Special tokens, in id order. The first begins and ends a text unless `<|bos|>` and `<|eos|>` are among them.
    pub specials: Vec<String>,
    /// Pairs seen less often than this are not merged.
    pub min_frequency: u64,
}

impl Default for BpeParams {
    fn default() -> Self {
        Self { vocab_size: 4096, specials: vec!["<|endoftext|>".into(), "<|pad|>".into()], min_frequency: 2 }
    }
}

/// `tokenizer.bpe`.
pub struct BpeStage;

impl Stage for BpeStage {
    type Params = BpeParams;
    const KIND: &'static str = "tokenizer.bpe";
    const REVISION: u32 = 1;
    const SUMMARY: &'static str = "Trains a byte-level BPE tokenizer on a text.";

    fn inputs(&self) -> Vec<InputPort> {
        vec![InputPort::required("text", &["Text"], "The text to learn merges from.")]
    }
    fn outputs(&self) -> Vec<OutputPort> {
        vec![OutputPort::pure("tokenizer", "Tokenizer", "A `tokenizer.json`.")]
    }
    fn check(&self, p: &BpeParams) -> Result<Vec<String>, ParamError> {
        let wrong = |path: &str, message: String, help: &str| Err(ParamError { path: path.into(), message, help: Some(help.into()) });
        if p.specials.is_empty() {
            return wrong("specials", "needs at least one special token to begin and end a text".into(), "leave it out for the default");
        }
        if let Some(bad) = p.specials.iter().enumerate().find(|(i, s)| s.is_empty() || p.specials[..*i].contains(s)) {
            return wrong("specials", format!("`{}` is empty or given twice", bad.1), "name each special token once");
        }
        let least = 256 + p.specials.len();
        if p.vocab_size < least {
            return wrong("vocab_size", format!("{} is below {least}, the bytes and the special tokens", p.vocab_size), "raise it");
        }
        Ok(Vec::new())
    }
    fn run(&self, p: BpeParams, ctx: &TaskContext) -> Result<(), StageError> {
        let path = ctx.input("text")?;
        let text = crate::data::read_text(path)?;
        let json = train(&text, p.vocab_size, &p.specials, p.min_frequency).map_err(|e| match e {
            TokenizerError::TooFewPairs { reachable, .. } => StageError::new(format!(
                "vocab_size: {} tokens were asked for, but {} allows at most {reachable} (pairs seen {} times or more)",
                p.vocab_size,
                path.display(),
                p.min_frequency
            ))
            .help(format!("set `vocab_size: {reachable}` or less, or give more text")),
            e => flow_lm::Error::from(e).into(),
        })?;
        let out = ctx.output("tokenizer")?;
        std::fs::write(out, json).map_err(|e| StageError::io("cannot write", out, &e))
    }
}
