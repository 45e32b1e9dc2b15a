//! Requests and answers in the shapes of the providers.

mod anthropic;
mod gemini;
mod openai;
mod scoring;

pub use scoring::{Scored, score_calls, score_of};

use serde_json::{Map, Value, json};

use super::preset::Shape;
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
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expect {
    /// A text.
    Text,
    /// A text with logprobs.
    Logprobs,
    /// JSON of another shape, which its reader checks.
    Json,
}

impl Call {
    /// Under which key the answer is kept.
    pub fn key(&self, spec: &Spec) -> AnswerKey {
        let parts = json!([spec.preset().name, spec.base_url, self.path, spec.model, self.body, self.sample]);
        AnswerKey(*blake3::hash(format!("flow-answer 1\n{}", flow_engine::key::canonical(&parts)).as_bytes()).as_bytes())
    }
    /// Where it goes.
    pub fn url(&self, spec: &Spec) -> String {
        match self.path.strip_prefix("//") {
            Some(path) => format!("{}/{path}", spec.base_url.strip_suffix("/v1").unwrap_or(&spec.base_url)),
            None => format!("{}{}", spec.base_url, self.path),
        }
    }
}

/// One token of an answer.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Step {
    /// Its bytes.
    pub bytes: Vec<u8>,
    /// Its id, where the teacher tells it.
    pub id: Option<i32>,
    /// Its logprob, where the teacher tells it.
    pub logprob: Option<f64>,
    /// Alternatives: bytes, id, logprob; as they came.
    pub top: Vec<(Vec<u8>, Option<i32>, f64)>,
}

/// An answer that can be used.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Answer {
    /// The text.
    pub text: String,
    /// Its tokens, where logprobs came.
    pub steps: Vec<Step>,
    /// `stop`, `length`, `content_filter`, or the provider's own word.
    pub finish: String,
    /// Tokens of prompt and answer, as billed.
    pub usage: Option<(u64, u64)>,
    /// The provider's name of this answer.
    pub id: Option<String>,
    /// Tokens a second of decoding, where the server measures it.
    pub decode_rate: Option<f64>,
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

/// The answer in a body, or what is wrong with it.
pub fn read(spec: &Spec, expect: Expect, body: &[u8]) -> Result<Answer, String> {
    let value: Value = serde_json::from_slice(body).map_err(|e| not_json(body, &e))?;
    if expect == Expect::Json {
        return Ok(Answer { usage: openai::usage(&value), ..Answer::default() });
    }
    let answer = match spec.preset().shape {
        Shape::OpenAi => openai::answer(&value)?,
        Shape::Anthropic => anthropic::answer(&value)?,
        Shape::Gemini => gemini::answer(&value)?,
    };
    if expect == Expect::Logprobs {
        whole(&answer)?;
    }
    Ok(answer)
}

/// Refuses an answer whose logprobs are missing, or cover only part of the text.
fn whole(answer: &Answer) -> Result<(), String> {
    if answer.text.is_empty() || answer.finish == "content_filter" {
        return Ok(());
    }
    if answer.steps.is_empty() {
        return Err(NO_LOGPROBS.into());
    }
    if let Some(n) = answer.steps.iter().position(|s| s.logprob.is_none() && s.top.is_empty()) {
        return Err(format!("no logprob came for token {n}"));
    }
    let covered: usize = answer.steps.iter().map(|s| s.bytes.len()).sum();
    if covered < answer.text.trim().len() {
        return Err(format!("logprobs came for {covered} of {} bytes", answer.text.len()));
    }
    Ok(())
}

fn not_json(body: &[u8], error: &serde_json::Error) -> String {
    let start = String::from_utf8_lossy(&body[..body.len().min(200)]).trim_start().to_lowercase();
    if start.starts_with("<!doctype") || start.starts_with("<html") || start.starts_with('<') {
        return "HTML came instead of JSON".into();
    }
    match error.classify() {
        serde_json::error::Category::Eof => format!("the JSON ends after {} bytes", body.len()),
        _ => format!("no JSON came: {error}"),
    }
}

/// The message in an error's body, shortened.
pub fn error_message(body: &[u8]) -> String {
    let text = String::from_utf8_lossy(body);
    let found = serde_json::from_slice::<Value>(body).ok().and_then(|v| {
        let v = if v.is_array() { v[0].clone() } else { v };
        let error = &v["error"];
        error["message"].as_str().or(error.as_str()).or(v["message"].as_str()).or(v["detail"].as_str()).map(str::to_owned)
    });
    let mut message = found.unwrap_or_else(|| text.split_whitespace().collect::<Vec<_>>().join(" "));
    if let Some((end, _)) = message.char_indices().nth(300) {
        message.truncate(end);
        message.push('…');
    }
    message
}

/// Bytes of a token: the list where it is given, else the text, in which a provider may write `bytes:\xe2\x80`.
fn token_bytes(text: Option<&str>, bytes: &Value) -> Vec<u8> {
    if let Some(list) = bytes.as_array() {
        return list.iter().filter_map(|b| b.as_u64().and_then(|b| u8::try_from(b).ok())).collect();
    }
    let text = text.unwrap_or_default();
    let Some(escaped) = text.strip_prefix("bytes:").filter(|e| e.contains("\\x")) else { return text.as_bytes().to_vec() };
    let mut out = Vec::new();
    let mut rest = escaped;
    while !rest.is_empty() {
        if let Some(byte) = rest.strip_prefix("\\x").and_then(|hex| hex.get(..2)).and_then(|hex| u8::from_str_radix(hex, 16).ok()) {
            out.push(byte);
            rest = &rest[4..];
        } else {
            let end = rest.char_indices().nth(1).map_or(rest.len(), |(i, _)| i);
            out.extend_from_slice(&rest.as_bytes()[..end]);
            rest = &rest[end..];
        }
    }
    out
}

/// The common word for why an answer ended.
fn finish(word: Option<&str>) -> String {
    match word.unwrap_or("stop").to_ascii_lowercase().as_str() {
        "stop" | "eos" | "end_turn" | "stop_sequence" | "completed" => "stop".into(),
        "length" | "max_tokens" => "length".into(),
        "content_filter" | "safety" | "recitation" | "refusal" | "prohibited_content" | "blocklist" | "spii" => "content_filter".into(),
        other => other.into(),
    }
}
