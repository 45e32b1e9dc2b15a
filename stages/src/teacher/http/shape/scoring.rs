//! Scoring of given text where a server can: what a window of text is asked as, and the steps in the answers.

use serde_json::{Value, json};

use super::{Call, Expect, Step, openai, token_bytes};
use crate::teacher::http::preset::Scoring;
use crate::teacher::http::spec::Spec;

/// A window as the server cut it: the tokens of its text.
#[derive(Clone, Debug, Default)]
pub struct Scored {
    /// Ids and bytes, from `/tokenize` (llama.cpp); empty where the scoring answer itself tells them.
    pub tokens: Vec<(i32, Vec<u8>)>,
}

impl Scored {
    /// What `/tokenize` is asked for a window.
    pub fn tokenize(text: &str) -> Call {
        let body = json!({"content": text, "with_pieces": true, "add_special": false});
        Call { path: "//tokenize".into(), body, sample: 0, expect: Expect::Json, most: (0, 0) }
    }
    /// Its answer.
    pub fn read_tokens(body: &[u8]) -> Result<Self, String> {
        let value: Value = serde_json::from_slice(body).map_err(|e| e.to_string())?;
        let tokens = value["tokens"].as_array().ok_or("`/tokenize` gave no `tokens`")?;
        let read = |t: &Value| {
            let id = t["id"].as_i64().and_then(|i| i32::try_from(i).ok())?;
            Some((id, token_bytes(t["piece"].as_str(), &t["piece"])))
        };
        Ok(Self { tokens: tokens.iter().map(|t| read(t).ok_or("`/tokenize` gave no pieces")).collect::<Result<_, _>>()? })
    }
}

/// The requests that score a window: one, or one a token.
pub fn score_calls(spec: &Spec, scoring: Scoring, text: &str, window: &Scored) -> Vec<Call> {
    let k = spec.ask_top_k.max(1);
    let most = (text.len() as u64 + 64, 1);
    let one = |path: &str, body: Value| Call { path: path.into(), body, sample: 0, expect: Expect::Json, most };
    match scoring {
        Scoring::PromptLogprobs => vec![one(
            "/completions",
            json!({"model": spec.model, "prompt": text, "max_tokens": 1, "temperature": 0.0, "prompt_logprobs": k}),
        )],
        Scoring::Echo => vec![one(
            "/completions",
            json!({"model": spec.model, "prompt": text, "max_tokens": 1, "temperature": 0.0, "echo": true, "logprobs": k}),
        )],
        Scoring::Generate => vec![one(
            "//generate",
            json!({"text": text, "sampling_params": {"max_new_tokens": 1, "temperature": 0.0}, "return_logprob": true,
                   "logprob_start_len": 0, "top_logprobs_num": k, "return_text_in_logprobs": true}),
        )],
        // The first token has nothing before it that could be asked.
        Scoring::Steps => (1..window.tokens.len())
            .map(|t| {
                let before: Vec<i32> = window.tokens[..t].iter().map(|x| x.0).collect();
                let body = json!({"prompt": before, "n_predict": 1, "n_probs": k, "temperature": 0.0, "cache_prompt": true});
                Call { path: "//completion".into(), body, sample: 0, expect: Expect::Json, most: (1, 1) }
            })
            .collect(),
    }
}

/// The steps of a window, from the answers to its requests.
pub fn score_of(scoring: Scoring, window: &Scored, answers: &[Vec<u8>]) -> Result<Vec<Step>, String> {
    let values = answers.iter().map(|a| serde_json::from_slice::<Value>(a).map_err(|e| e.to_string())).collect::<Result<Vec<_>, _>>()?;
    let first = values.first().unwrap_or(&Value::Null);
    let steps = match scoring {
        Scoring::PromptLogprobs => prompt_logprobs(&first["choices"][0]["prompt_logprobs"])?,
        Scoring::Echo => echo(first)?,
        Scoring::Generate => generate(&first["meta_info"])?,
        Scoring::Steps => {
            window.tokens.iter().skip(1).zip(&values).map(|((id, bytes), v)| completion(*id, bytes, v)).collect::<Result<_, _>>()?
        }
    };
    if steps.is_empty() && window.tokens.len() != 1 { Err("no logprobs of the text came".into()) } else { Ok(steps) }
}

/// vLLM: a list with `{id: {logprob, rank, decoded_token}}` for each token of the prompt, `null` for the first; the
/// text's own token comes first.
fn prompt_logprobs(list: &Value) -> Result<Vec<Step>, String> {
    let list = list.as_array().ok_or("no `prompt_logprobs` came: is the server vLLM, started with enough `--max-logprobs`?")?;
    let mut steps = Vec::new();
    for entry in list.iter().filter_map(Value::as_object) {
        let mut top = Vec::new();
        for (id, one) in entry {
            let id = id.parse::<i32>().ok();
            let logprob = one["logprob"].as_f64().ok_or("a `prompt_logprobs` entry without `logprob`")?;
            top.push((token_bytes(one["decoded_token"].as_str(), &Value::Null), id, logprob));
        }
        if let Some((bytes, id, logprob)) = top.first().cloned() {
            steps.push(Step { bytes, id, logprob: Some(logprob), top });
        }
    }
    Ok(steps)
}

/// Together: the prompt's own tokens in `prompt[0].logprobs`; elsewhere they come before the generated ones.
fn echo(value: &Value) -> Result<Vec<Step>, String> {
    let own = &value["prompt"][0]["logprobs"];
    let mut steps = openai::steps(if own.is_object() { own } else { &value["choices"][0]["logprobs"] })?;
    if !own.is_object() {
        steps.pop();
    }
    steps.retain(|s| s.logprob.is_some());
    Ok(steps)
}

/// SGLang: `[logprob, id, text]` for each token, and lists of them.
fn generate(meta: &Value) -> Result<Vec<Step>, String> {
    let tokens = meta["input_token_logprobs"].as_array().ok_or("no `input_token_logprobs` came: is the server SGLang?")?;
    let read =
        |v: &Value| Some((token_bytes(v[2].as_str(), &Value::Null), v[1].as_i64().and_then(|i| i32::try_from(i).ok()), v[0].as_f64()?));
    Ok(tokens
        .iter()
        .enumerate()
        .filter_map(|(n, t)| {
            let (bytes, id, logprob) = read(t)?;
            let top = meta["input_top_logprobs"][n].as_array().into_iter().flatten().filter_map(read).collect();
            Some(Step { bytes, id, logprob: Some(logprob), top })
        })
        .collect())
}

/// llama.cpp: the distribution after a prefix; the text's own token among the alternatives, or not.
fn completion(id: i32, bytes: &[u8], value: &Value) -> Result<Step, String> {
    let probabilities = &value["completion_probabilities"][0];
    let list = probabilities["top_logprobs"].as_array().ok_or("no `completion_probabilities` came: is the server llama.cpp's?")?;
    let read = |t: &Value| {
        let id = t["id"].as_i64().and_then(|i| i32::try_from(i).ok());
        Some((token_bytes(t["token"].as_str(), &t["bytes"]), id, t["logprob"].as_f64()?))
    };
    let top: Vec<_> = list.iter().filter_map(read).collect();
    let logprob = top.iter().find(|t| t.1 == Some(id)).map(|t| t.2);
    Ok(Step { bytes: bytes.to_vec(), id: Some(id), logprob, top })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn steps(scoring: Scoring, value: &Value) -> Vec<Step> {
        score_of(scoring, &Scored::default(), &[value.to_string().into_bytes()]).expect("steps")
    }

    #[test]
    fn every_server_s_own_form_is_read() {
        let vllm = json!({"choices": [{"prompt_logprobs": [null, {"5": {"logprob": -2.0, "decoded_token": " b"}, "4": {"logprob": -0.5, "decoded_token": " a"}}]}]});
        let together = json!({"prompt": [{"logprobs": {"tokens": ["x", " b"], "token_logprobs": [null, -2.0], "top_logprobs": [null, {" a": -0.5}]}}]});
        let sglang = json!({"meta_info": {"input_token_logprobs": [[null, 1, "x"], [-2.0, 5, " b"]], "input_top_logprobs": [null, [[-0.5, 4, " a"]]]}});
        for (scoring, value) in [(Scoring::PromptLogprobs, vllm), (Scoring::Echo, together), (Scoring::Generate, sglang)] {
            let steps = steps(scoring, &value);
            assert_eq!((steps.len(), steps[0].bytes.as_slice(), steps[0].logprob), (1, &b" b"[..], Some(-2.0)), "{scoring:?}");
            assert!(steps[0].top.iter().any(|t| t.0 == b" a" && t.2 == -0.5), "{scoring:?}");
        }
        let window = Scored { tokens: vec![(1, b"x".to_vec()), (5, b" b".to_vec())] };
        let answer =
            json!({"completion_probabilities": [{"top_logprobs": [{"id": 4, "token": " a", "bytes": [32, 97], "logprob": -0.5}]}]});
        let steps = score_of(Scoring::Steps, &window, &[answer.to_string().into_bytes()]).expect("steps");
        assert_eq!((steps[0].id, steps[0].logprob, steps[0].top.len()), (Some(5), None, 1));
    }
}
