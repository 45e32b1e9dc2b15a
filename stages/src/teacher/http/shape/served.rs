//! A model that `flow serve` serves: its own tokens go in and come back, and tails are exact.

use flow_lm::TokenId;
use flow_lm::infer::{Continuation, TopK};
use flow_lm::tokenizer::{Roles, Tokenizer};
use serde::Deserialize;
use serde_json::{Value, json};

use super::answer::Failure;
use super::call::{Call, Expect, Served};
use crate::teacher::http::spec::Spec;

/// What a student needs to know of a served model.
#[derive(Clone, Debug, Deserialize)]
pub struct Model {
    /// Version of this form.
    pub flow: u32,
    /// The content of its `tokenizer.json`.
    pub tokenizer: String,
    /// Its tokens' roles.
    pub roles: Roles,
    /// Its chat template.
    pub chat_template: Option<String>,
    /// Tokens that it has.
    pub vocab: usize,
    /// Tokens of a window; none where it does not score.
    pub window: Option<usize>,
    /// Candidates of a row, at most.
    pub candidates: usize,
}

/// The form of [`Model`] that is read.
const FORM: u32 = 1;

impl Model {
    /// Its tokenizer.
    pub fn tokenizer(&self) -> Result<Tokenizer, String> {
        Ok(Tokenizer::from_bytes(self.tokenizer.as_bytes())?.with_roles(&self.roles))
    }
}

fn served(spec: &Spec, path: &str, mut body: Value, expect: Served, most: (usize, usize)) -> Call {
    if let Value::Object(fields) = &mut body {
        fields.extend(spec.body.clone());
    }
    Call { path: path.into(), body, sample: 0, expect: Expect::Served(expect), most: (most.0 as u64, most.1 as u64) }
}

/// Asks what the model is.
pub fn model_call(spec: &Spec) -> Call {
    served(spec, "//flow/model", json!({"model": spec.model}), Served::Model, (0, 0))
}

/// How continuations are drawn.
#[derive(Clone, Copy, Debug)]
pub struct Drawing<'a> {
    /// Digest of the tokenizer whose ids are sent.
    pub tokenizer: &'a str,
    /// Temperature.
    pub temperature: f64,
    /// Nucleus.
    pub top_p: f64,
    /// Seed of all draws.
    pub seed: u64,
}

/// Asks for the draw of this number.
pub fn draw_call(spec: &Spec, prompt: &[TokenId], draw: usize, how: &Drawing<'_>, most: usize) -> Call {
    let body = json!({"model": spec.model, "prompt": ids(prompt), "max_tokens": most, "temperature": how.temperature, "top_p": how.top_p,
        "seed": how.seed, "return_token_ids": true, "flow": {"draw": draw, "tokenizer": how.tokenizer}});
    served(spec, "/completions", body, Served::Ids, (prompt.len(), most))
}

/// Asks for the rows of all tokens but the first.
pub fn rows_call(spec: &Spec, tokens: &[TokenId], (top_k, taus): (usize, &[f32]), tokenizer: &str) -> Call {
    let body = json!({"model": spec.model, "prompt": ids(tokens), "max_tokens": 0, "temperature": 0.0, "echo": true, "logprobs": top_k,
        "flow": {"taus": taus, "tokenizer": tokenizer}});
    served(spec, "/completions", body, Served::Rows(tokens.len() - 1, top_k, 1 + taus.len()), (tokens.len(), 0))
}

fn ids(tokens: &[TokenId]) -> Value {
    tokens.iter().map(|id| id.0).collect()
}

/// What came, if it is what was asked for.
pub(super) fn read(expect: Served, value: Value) -> Result<Value, Failure> {
    let whole = match expect {
        Served::Model => value["flow"] == FORM && model(&value).is_ok(),
        Served::Ids => value["choices"][0]["token_ids"].is_array() && value["choices"][0]["finish_reason"].is_string(),
        Served::Rows(n, k, width) => rows(&value, (n, k, width)).is_some(),
    };
    if whole { Ok(value) } else { Err(Failure::bare("what came is not what `flow serve` answers: is the server one of this version?")) }
}

/// What the model is.
pub fn model(value: &Value) -> Result<Model, String> {
    Model::deserialize(value).map_err(|e| e.to_string())
}

/// A continuation.
pub fn continuation(value: &Value) -> Continuation {
    let choice = &value["choices"][0];
    let tokens = choice["token_ids"].as_array().into_iter().flatten().filter_map(Value::as_u64).map(|id| TokenId(id as u32)).collect();
    Continuation { tokens, stopped: choice["finish_reason"] == "stop" }
}

/// Rows of candidates, and the figures of the tails; nothing where they are not as many as were asked for.
pub fn rows(value: &Value, (rows, k, width): (usize, usize, usize)) -> Option<TopK> {
    let told = &value["choices"][0]["flow"];
    let ids = told["ids"].as_array()?.iter().map(|v| v.as_u64().map(|id| TokenId(id as u32))).collect::<Option<Vec<_>>>()?;
    // JSON has no infinity: a tail without mass.
    let numbers = |v: &Value| Some(v.as_array()?.iter().map(|x| x.as_f64().map_or(f32::NEG_INFINITY, |x| x as f32)).collect::<Vec<_>>());
    let top = TopK { ids, logprobs: numbers(&told["logprobs"])?, other: numbers(&told["other"])? };
    (top.ids.len() == rows * k && top.logprobs.len() == rows * k && top.other.len() == rows * width).then_some(top)
}
