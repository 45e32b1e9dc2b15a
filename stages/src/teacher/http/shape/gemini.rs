//! `/models/MODEL:generateContent`.

use serde_json::{Value, json};

use super::answer::{Failure, Raw, ended};
use super::call::Draw;
use super::token::{self, Drawn, Token};
use crate::teacher::http::spec::Spec;

pub fn request(spec: &Spec, prompt: &str, draw: &Draw) -> (String, Value) {
    let mut config = json!({"maxOutputTokens": draw.max_tokens, "temperature": draw.temperature, "topP": draw.top_p});
    if let Some(seed) = draw.seed {
        config["seed"] = ((seed & 0x7fff_ffff) as i32).into();
    }
    if !draw.stop.is_empty() {
        config["stopSequences"] = json!(draw.stop);
    }
    if draw.logprobs && spec.ask_top_k > 0 {
        config["responseLogprobs"] = true.into();
        config["logprobs"] = spec.ask_top_k.into();
    }
    let mut body = json!({"contents": [{"role": "user", "parts": [{"text": prompt}]}], "generationConfig": config});
    if let Some(system) = &spec.system {
        body["systemInstruction"] = json!({"parts": [{"text": system}]});
    }
    (format!("/models/{}:generateContent", spec.model), body)
}

pub fn answer(value: &Value) -> Result<Raw, Failure> {
    let counts = &value["usageMetadata"];
    let mut raw = Raw {
        usage: counts["promptTokenCount"].as_u64().map(|p| (p, counts["candidatesTokenCount"].as_u64().unwrap_or(0))),
        id: value["responseId"].as_str().map(str::to_owned),
        ..Raw::default()
    };
    if let Some(reason) = value["promptFeedback"]["blockReason"].as_str() {
        raw.filtered = Some(format!("the prompt was blocked: {reason}"));
        return Ok(raw);
    }
    let candidate = value["candidates"].as_array().and_then(|c| c.first());
    let candidate = candidate.ok_or_else(|| Failure::said("the answer's `candidates` are empty"))?;
    let parts = || candidate["content"]["parts"].as_array().into_iter().flatten();
    let thought = |p: &&Value| p["thought"] == true;
    raw.text = Some(parts().filter(|p| !thought(p)).filter_map(|p| p["text"].as_str()).collect());
    raw.reasoning = parts().any(|p| thought(&p)) || counts["thoughtsTokenCount"].as_u64().is_some_and(|n| n > 0);
    raw.instead = parts().any(|p| p["functionCall"].is_object()).then_some("a function's call");
    raw.drawn = drawn(&candidate["logprobsResult"])?;
    ended(&mut raw, candidate["finishReason"].as_str());
    Ok(raw)
}

fn drawn(result: &Value) -> Result<Vec<Drawn>, Failure> {
    let Some(chosen) = result["chosenCandidates"].as_array() else { return Ok(Vec::new()) };
    let top = result["topCandidates"].as_array().ok_or_else(|| Failure::said("`logprobsResult` without `topCandidates`"))?;
    let read = |v: &Value| Token { id: token::id(&v["tokenId"]), ..Token::text(v["token"].as_str(), token::logprob(&v["logProbability"])) };
    let steps = chosen.iter().enumerate().map(|(n, c)| Drawn {
        token: read(c),
        top: top.get(n).and_then(|t| t["candidates"].as_array()).into_iter().flatten().map(read).collect(),
    });
    Ok(steps.collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::teacher::http::shape::Finish;

    #[test]
    fn candidates_are_read() {
        let value = json!({"candidates": [{"content": {"parts": [{"text": "hm", "thought": true}, {"text": "Hi"}]}, "finishReason": "MAX_TOKENS", "logprobsResult": {
            "chosenCandidates": [{"token": "Hi", "tokenId": 9, "logProbability": -0.1}],
            "topCandidates": [{"candidates": [{"token": "Hi", "tokenId": 9, "logProbability": -0.1}, {"token": "Yo", "tokenId": 3, "logProbability": -3}]}]}}],
            "usageMetadata": {"promptTokenCount": 4, "candidatesTokenCount": 1}});
        let a = answer(&value).expect("answer");
        assert_eq!((a.text.as_deref(), a.finish, a.usage, a.drawn[0].top.len()), (Some("Hi"), Finish::Length, Some((4, 1)), 2));
        let blocked = json!({"promptFeedback": {"blockReason": "SAFETY"}});
        assert!(answer(&blocked).expect("answer").filtered.expect("filtered").contains("SAFETY"));
        assert!(answer(&json!({"candidates": []})).is_err());
    }
}
