//! The request for an answer to a prompt, in a provider's shape.

use serde_json::{Map, Value};

use super::answer::shortened;
use super::call::{Call, Draw, Expect};
use super::{anthropic, gemini, json, openai};
use crate::teacher::http::preset::Shape;
use crate::teacher::http::spec::Spec;

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
