//! `/chat/completions` and `/completions`.

use serde_json::{Value, json};

use super::{Answer, Draw, Step, finish, token_bytes};
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

pub fn answer(value: &Value) -> Result<Answer, String> {
    let Some(choices) = value["choices"].as_array() else {
        let error = &value["error"];
        return Err(match error["message"].as_str().or(error.as_str()) {
            Some(message) => format!("an error came as an answer: {message}"),
            None => "the answer has no `choices`".into(),
        });
    };
    let choice = choices.first().ok_or("the answer's `choices` are empty")?;
    let message = &choice["message"];
    let text = message["content"].as_str().or(choice["text"].as_str());
    let refused = message["refusal"].as_str();
    let mut answer = Answer {
        text: text.unwrap_or_default().into(),
        steps: steps(&choice["logprobs"])?,
        finish: finish(choice["finish_reason"].as_str()),
        usage: usage(value),
        id: value["id"].as_str().map(str::to_owned),
        decode_rate: value["timings"]["predicted_per_second"].as_f64().filter(|r| r.is_finite() && *r > 0.0),
    };
    if text.is_none() && refused.is_some() {
        answer.finish = "content_filter".into();
    } else if text.is_none() && answer.finish != "content_filter" {
        return Err("the answer has no text".into());
    }
    Ok(answer)
}

pub fn usage(value: &Value) -> Option<(u64, u64)> {
    let usage = &value["usage"];
    Some((usage["prompt_tokens"].as_u64()?, usage["completion_tokens"].as_u64().unwrap_or(0)))
}

/// Tokens of either form of `logprobs`.
pub fn steps(logprobs: &Value) -> Result<Vec<Step>, String> {
    if let Some(content) = logprobs["content"].as_array() {
        return Ok(content.iter().map(step).collect());
    }
    let Some(tokens) = logprobs["tokens"].as_array() else { return Ok(Vec::new()) };
    let logprobs_of = logprobs["token_logprobs"].as_array().ok_or("`logprobs.tokens` without `token_logprobs`")?;
    if logprobs_of.len() != tokens.len() {
        return Err(format!("{} tokens with {} logprobs", tokens.len(), logprobs_of.len()));
    }
    let id = |n: usize| logprobs["token_ids"][n].as_i64().and_then(|i| i32::try_from(i).ok());
    Ok((0..tokens.len())
        .map(|n| Step {
            bytes: token_bytes(tokens[n].as_str(), &Value::Null),
            id: id(n),
            logprob: logprobs_of[n].as_f64(),
            top: by_text(&logprobs["top_logprobs"][n]),
        })
        .collect())
}

/// Alternatives as `{text: logprob}`.
pub fn by_text(top: &Value) -> Vec<(Vec<u8>, Option<i32>, f64)> {
    let entries = top.as_object().into_iter().flatten();
    entries.filter_map(|(text, l)| Some((token_bytes(Some(text), &Value::Null), None, l.as_f64()?))).collect()
}

fn step(token: &Value) -> Step {
    let id = |v: &Value| v["id"].as_i64().and_then(|i| i32::try_from(i).ok());
    let bytes = |v: &Value| token_bytes(v["token"].as_str(), &v["bytes"]);
    let top = token["top_logprobs"].as_array().into_iter().flatten();
    Step {
        bytes: bytes(token),
        id: id(token),
        logprob: token["logprob"].as_f64(),
        top: top.filter_map(|t| Some((bytes(t), id(t), t["logprob"].as_f64()?))).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_forms_of_logprobs_are_read() {
        let chat = json!({"choices": [{"finish_reason": "length", "message": {"content": "hé"}, "logprobs": {"content": [
            {"token": "h", "bytes": [104], "logprob": -0.5, "top_logprobs": [{"token": "h", "bytes": [104], "logprob": -0.5, "id": 7}]},
            {"token": "\u{fffd}", "bytes": [195], "logprob": null, "top_logprobs": []},
        ]}}], "usage": {"prompt_tokens": 3, "completion_tokens": 2}, "id": "a"});
        let a = answer(&chat).expect("answer");
        assert_eq!((a.text.as_str(), a.finish.as_str(), a.usage, a.steps.len()), ("hé", "length", Some((3, 2)), 2));
        assert_eq!(a.steps[0].top, [(vec![104], Some(7), -0.5)]);
        assert_eq!((a.steps[1].bytes.as_slice(), a.steps[1].logprob), (&[195][..], None));
        let legacy = json!({"choices": [{"text": " a", "logprobs": {"tokens": [" a", "bytes:\\xe2\\x80"], "token_logprobs": [-1, -2.0],
            "top_logprobs": [{" a": -1.0, " b": -1.5}, null], "token_ids": [4, 5]}}]});
        let a = answer(&legacy).expect("answer");
        assert_eq!(a.steps[0].top.len(), 2);
        assert_eq!((a.steps[1].bytes.as_slice(), a.steps[1].id), (&[0xe2, 0x80][..], Some(5)));
    }

    #[test]
    fn answers_that_are_none_are_told() {
        for (body, wanted) in [
            (json!({}), "no `choices`"),
            (json!({"choices": []}), "empty"),
            (json!({"error": {"message": "overloaded"}}), "overloaded"),
            (json!({"choices": [{"message": {"content": null}, "finish_reason": "stop"}]}), "no text"),
        ] {
            let error = answer(&body).expect_err("must refuse");
            assert!(error.contains(wanted), "{error}");
        }
        let filtered = json!({"choices": [{"message": {"content": null}, "finish_reason": "content_filter"}]});
        assert_eq!(answer(&filtered).expect("an answer").finish, "content_filter");
    }
}
