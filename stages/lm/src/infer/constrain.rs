//! Answers that a grammar allows: a mask over the vocabulary at every step, by `llguidance`.

use std::sync::Arc;

use llguidance::api::{ParserLimits, TopLevelGrammar};
use llguidance::toktrie::{ApproximateTokEnv, InferenceCapabilities, TokRxInfo, TokTrie};
use llguidance::{Matcher, ParserFactory};
use serde_json::{Map, Value, json};

use super::gbnf::{self, MAX_BYTES, MAX_DEPTH};
use crate::error::{GrammarError, Result};
use crate::token::TokenId;
use crate::tokenizer::Tokenizer;

/// What an answer must be.
#[derive(Clone, Debug)]
pub enum Grammar {
    /// JSON that a JSON Schema accepts.
    Schema(Value),
    /// A JSON object.
    Object,
    /// A text of this grammar, as llama.cpp writes them.
    Gbnf(String),
}

/// The vocabulary, prepared for grammars: once a model.
pub struct Vocabulary {
    factory: ParserFactory,
    ends: Vec<TokenId>,
}

/// A grammar over a vocabulary and how much of an answer it has seen. Each answer takes a clone of the compiled one.
#[derive(Clone)]
pub struct Constraint {
    matcher: Matcher,
    ends: Vec<TokenId>,
    vocab: usize,
}

impl std::fmt::Debug for Constraint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Constraint").field("over", &self.is_over()).finish_non_exhaustive()
    }
}

impl Vocabulary {
    /// The tokens of a tokenizer, in a model of `vocab` of them.
    pub fn new(tokenizer: &Tokenizer, vocab: usize) -> Result<Self> {
        let words: Vec<Vec<u8>> = (0..vocab)
            .map(|id| {
                let id = TokenId(id as u32);
                // A control token is none of the text's, whatever its name spells.
                let mark = if tokenizer.is_special(id) { &[TokTrie::SPECIAL_TOKEN_MARKER][..] } else { &[] };
                [mark, tokenizer.token_bytes(id)].concat()
            })
            .collect();
        let info = TokRxInfo::new(vocab as u32, tokenizer.eos().0);
        let env = Arc::new(ApproximateTokEnv::new(TokTrie::from(&info, &words)));
        let capabilities = InferenceCapabilities::default();
        let slices = llguidance::earley::SlicedBiasComputer::general_slices();
        let mut factory = ParserFactory::new(&(env as _), capabilities, &slices).map_err(refused)?;
        factory.quiet();
        *factory.limits_mut() = limits();
        Ok(Self { factory, ends: tokenizer.ends().to_vec() })
    }

    /// Compiles a grammar; what would take too long or too much memory is refused.
    pub fn compile(&self, grammar: &Grammar) -> Result<Constraint> {
        let top = match grammar {
            Grammar::Schema(schema) => TopLevelGrammar::from_json_schema(bounded(schema)?),
            Grammar::Object => TopLevelGrammar::from_json_schema(with_style(&json!({"type": "object"}))),
            Grammar::Gbnf(text) => TopLevelGrammar::from_lark(gbnf::to_lark(text)?),
        };
        let mut matcher = Matcher::new(self.factory.create_parser(top));
        if let Some(why) = matcher.get_error() {
            return Err(GrammarError::Refused { why: first_line(&why) }.into());
        }
        // The first mask is the dearest one: what cannot be masked is refused before a slot is taken.
        let first = matcher.compute_mask_or_eos().map_err(refused)?;
        let vocab = self.factory.tok_env().tok_trie().vocab_size();
        if first.is_zero() {
            return Err(GrammarError::Refused { why: "no token of the model can begin it".into() }.into());
        }
        Ok(Constraint { matcher, ends: self.ends.clone(), vocab })
    }
}

impl Constraint {
    /// A copy that shares nothing with this one: what answers make of an automaton stays, and counts against its bounds.
    #[must_use]
    pub fn fresh(&self) -> Self {
        Self { matcher: self.matcher.deep_clone(), ends: self.ends.clone(), vocab: self.vocab }
    }

    /// Tokens that may come next, one bit each ([`super::Sampling::mask`]); where the answer may end, those that end it.
    pub fn mask(&mut self) -> Result<Vec<u32>> {
        let mask = self.matcher.compute_mask_or_eos().map_err(refused)?;
        let mut words = mask.as_slice().to_vec();
        words.truncate(self.vocab.div_ceil(32));
        let accepting = self.matcher.is_stopped() || self.matcher.is_accepting().map_err(refused)?;
        for id in &self.ends {
            let bit = 1 << (id.0 % 32);
            let word = &mut words[id.index() / 32];
            *word = if accepting { *word | bit } else { *word & !bit };
        }
        Ok(words)
    }

    /// Takes the token that was chosen, none of those that end an answer.
    pub fn take(&mut self, token: TokenId) -> Result<()> {
        self.matcher.consume_token(token.0).map_err(refused)
    }

    /// Takes tokens that stand before the answer and begin what it must be; `false` where they begin nothing of it: then none
    /// is taken.
    pub fn read(&mut self, tokens: &[TokenId]) -> bool {
        let words = TokenId::words(tokens);
        let fits = self.matcher.validate_tokens(words).is_ok_and(|n| n == words.len());
        fits && self.matcher.consume_tokens(words).is_ok()
    }

    /// Whether the answer is complete and nothing can follow.
    pub fn is_over(&self) -> bool {
        self.matcher.is_stopped()
    }

    /// Whether the answer may end here.
    pub fn may_end(&mut self) -> bool {
        self.is_over() || self.matcher.is_accepting().unwrap_or(false)
    }
}

/// By the figures that the compiler's authors give: about 20 ms to build the lexer, 14 ms a mask, and 100 MB of its states.
fn limits() -> ParserLimits {
    ParserLimits { max_lexer_states: 50_000, max_grammar_size: 100_000, verbose_errors: false, ..ParserLimits::default() }
}

fn refused(e: impl std::fmt::Display) -> crate::error::Error {
    GrammarError::Refused { why: first_line(&e.to_string()) }.into()
}

fn first_line(text: &str) -> String {
    text.lines().find(|l| !l.trim().is_empty()).unwrap_or("no reason is given").trim().to_owned()
}

fn bounded(schema: &Value) -> Result<Value> {
    let depth = depth(schema);
    if depth > MAX_DEPTH {
        return Err(GrammarError::Large { what: "its depth", found: depth, most: MAX_DEPTH }.into());
    }
    let bytes = schema.to_string().len();
    if bytes > MAX_BYTES {
        return Err(GrammarError::Large { what: "its bytes", found: bytes, most: MAX_BYTES }.into());
    }
    Ok(with_style(schema))
}

/// At most a space, or a line break and some indentation, between values: white space without an end is how small models answer
/// when they do not know.
fn with_style(schema: &Value) -> Value {
    let mut object = match schema {
        Value::Object(object) => object.clone(),
        // `true` and `false` are schemas too.
        other => Map::from_iter([("allOf".to_owned(), json!([other]))]),
    };
    object.entry("x-guidance").or_insert_with(|| json!({"whitespace_pattern": "( |\\n[ \\t]{0,12})?"}));
    Value::Object(object)
}

fn depth(value: &Value) -> usize {
    // By hand, not by recursion: what came over a network may be nested as deep as its reader allows.
    let (mut deepest, mut open) = (0, vec![(value, 1)]);
    while let Some((value, at)) = open.pop() {
        deepest = deepest.max(at);
        match value {
            Value::Array(all) => open.extend(all.iter().map(|v| (v, at + 1))),
            Value::Object(all) => open.extend(all.values().map(|v| (v, at + 1))),
            _ => {}
        }
    }
    deepest
}
