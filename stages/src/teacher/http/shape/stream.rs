//! A server that streams although it was asked not to: the events of `text/event-stream` become the one object that it
//! would have sent.

use serde_json::{Map, Value, json};

use super::json::parse;

/// Whether a body is a stream of events; JSON begins with none of these.
pub fn is_stream(body: &[u8]) -> bool {
    let start = body.trim_ascii_start();
    [&b"data:"[..], b"event:", b"id:", b"retry:", b":"].iter().any(|field| start.starts_with(field))
}

/// The object that the events add up to.
pub fn joined(body: &[u8]) -> Result<Value, String> {
    let mut whole = Value::Null;
    let mut ended = false;
    for data in events(&String::from_utf8_lossy(body)) {
        if data.trim() == "[DONE]" {
            ended = true;
            break;
        }
        let event = parse(data.as_bytes()).map_err(|e| format!("an event of the stream is no JSON: {e}"))?;
        ended |= add(&mut whole, event);
    }
    if whole["error"].is_null() && !ended {
        return Err("the stream ends before its answer does".into());
    }
    Ok(whole)
}

/// The `data` of every event; lines of one event are joined.
fn events(text: &str) -> Vec<String> {
    let mut all = Vec::new();
    let mut data: Vec<&str> = Vec::new();
    for line in text.lines().chain([""]) {
        if line.is_empty() {
            if !data.is_empty() {
                all.push(data.join("\n"));
                data.clear();
            }
        } else if let Some(value) = line.strip_prefix("data:") {
            data.push(value.strip_prefix(' ').unwrap_or(value));
        }
    }
    all
}

/// Adds an event; whether the answer ends with it.
fn add(whole: &mut Value, event: Value) -> bool {
    if !event["error"].is_null() {
        *whole = json!({"error": event["error"]});
        return true;
    }
    match event["type"].as_str() {
        Some(kind) if event.get("choices").is_none() => anthropic(whole, kind, &event),
        _ => openai(whole, event),
    }
}

/// `chat.completion.chunk` and its like: texts and lists of the first choice grow, everything else is the last that came.
fn openai(whole: &mut Value, mut event: Value) -> bool {
    let choices = event.get_mut("choices").and_then(Value::as_array_mut);
    let choice = choices.filter(|c| !c.is_empty()).map(|c| c.swap_remove(0));
    if !whole["choices"].is_array() {
        *whole = json!({"choices": [{}]});
    }
    if let (Value::Object(to), Value::Object(from)) = (&mut *whole, event) {
        to.extend(from.into_iter().filter(|(key, value)| key != "choices" && !value.is_null()));
    }
    let Some(Value::Object(mut choice)) = choice else { return false };
    if let Some(delta) = choice.remove("delta") {
        choice.insert("message".into(), delta);
    }
    grow(&mut whole["choices"][0], Value::Object(choice), "");
    !whole["choices"][0]["finish_reason"].is_null()
}

/// Fields whose pieces follow one another.
const GROWS: [&str; 5] = ["content", "text", "reasoning_content", "reasoning", "refusal"];

fn grow(to: &mut Value, from: Value, field: &str) {
    match (&mut *to, from) {
        (_, Value::Null) => {}
        (Value::Object(to), Value::Object(from)) => {
            for (key, value) in from {
                let slot = to.entry(key.as_str()).or_insert(Value::Null);
                grow(slot, value, &key);
            }
        }
        (Value::Array(to), Value::Array(from)) => to.extend(from),
        (Value::String(to), Value::String(from)) if GROWS.contains(&field) => to.push_str(&from),
        (to, Value::Object(from)) => {
            *to = Value::Object(Map::new());
            grow(to, Value::Object(from), field);
        }
        (to, from) => *to = from,
    }
}

/// `message_start`, `content_block_delta`, `message_delta`, `message_stop`.
fn anthropic(whole: &mut Value, kind: &str, event: &Value) -> bool {
    match kind {
        "message_start" => {
            let message = &event["message"];
            *whole = json!({"id": message["id"], "content": [], "stop_reason": null, "usage": {"input_tokens": message["usage"]["input_tokens"]}});
        }
        "content_block_delta" if event["delta"]["type"] == "text_delta" => {
            if let Some(blocks) = whole.get_mut("content").and_then(Value::as_array_mut) {
                blocks.push(json!({"type": "text", "text": event["delta"]["text"]}));
            }
        }
        "message_delta" => {
            if let Value::Object(whole) = whole {
                whole.insert("stop_reason".into(), event["delta"]["stop_reason"].clone());
            }
            if let Some(Value::Object(usage)) = whole.get_mut("usage") {
                usage.insert("output_tokens".into(), event["usage"]["output_tokens"].clone());
            }
        }
        "message_stop" => return true,
        _ => {}
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn deltas_become_the_message() {
        let body = b": OPENROUTER PROCESSING\n\nevent: x\ndata: {\"id\": \"a\", \"choices\": [{\"delta\": {\"role\": \"assistant\", \"content\": \"Hi\"}, \"logprobs\": {\"content\": [1]}, \"finish_reason\": null}]}\n\ndata: {\"choices\": [{\"delta\": {\"content\": \" you\", \"reasoning\": \"r\"}, \"logprobs\": {\"content\": [2, 3]}, \"finish_reason\": \"stop\"}]}\n\ndata: {\"choices\": [], \"usage\": {\"prompt_tokens\": 1}}\n\ndata: [DONE]\n\n";
        assert!(is_stream(body) && !is_stream(b" {\"data\": 1}"));
        let whole = joined(body).expect("an answer");
        let choice = &whole["choices"][0];
        assert_eq!((&whole["id"], &whole["usage"]["prompt_tokens"]), (&json!("a"), &json!(1)));
        assert_eq!(choice["message"], json!({"role": "assistant", "content": "Hi you", "reasoning": "r"}));
        assert_eq!((&choice["logprobs"]["content"], &choice["finish_reason"]), (&json!([1, 2, 3]), &json!("stop")));
        let blocks = "event: message_start\ndata: {\"type\": \"message_start\", \"message\": {\"id\": \"m\", \"content\": [], \"usage\": {\"input_tokens\": 2}}}\n\ndata: {\"type\": \"content_block_delta\", \"delta\": {\"type\": \"text_delta\", \"text\": \"a\"}}\n\ndata: {\"type\": \"message_delta\", \"delta\": {\"stop_reason\": \"end_turn\"}, \"usage\": {\"output_tokens\": 1}}\n\ndata: {\"type\": \"message_stop\"}\n\n";
        let whole = joined(blocks.as_bytes()).expect("an answer");
        assert_eq!((&whole["content"][0]["text"], &whole["usage"]["output_tokens"]), (&json!("a"), &json!(1)));
    }

    #[test]
    fn a_stream_that_breaks_off_or_fails_is_none() {
        let cut = b"data: {\"choices\": [{\"delta\": {\"content\": \"Hi\"}}]}\n\n";
        assert!(joined(cut).expect_err("cut").contains("ends before"));
        assert!(joined(b"data: {\"choices\": [{\"del").expect_err("cut").contains("no JSON"));
        let failed = joined(b"data: {\"error\": {\"message\": \"overloaded\"}}\n\n").expect("an error is told as one");
        assert_eq!(failed["error"]["message"], "overloaded");
    }
}
