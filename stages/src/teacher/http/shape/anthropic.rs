//! `/messages`: text only.

use serde_json::{Value, json};

use super::{Answer, Draw, finish};
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

pub fn answer(value: &Value) -> Result<Answer, String> {
    let parts = value["content"].as_array().ok_or("the answer has no `content`")?;
    let usage = &value["usage"];
    Ok(Answer {
        text: parts.iter().filter_map(|p| p["text"].as_str()).collect(),
        finish: finish(value["stop_reason"].as_str()),
        usage: usage["input_tokens"].as_u64().zip(usage["output_tokens"].as_u64()),
        id: value["id"].as_str().map(str::to_owned),
        ..Answer::default()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_joined() {
        let value = json!({"id": "m", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}],
            "stop_reason": "max_tokens", "usage": {"input_tokens": 2, "output_tokens": 3}});
        let a = answer(&value).expect("answer");
        assert_eq!((a.text.as_str(), a.finish.as_str(), a.usage), ("ab", "length", Some((2, 3))));
        assert!(answer(&json!({"type": "error"})).is_err());
    }
}
