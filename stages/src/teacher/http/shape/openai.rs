//! `/chat/completions` and `/completions`.

use serde_json::{Value, json};

use super::answer::{Failure, Raw, ended};
use super::call::Draw;
use super::token::{self, Drawn, Token};
use crate::teacher::http::preset::Asked;
use crate::teacher::http::spec::{Endpoint, Spec};

pub fn request(spec: &Spec, prompt: &str, draw: &Draw) -> (String, Value) {
    let preset = spec.preset();
    let mut body = json!({"model": spec.model});
    let path = match spec.endpoint {
        Endpoint::Chat => {
            let mut messages = Vec::new();
            messages.extend(spec.system.as_ref().map(|s| json!({"role": "system", "content": s})));
            messages.push(json!({"role": "user", "content": prompt}));
            body["messages"] = messages.into();
            "/chat/completions"
        }
        Endpoint::Completions => {
            body["prompt"] = prompt.into();
            "/completions"
        }
    };
    body[preset.limit] = draw.max_tokens.into();
    body["temperature"] = json!(draw.temperature);
    body["top_p"] = json!(draw.top_p);
    if let Some(seed) = draw.seed.filter(|_| preset.seed) {
        body["seed"] = seed.into();
    }
    if !draw.stop.is_empty() {
        body["stop"] = json!(draw.stop);
    }
    if draw.logprobs && spec.ask_top_k > 0 {
        if spec.endpoint == Endpoint::Chat && preset.asked == Asked::Flag {
            body["logprobs"] = true.into();
            body["top_logprobs"] = spec.ask_top_k.into();
        } else {
            body["logprobs"] = spec.ask_top_k.into();
        }
    }
    (path.into(), body)
}

pub fn answer(value: &Value) -> Result<Raw, Failure> {
    let choices = value["choices"].as_array().ok_or_else(|| Failure::said("the answer has no `choices`"))?;
    let choice = choices.first().ok_or_else(|| Failure::said("the answer's `choices` are empty"))?;
    let message = &choice["message"];
    let some = |field: &str| message[field].as_str().or(choice[field].as_str()).is_some_and(|t| !t.is_empty());
    let (text, thought) = text(if message["content"].is_null() { &choice["text"] } else { &message["content"] });
    let details = &value["usage"]["completion_tokens_details"]["reasoning_tokens"];
    let calls = |field: &str| message[field].as_array().is_some_and(|c| !c.is_empty());
    let mut raw = Raw {
        text,
        drawn: drawn(&choice["logprobs"])?,
        reasoning: thought || some("reasoning_content") || some("reasoning") || details.as_u64().is_some_and(|n| n > 0),
        instead: (calls("tool_calls") || message["function_call"].is_object()).then_some("a tool's call"),
        usage: usage(value),
        id: value["id"].as_str().map(str::to_owned),
        decode_rate: value["timings"]["predicted_per_second"].as_f64().filter(|r| r.is_finite() && *r > 0.0),
        ..Raw::default()
    };
    ended(&mut raw, choice["finish_reason"].as_str().or(choice["finish_reason"]["type"].as_str()));
    if let Some(words) = message["refusal"].as_str().filter(|_| raw.text.as_deref().is_none_or(str::is_empty)) {
        raw.filtered = Some(format!("the model refused: {}", super::answer::shortened(words)));
    }
    Ok(raw)
}

/// The text of a message, which some send as parts, and whether one of them is a thought.
fn text(content: &Value) -> (Option<String>, bool) {
    let Some(parts) = content.as_array() else { return (content.as_str().map(str::to_owned), false) };
    let is_text = |p: &&Value| p["type"].is_null() || p["type"] == "text";
    let texts = parts.iter().filter(is_text).filter_map(|p| p["text"].as_str().or(p.as_str()));
    (Some(texts.collect()), parts.iter().any(|p| p["type"] == "thinking" || p["type"] == "reasoning"))
}

pub fn usage(value: &Value) -> Option<(u64, u64)> {
    let usage = &value["usage"];
    Some((usage["prompt_tokens"].as_u64()?, usage["completion_tokens"].as_u64().unwrap_or(0)))
}

/// Tokens of either form of `logprobs`.
pub fn drawn(logprobs: &Value) -> Result<Vec<Drawn>, Failure> {
    if let Some(content) = logprobs["content"].as_array() {
        let of = |t: &Value| Drawn { token: read(t), top: t["top_logprobs"].as_array().into_iter().flatten().map(read).collect() };
        return Ok(content.iter().map(of).collect());
    }
    let Some(tokens) = logprobs["tokens"].as_array() else { return Ok(Vec::new()) };
    let values = logprobs["token_logprobs"].as_array().ok_or_else(|| Failure::said("`logprobs.tokens` without `token_logprobs`"))?;
    if values.len() != tokens.len() {
        return Err(Failure::said(format!("{} tokens with {} logprobs", tokens.len(), values.len())));
    }
    let one = |n: usize| Drawn {
        token: Token { id: token::id(&logprobs["token_ids"][n]), ..Token::text(tokens[n].as_str(), token::logprob(&values[n])) },
        top: by_text(&logprobs["top_logprobs"][n]),
    };
    Ok((0..tokens.len()).map(one).collect())
}

/// Alternatives as `{text: logprob}`.
fn by_text(top: &Value) -> Vec<Token> {
    let entries = top.as_object().into_iter().flatten();
    entries.map(|(text, l)| Token::text(Some(text), token::logprob(l))).collect()
}

/// `{token, bytes, logprob, id}`.
pub fn read(v: &Value) -> Token {
    Token { bytes: token::bytes(&v["bytes"]), id: token::id(&v["id"]), ..Token::text(v["token"].as_str(), token::logprob(&v["logprob"])) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::teacher::http::shape::Finish;

    #[test]
    fn both_forms_of_logprobs_are_read() {
        let chat = json!({"choices": [{"finish_reason": "length", "message": {"content": "h\u{e9}"}, "logprobs": {"content": [
            {"token": "h", "bytes": [104], "logprob": -0.5, "top_logprobs": [{"token": "h", "bytes": [104], "logprob": -0.5, "id": 7}]},
            {"token": "\u{fffd}", "bytes": [195], "logprob": null, "top_logprobs": []},
        ]}}], "usage": {"prompt_tokens": 3, "completion_tokens": 2}, "id": "a"});
        let a = answer(&chat).expect("answer");
        assert_eq!((a.text.as_deref(), a.finish, a.usage, a.drawn.len()), (Some("h\u{e9}"), Finish::Length, Some((3, 2)), 2));
        assert_eq!((a.drawn[0].top[0].id, a.drawn[0].top[0].logprob), (Some(7), Some(-0.5)));
        assert_eq!((a.drawn[1].token.told(), a.drawn[1].token.logprob), (Some(&[195][..]), None));
        let legacy = json!({"choices": [{"text": " a", "logprobs": {"tokens": [" a", "bytes:\\xe2\\x80"], "token_logprobs": [-1, -2.0],
            "top_logprobs": [{" a": -1.0, " b": -1.5}, null], "token_ids": [4, 5]}}]});
        let a = answer(&legacy).expect("answer");
        assert_eq!((a.drawn[0].top.len(), a.finish, a.drawn[1].token.id), (2, Finish::Unknown, Some(5)));
    }

    #[test]
    fn parts_of_a_message_are_told_apart() {
        let content = json!([{"type": "thinking", "thinking": [{"type": "text", "text": "hm"}]}, {"type": "text", "text": "Hi"}]);
        let a = answer(&json!({"choices": [{"message": {"content": content}, "finish_reason": "stop"}]})).expect("answer");
        assert_eq!((a.text.as_deref(), a.reasoning, a.finish), (Some("Hi"), true, Finish::Stop));
        let a =
            answer(&json!({"choices": [{"message": {"content": null, "refusal": "I cannot"}, "finish_reason": "stop"}]})).expect("answer");
        assert!(a.filtered.expect("refused").contains("I cannot"));
        let a = answer(&json!({"choices": [{"message": {"content": null, "tool_calls": [{}]}, "finish_reason": "tool_calls"}]}))
            .expect("answer");
        assert_eq!((a.instead, a.finish), (Some("a tool's call"), Finish::Other("tool_calls".into())));
        for (body, wanted) in [(json!({}), "no `choices`"), (json!({"choices": []}), "empty")] {
            assert!(answer(&body).expect_err("must refuse").why.contains(wanted));
        }
    }
}
