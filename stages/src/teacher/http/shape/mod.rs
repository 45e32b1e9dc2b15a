//! Requests and answers in the shapes of the providers.
//!
//! Reading order of what comes back: `json` and `stream` make an object of a body, `failure` finds the errors among
//! them, `openai`, `anthropic`, `gemini` and `scoring` read tokens out of it, `token` knows what a token's bytes may be,
//! `align` which of them the text allows, `decode` makes steps of that, and `reply` is the door: what passes it is true.

mod align;
mod anthropic;
mod decode;
mod failure;
mod gemini;
mod json;
mod openai;
mod reply;
mod scoring;
mod stream;
mod token;

pub use decode::Manner;
pub use reply::{Answer, Failed, Failure, Finish, Refusal, Refused, Reply, read};
pub use scoring::{Pieces, score_call};

use std::sync::Arc;

use serde_json::{Map, Value, json};

use super::preset::{Scoring, Shape};
use super::spec::Spec;
use crate::teacher::journal::AnswerKey;

/// What is wrong with an answer that has a text and no logprobs.
pub const NO_LOGPROBS: &str = "no logprobs came";

/// How an answer is drawn.
#[derive(Clone, Debug)]
pub struct Draw {
    /// Most tokens.
    pub max_tokens: usize,
    /// Temperature; 0 is greedy.
    pub temperature: f64,
    /// Nucleus.
    pub top_p: f64,
    /// Seed, where the provider takes one.
    pub seed: Option<u64>,
    /// Texts that end an answer.
    pub stop: Vec<String>,
    /// Whether logprobs are wanted.
    pub logprobs: bool,
}

/// One request.
#[derive(Clone, Debug)]
pub struct Call {
    /// After the base URL; with `//` before it, after the server's root.
    pub path: String,
    /// JSON.
    pub body: Value,
    /// Which sample of the same prompt.
    pub sample: i32,
    /// What is expected of the answer.
    pub expect: Expect,
    /// Most tokens that prompt and answer can have.
    pub most: (u64, u64),
}

/// What makes an answer whole.
#[derive(Clone, Debug, PartialEq)]
pub enum Expect {
    /// A text.
    Text,
    /// A text with logprobs.
    Logprobs,
    /// Logprobs, of whatever.
    Probe,
    /// The pieces of this text (`/tokenize`).
    Pieces(Arc<str>),
    /// The distributions of this text's tokens.
    Scored(Scoring, Arc<str>),
    /// The distribution that this token of a given text came from.
    Next(Step),
}

impl Call {
    /// Under which key the answer is kept.
    pub fn key(&self, spec: &Spec) -> AnswerKey {
        let parts = json!([spec.preset().name, spec.base_url, self.path, spec.model, self.body, self.sample]);
        AnswerKey(*blake3::hash(format!("flow-answer 1\n{}", flow_engine::key::canonical(&parts)).as_bytes()).as_bytes())
    }
    /// What is sent: the body, and what only says how the answer shall travel. That is in no key.
    pub fn sent(&self, spec: &Spec) -> Value {
        let mut body = self.body.clone();
        let generates = spec.preset().shape != Shape::Gemini && !matches!(self.expect, Expect::Pieces(_));
        if let Value::Object(fields) = &mut body
            && generates
        {
            // Some servers stream unless they are told not to.
            fields.insert("stream".into(), false.into());
        }
        body
    }
    /// Texts that end an answer.
    pub fn stops(&self) -> Vec<String> {
        let fields = [&self.body["stop"], &self.body["stop_sequences"], &self.body["generationConfig"]["stopSequences"]];
        let texts = |v: &Value| match v {
            Value::String(one) => vec![one.clone()],
            Value::Array(all) => all.iter().filter_map(|t| t.as_str().map(str::to_owned)).collect(),
            _ => Vec::new(),
        };
        fields.into_iter().flat_map(texts).collect()
    }
    /// Where it goes.
    pub fn url(&self, spec: &Spec) -> String {
        match self.path.strip_prefix("//") {
            Some(path) => format!("{}/{path}", spec.base_url.strip_suffix("/v1").unwrap_or(&spec.base_url)),
            None => format!("{}{}", spec.base_url, self.path),
        }
    }
}

/// One token of an answer or of a given text.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Step {
    /// Its bytes; none if it ended the answer.
    pub bytes: Vec<u8>,
    /// Its id, where the teacher tells it.
    pub id: Option<i32>,
    /// Its logprob, where the teacher tells it.
    pub logprob: Option<f64>,
    /// Alternatives that can be read: bytes (none for an end), id, logprob.
    pub top: Vec<(Vec<u8>, Option<i32>, f64)>,
}

/// The request for an answer to a prompt.
pub fn call(spec: &Spec, prompt: &str, sample: i32, draw: &Draw) -> Call {
    let preset = spec.preset();
    let (path, mut body) = match preset.shape {
        Shape::OpenAi => openai::request(spec, prompt, draw),
        Shape::Anthropic => anthropic::request(spec, prompt, draw),
        Shape::Gemini => gemini::request(spec, prompt, draw),
    };
    let fixed: Map<String, Value> = serde_json::from_str(preset.body).unwrap_or_default();
    merge(&mut body, &Value::Object(fixed));
    merge(&mut body, &Value::Object(spec.body.clone()));
    let wants = draw.logprobs && spec.ask_top_k > 0;
    // A token has at least one byte; a chat template adds a few.
    let prompt_most = (prompt.len() + spec.system.as_ref().map_or(0, String::len)) as u64 + 64;
    Call { path, body, sample, expect: if wants { Expect::Logprobs } else { Expect::Text }, most: (prompt_most, draw.max_tokens as u64) }
}

/// Writes `from` into `to`; objects are merged.
fn merge(to: &mut Value, from: &Value) {
    match (to, from) {
        (Value::Object(to), Value::Object(from)) => {
            for (key, value) in from {
                match to.get_mut(key) {
                    Some(slot) => merge(slot, value),
                    None => {
                        to.insert(key.clone(), value.clone());
                    }
                }
            }
        }
        (to, from) => *to = from.clone(),
    }
}

/// The message in an error's body, shortened; nothing where none is found.
pub fn error_message(body: &[u8]) -> Option<String> {
    let value = json::parse(body).ok()?;
    let value = if value.is_array() { &value[0] } else { &value };
    let error = &value["error"];
    let found = error["message"].as_str().or(error.as_str()).or(value["message"].as_str()).or(value["detail"].as_str());
    Some(shortened(found.map_or_else(|| value.to_string(), str::to_owned).as_str()))
}

/// A message, on one line and not too long.
fn shortened(message: &str) -> String {
    let mut text = message.split_whitespace().collect::<Vec<_>>().join(" ");
    if let Some((end, _)) = text.char_indices().nth(300) {
        text.truncate(end);
        text.push('…');
    }
    text
}

/// Writes down why an answer ended: the common word for it, or that it was not let through.
fn ended(raw: &mut reply::Raw, word: Option<&str>) {
    let word = word.unwrap_or_default();
    raw.finish = match word.to_ascii_lowercase().as_str() {
        "" | "null" | "unknown" | "finish_reason_unspecified" => Finish::Unknown,
        "stop" | "eos" | "eos_token" | "end_turn" | "stop_sequence" | "completed" => Finish::Stop,
        "length" | "max_tokens" | "max_output_tokens" | "model_length" | "model_context_window_exceeded" => Finish::Length,
        "content_filter" | "safety" | "recitation" | "refusal" | "prohibited_content" | "blocklist" | "spii" | "image_safety"
        | "sensitive" => {
            raw.filtered = Some(format!("the provider filtered it (`{word}`)"));
            Finish::Unknown
        }
        other => Finish::Other(other.into()),
    };
}
