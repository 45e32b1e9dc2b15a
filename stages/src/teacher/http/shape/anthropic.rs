//! `/messages`: text only.

use serde_json::{Value, json};

use super::answer::{Failure, Raw, ended};
use super::call::Draw;
use crate::teacher::http::spec::Spec;

pub fn request(spec: &Spec, prompt: &str, draw: &Draw) -> (String, Value) {
    let mut body = json!({"model": spec.model, "max_tokens": draw.max_tokens, "messages": [{"role": "user", "content": prompt}]});
    if let Some(system) = &spec.system {
        body["system"] = system.as_str().into();
    }
    // Newer models take temperature or top_p, not both.
    body["temperature"] = json!(draw.temperature.min(1.0));
    if !draw.stop.is_empty() {
        body["stop_sequences"] = json!(draw.stop);
    }
    ("/messages".into(), body)
}

pub fn answer(value: &Value) -> Result<Raw, Failure> {
    let parts = value["content"].as_array().ok_or_else(|| Failure::said("the answer has no `content`"))?;
    let usage = &value["usage"];
    let is = |kind: &str| parts.iter().any(|p| p["type"] == kind);
    let mut raw = Raw {
        text: Some(parts.iter().filter_map(|p| p["text"].as_str()).collect()),
        reasoning: is("thinking") || is("redacted_thinking"),
        instead: is("tool_use").then_some("a tool's call"),
        usage: usage["input_tokens"].as_u64().zip(usage["output_tokens"].as_u64()),
        id: value["id"].as_str().map(str::to_owned),
        ..Raw::default()
    };
    ended(&mut raw, value["stop_reason"].as_str());
    Ok(raw)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::teacher::http::shape::Finish;

    #[test]
    fn texts_are_joined_and_thoughts_are_none() {
        let value = json!({"id": "m", "content": [{"type": "thinking", "thinking": "hm"}, {"type": "text", "text": "a"}, {"type": "text", "text": "b"}],
            "stop_reason": "max_tokens", "usage": {"input_tokens": 2, "output_tokens": 3}});
        let a = answer(&value).expect("answer");
        assert_eq!((a.text.as_deref(), a.finish, a.usage, a.reasoning), (Some("ab"), Finish::Length, Some((2, 3)), true));
        assert!(answer(&json!({"type": "message"})).is_err());
    }
}
