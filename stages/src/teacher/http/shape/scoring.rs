//! Scoring of given text where a server can: what a window of text is asked as, and the steps in the answers.

use std::sync::Arc;

use serde_json::{Value, json};

use super::align::Around;
use super::answer::{Failure, Refusal, Refused};
use super::call::{Call, Expect, Step};
use super::decode::{Against, Manner, decode};
use super::openai;
use super::token::{self, Drawn, Token};
use crate::teacher::http::preset::Scoring;
use crate::teacher::http::spec::Spec;

/// A window as the server cut it (llama.cpp): its tokens, by id and bytes.
#[derive(Clone, Debug, Default)]
pub struct Pieces(pub Vec<Step>);

impl Pieces {
    /// What `/tokenize` is asked for a window.
    pub fn call(text: &Arc<str>) -> Call {
        let body = json!({"content": text.as_ref(), "with_pieces": true, "add_special": false});
        Call { path: "//tokenize".into(), body, sample: 0, expect: Expect::Pieces(text.clone()), most: (0, 0) }
    }

    /// How many of its tokens can be asked for: the first one has nothing before it.
    pub fn after_first(&self) -> usize {
        self.0.len().saturating_sub(1)
    }

    /// The request for the distribution of the token that so many and one others stand before.
    pub fn next(&self, spec: &Spec, n: usize) -> Call {
        let before: Vec<Option<i32>> = self.0[..=n].iter().map(|s| s.id).collect();
        let body = json!({"prompt": before, "n_predict": 1, "n_probs": spec.ask_top_k.max(1), "temperature": 0.0, "cache_prompt": true});
        Call { path: "//completion".into(), body, sample: 0, expect: Expect::Next(self.0[n + 1].clone()), most: (1, 1) }
    }
}

/// The request that scores a window, where one does.
pub fn score_call(spec: &Spec, scoring: Scoring, text: &Arc<str>) -> Option<Call> {
    let k = spec.ask_top_k.max(1);
    let (path, body) = match scoring {
        Scoring::PromptLogprobs => (
            "/completions",
            json!({"model": spec.model, "prompt": text.as_ref(), "max_tokens": 1, "temperature": 0.0, "prompt_logprobs": k}),
        ),
        Scoring::Echo => (
            "/completions",
            json!({"model": spec.model, "prompt": text.as_ref(), "max_tokens": 1, "temperature": 0.0, "echo": true, "logprobs": k}),
        ),
        Scoring::Generate => (
            "//generate",
            json!({"text": text.as_ref(), "sampling_params": {"max_new_tokens": 1, "temperature": 0.0}, "return_logprob": true,
                   "logprob_start_len": 0, "top_logprobs_num": k, "return_text_in_logprobs": true}),
        ),
        Scoring::Steps => return None,
    };
    let most = (text.len() as u64 + 64, 1);
    Some(Call { path: path.into(), body, sample: 0, expect: Expect::Scored(scoring, text.clone()), most })
}

/// The steps of a given text in an answer; `None` where the call asks for something else.
pub fn read(expect: &Expect, manner: &Manner, value: &Value) -> Option<Result<Result<Vec<Step>, Refusal>, Failure>> {
    match expect {
        Expect::Scored(scoring, text) => Some(scored(*scoring, value).map(|forms| of_text(&forms, text, manner))),
        Expect::Pieces(text) => Some(pieces(value).map(|drawn| of_text(&[drawn], text, manner))),
        Expect::Next(step) => Some(next(step, value, manner).map(|step| Ok(vec![step]))),
        Expect::Text | Expect::Logprobs | Expect::Probe | Expect::Served(_) => None,
    }
}

/// The steps of the first form of an answer whose tokens are the text. The first token of a text has no distribution:
/// where it stands at the beginning it is left out.
fn of_text(forms: &[Vec<Drawn>], text: &str, manner: &Manner) -> Result<Vec<Step>, Refusal> {
    let against = Against { text, around: Around { begin: true, ..Around::default() }, stops: &[], manner };
    let mut why = String::new();
    for drawn in forms {
        match decode(drawn, &against) {
            Ok(decoded) => return Ok(decoded.steps),
            Err(e) => why = e,
        }
    }
    Err(Refusal { kind: Refused::Unreadable, why })
}

/// The tokens of a scored text, in the forms that they may have.
fn scored(scoring: Scoring, value: &Value) -> Result<Vec<Vec<Drawn>>, Failure> {
    let forms = match scoring {
        Scoring::PromptLogprobs => vec![prompt_logprobs(&value["choices"][0]["prompt_logprobs"])?],
        Scoring::Echo => echo(value)?,
        Scoring::Generate => vec![generate(&value["meta_info"])?],
        Scoring::Steps => Vec::new(),
    };
    if forms.iter().flatten().any(|d| d.token.logprob.is_some()) { Ok(forms) } else { Err(Failure::bare("no logprobs of the text came")) }
}

/// vLLM: a list with `{id: {logprob, rank, decoded_token}}` for each token of the prompt, `null` for the first; the
/// text's own token comes first.
fn prompt_logprobs(list: &Value) -> Result<Vec<Drawn>, Failure> {
    let missing = || Failure::bare("no `prompt_logprobs` came: is the server vLLM, started with enough `--max-logprobs`?");
    let one = |(id, one): (&String, &Value)| Token {
        id: id.parse().ok(),
        ..Token::text(one["decoded_token"].as_str(), token::logprob(&one["logprob"]))
    };
    let of = |entry: &Value| {
        let top: Vec<Token> = entry.as_object().into_iter().flatten().map(one).collect();
        Drawn { token: top.first().cloned().unwrap_or_default(), top }
    };
    Ok(list.as_array().ok_or_else(missing)?.iter().map(of).collect())
}

/// Together: the prompt's own tokens in `prompt[0].logprobs`; elsewhere they come before the generated ones, if any.
fn echo(value: &Value) -> Result<Vec<Vec<Drawn>>, Failure> {
    let own = &value["prompt"][0]["logprobs"];
    if own.is_object() {
        return Ok(vec![openai::drawn(own)?]);
    }
    let all = openai::drawn(&value["choices"][0]["logprobs"])?;
    Ok(vec![all[..all.len().saturating_sub(1)].to_vec(), all])
}

/// SGLang: `[logprob, id, text]` for each token, and lists of them.
fn generate(meta: &Value) -> Result<Vec<Drawn>, Failure> {
    let missing = || Failure::bare("no `input_token_logprobs` came: is the server SGLang?");
    let tokens = meta["input_token_logprobs"].as_array().ok_or_else(missing)?;
    let read = |v: &Value| Token { id: token::id(&v[1]), ..Token::text(v[2].as_str(), token::logprob(&v[0])) };
    let top = |n: usize| meta["input_top_logprobs"][n].as_array().into_iter().flatten().map(read).collect();
    Ok(tokens.iter().enumerate().map(|(n, t)| Drawn { token: read(t), top: top(n) }).collect())
}

/// llama.cpp: `{id, piece}`, where a piece that is no text is a list of bytes.
fn pieces(value: &Value) -> Result<Vec<Drawn>, Failure> {
    let tokens = value["tokens"].as_array().ok_or_else(|| Failure::bare("`/tokenize` gave no `tokens`: is the server llama.cpp's?"))?;
    let read = |t: &Value| {
        let id = token::id(&t["id"]).filter(|_| t["piece"].is_string() || t["piece"].is_array())?;
        let token = Token { bytes: token::bytes(&t["piece"]), id: Some(id), ..Token::text(t["piece"].as_str(), None) };
        Some(Drawn { token, top: Vec::new() })
    };
    tokens.iter().map(|t| read(t).ok_or_else(|| Failure::bare("`/tokenize` gave no pieces"))).collect()
}

/// llama.cpp: the distribution after a prefix; the text's own token among the alternatives, or not.
fn next(step: &Step, value: &Value, manner: &Manner) -> Result<Step, Failure> {
    let missing = || Failure::bare("no `completion_probabilities` came: is the server llama.cpp's?");
    let list = value["completion_probabilities"][0]["top_logprobs"].as_array().ok_or_else(missing)?;
    let top: Vec<Token> = list.iter().map(openai::read).collect();
    let logprob = top.iter().find(|t| t.id == step.id).and_then(|t| t.logprob);
    let token = Token { bytes: Some(step.bytes.clone()), id: step.id, logprob, text: None };
    let against = Against { text: &String::from_utf8_lossy(&step.bytes), around: Around::default(), stops: &[], manner };
    let decoded = decode(&[Drawn { token, top }], &against).unwrap_or_default();
    decoded.steps.into_iter().next().ok_or_else(|| Failure::said("the text's own token cannot be read"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn steps(scoring: Scoring, text: &str, value: &Value) -> Result<Vec<Step>, Refusal> {
        read(&Expect::Scored(scoring, text.into()), &Manner::default(), value).expect("a scoring").expect("an answer")
    }

    #[test]
    fn every_server_s_own_form_is_read() {
        let vllm = json!({"choices": [{"prompt_logprobs": [null, {"5": {"logprob": -2.0, "decoded_token": " b"}, "4": {"logprob": -0.5, "decoded_token": " a"}}]}]});
        let together = json!({"prompt": [{"logprobs": {"tokens": ["x", " b"], "token_logprobs": [null, -2.0], "top_logprobs": [null, {" a": -0.5}]}}]});
        let echo = json!({"choices": [{"logprobs": {"tokens": ["x", " b", " c"], "token_logprobs": [null, -2.0, -1.0], "top_logprobs": [null, {" a": -0.5}, null]}}]});
        let sglang = json!({"meta_info": {"input_token_logprobs": [[null, 1, "x"], [-2.0, 5, " b"]], "input_top_logprobs": [null, [[-0.5, 4, " a"]]]}});
        for (scoring, value) in
            [(Scoring::PromptLogprobs, vllm), (Scoring::Echo, together), (Scoring::Echo, echo), (Scoring::Generate, sglang)]
        {
            let steps = steps(scoring, "x b", &value).expect("steps");
            assert_eq!((steps.len(), steps[1].bytes.as_slice(), steps[1].logprob), (2, &b" b"[..], Some(-2.0)), "{scoring:?}");
            assert!(steps[1].top.iter().any(|t| t.0 == b" a" && t.2 == -0.5), "{scoring:?}");
            assert_eq!((steps[0].bytes.as_slice(), steps[0].logprob), (&b"x"[..], None), "{scoring:?}");
        }
    }

    #[test]
    fn tokens_are_compared_with_the_text_that_was_given() {
        let sglang = |text: &str| json!({"meta_info": {"input_token_logprobs": [[null, 1, "<s>"], [-1.0, 2, "Hi"], [-2.0, 5, text]], "input_top_logprobs": []}});
        for (spelled, text) in [("\u{120}b", "Hi b"), ("\u{fffd}", "Hi b"), (" b", "Hi b")] {
            let read = steps(Scoring::Generate, text, &sglang(spelled));
            match spelled {
                "\u{fffd}" => assert!(read.expect_err("refused").why.contains("its tokens are not its text")),
                _ => assert_eq!(read.expect("read").iter().flat_map(|s| s.bytes.clone()).collect::<Vec<_>>(), text.as_bytes()),
            }
        }
        let wrong = steps(Scoring::Generate, "Hi you", &sglang(" b")).expect_err("another text");
        assert!(wrong.why.contains("from byte"), "{}", wrong.why);
    }

    #[test]
    fn a_window_is_scored_token_by_token() {
        let window: Arc<str> = "x b".into();
        let value = json!({"tokens": [{"id": 1, "piece": "x"}, {"id": 5, "piece": [32, 98]}]});
        let steps = read(&Pieces::call(&window).expect, &Manner::default(), &value).expect("pieces").expect("came").expect("read");
        let spec: Spec =
            serde_json::from_value(json!({"teacher": "http", "provider": "llama.cpp", "base_url": "http://h/v1", "model": "m",
            "endpoint": "chat", "system": null, "body": {}, "headers": {}, "ask_top_k": 8, "memory_bytes": null}))
            .expect("spec");
        let pieces = Pieces(steps);
        let call = pieces.next(&spec, 0);
        assert_eq!((pieces.after_first(), &call.body["prompt"]), (1, &json!([1])));
        let answer = json!({"completion_probabilities": [{"top_logprobs": [{"id": 4, "token": " a", "bytes": [32, 97], "logprob": -0.5}, {"id": 2, "token": "", "bytes": [], "logprob": -1.5}]}]});
        let steps = read(&call.expect, &Manner::default(), &answer).expect("next").expect("came").expect("read");
        assert_eq!((steps[0].id, steps[0].logprob, steps[0].top.len()), (Some(5), None, 1), "an empty alternative is no end");
    }
}
