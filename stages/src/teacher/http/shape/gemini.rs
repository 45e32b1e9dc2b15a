//! `/models/MODEL:generateContent`.

use serde_json::{Value, json};

use super::{Answer, Draw, Step, finish, token_bytes};
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

pub fn answer(value: &Value) -> Result<Answer, String> {
    let counts = &value["usageMetadata"];
    let usage = counts["promptTokenCount"].as_u64().map(|p| (p, counts["candidatesTokenCount"].as_u64().unwrap_or(0)));
    let id = value["responseId"].as_str().map(str::to_owned);
    if value["promptFeedback"]["blockReason"].is_string() {
        return Ok(Answer { finish: "content_filter".into(), usage, id, ..Answer::default() });
    }
    let candidate = value["candidates"].as_array().and_then(|c| c.first()).ok_or("the answer's `candidates` are empty")?;
    let parts = candidate["content"]["parts"].as_array().into_iter().flatten();
    Ok(Answer {
        text: parts.filter_map(|p| p["text"].as_str()).collect(),
        steps: steps(&candidate["logprobsResult"])?,
        finish: finish(candidate["finishReason"].as_str()),
        usage,
        id,
        decode_rate: None,
    })
}

fn steps(result: &Value) -> Result<Vec<Step>, String> {
    let Some(chosen) = result["chosenCandidates"].as_array() else { return Ok(Vec::new()) };
    let top = result["topCandidates"].as_array().ok_or("`logprobsResult` without `topCandidates`")?;
    let id = |v: &Value| v["tokenId"].as_i64().and_then(|i| i32::try_from(i).ok());
    let bytes = |v: &Value| token_bytes(v["token"].as_str(), &Value::Null);
    let steps = chosen.iter().enumerate().map(|(n, c)| Step {
        bytes: bytes(c),
        id: id(c),
        logprob: c["logProbability"].as_f64(),
        top: top
            .get(n)
            .and_then(|t| t["candidates"].as_array())
            .into_iter()
            .flatten()
            .filter_map(|t| Some((bytes(t), id(t), t["logProbability"].as_f64()?)))
            .collect(),
    });
    Ok(steps.collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn candidates_are_read() {
        let value = json!({"candidates": [{"content": {"parts": [{"text": "Hi"}]}, "finishReason": "MAX_TOKENS", "logprobsResult": {
            "chosenCandidates": [{"token": "Hi", "tokenId": 9, "logProbability": -0.1}],
            "topCandidates": [{"candidates": [{"token": "Hi", "tokenId": 9, "logProbability": -0.1}, {"token": "Yo", "tokenId": 3, "logProbability": -3}]}]}}],
            "usageMetadata": {"promptTokenCount": 4, "candidatesTokenCount": 1}});
        let a = answer(&value).expect("answer");
        assert_eq!((a.text.as_str(), a.finish.as_str(), a.usage, a.steps[0].top.len()), ("Hi", "length", Some((4, 1)), 2));
        let blocked = json!({"promptFeedback": {"blockReason": "SAFETY"}});
        assert_eq!(answer(&blocked).expect("answer").finish, "content_filter");
        assert!(answer(&json!({"candidates": []})).is_err());
    }
}
