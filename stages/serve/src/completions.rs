//! `/v1/completions`: texts or tokens that are continued, or scored.

use std::sync::Arc;

use axum::Json;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use flow_lm::TokenId;
use flow_lm::infer::Logprobs;
use serde_json::{Value, json};

use crate::answer::{Part, TokenLogprobs, chars, of_text};
use crate::aside::aside;
use crate::ask::Asked;
use crate::error::ApiError;
use crate::events::{Events, Tells, streamed};
use crate::id::{now, unique};
use crate::shared::Shared;
use crate::speak::{Piece, Speaker};
use crate::work::{Given, Scored};

/// A text that is continued.
struct Prompt {
    /// As the model reads it.
    tokens: Vec<TokenId>,
    /// Of these, those before the text: BOS.
    before: usize,
    /// What `echo` says.
    text: String,
}

/// What is asked beside what every completion has.
struct Completion {
    asked: Asked,
    prompts: Vec<Prompt>,
    logprobs: Option<usize>,
    echo: bool,
    /// Temperatures of exact tails, for who learns from this model.
    tails: Option<Vec<f32>>,
    /// Whether token ids are told (`return_token_ids`, as vLLM calls it).
    ids: bool,
}

/// Answers a completion, whose request has so many bytes.
pub async fn complete(shared: Arc<Shared>, body: Value, bytes: usize) -> Result<Response, ApiError> {
    let inside = shared.clone();
    let mut completion = aside(&shared.turns, bytes, move || Completion::read(&inside, &body)).await?;
    let constraint = match completion.asked.grammar.take() {
        Some(grammar) => Some(shared.compiled.constraint(&shared.model, grammar, "response_format").await?),
        None => None,
    };
    let scores = completion.scores(&shared)?;
    let prompts: Vec<Vec<TokenId>> = completion.prompts.iter().map(|p| p.tokens.clone()).collect();
    let answering = shared.submit(&completion.asked, &prompts, completion.logprobs, constraint.as_ref(), scores)?;
    let speaker = Speaker::new(shared.clone(), answering, &completion.asked);
    let telling = Telling { shared, completion, speaker, id: unique("cmpl-"), created: now(), scored: 0 };
    Ok(if telling.completion.asked.stream { telling.streamed() } else { telling.whole().await? })
}

impl Completion {
    fn read(shared: &Shared, body: &Value) -> Result<Self, ApiError> {
        let (bounds, vocab) = (&shared.bounds, shared.model.checkpoint.config.vocab);
        let mut asked = Asked::read(body, "prompt", bounds, vocab)?;
        // OpenAI's default.
        asked.max_tokens = asked.max_tokens.or(Some(16));
        let flag = |name: &str| match &body[name] {
            Value::Null => Ok(false),
            value => value.as_bool().ok_or_else(|| ApiError::field(name, format!("`true` or `false`, not {value}"))),
        };
        let (extension, echo) = (&body["flow"], flag("echo")?);
        let tails = match &extension["taus"] {
            Value::Null => None,
            given => Some(taus(given, bounds.taus)?),
        };
        asked.draw = extension["draw"].as_u64().unwrap_or(0);
        if tails.is_some() && !(echo && asked.max_tokens == Some(0)) {
            return Err(ApiError::field("flow", "`taus` are those of given text: with `echo: true` and `max_tokens: 0`"));
        }
        let most = if tails.is_some() { bounds.candidates } else { bounds.logprobs }.min(vocab);
        let logprobs = match &body["logprobs"] {
            Value::Null => None,
            value => {
                let n = value.as_u64().filter(|n| *n <= most as u64);
                Some(n.ok_or_else(|| ApiError::field("logprobs", format!("a number from 0 to {most}, not {value}")))? as usize)
            }
        };
        let known = extension["tokenizer"].as_str();
        if let Some(theirs) = known.filter(|t| *t != shared.model.tokenizer.digest()) {
            let why = format!("the ids are those of tokenizer {theirs}, this model's is {}", shared.model.tokenizer.digest());
            return Err(ApiError::field("flow", why));
        }
        Ok(Self { prompts: prompts(shared, &body["prompt"])?, asked, logprobs, echo, tails, ids: flag("return_token_ids")? })
    }

    /// What of the prompts is scored.
    fn scores(&self, shared: &Shared) -> Result<Vec<Given>, ApiError> {
        let Some(candidates) = self.logprobs.filter(|_| self.echo) else { return Ok(Vec::new()) };
        let Some(window) = shared.window else {
            let why = "scoring the prompt takes memory of its own: start the server with --score";
            return Err(ApiError::field("echo", why));
        };
        let one = |p: &Prompt| {
            if p.tokens.len() > window + 1 {
                let why = format!("{} tokens, and {window} can be scored after the first", p.tokens.len());
                return Err(ApiError { code: Some("context_length_exceeded"), ..ApiError::field("prompt", why) });
            }
            let taus = self.tails.clone().unwrap_or_default();
            Ok(Given { tokens: p.tokens.clone(), top_k: candidates.max(1), taus, own: self.tails.is_none() })
        };
        // A prompt of one token has nothing to score.
        self.prompts.iter().filter(|p| p.tokens.len() > 1).map(one).collect()
    }
}

fn taus(given: &Value, most: usize) -> Result<Vec<f32>, ApiError> {
    let tau = |v: &Value| v.as_f64().map(|t| t as f32).filter(|t| t.is_finite() && *t > 0.0);
    let all: Option<Vec<f32>> = given.as_array().and_then(|a| a.iter().map(tau).collect());
    let wrong = || ApiError::field("flow", format!("`taus`: at most {most} numbers above 0, not {given}"));
    all.filter(|a| a.len() <= most).ok_or_else(wrong)
}

/// A text, a list of texts, a list of ids, or a list of these.
fn prompts(shared: &Shared, given: &Value) -> Result<Vec<Prompt>, ApiError> {
    let wrong = |why: &str| ApiError::field("prompt", format!("a text, a list of texts, a list of token ids, or a list of these: {why}"));
    let list = match given {
        Value::Null => return Err(wrong("it is missing")),
        Value::Array(all) if all.first().is_some_and(Value::is_number) => std::slice::from_ref(given),
        Value::Array(all) => all,
        one => std::slice::from_ref(one),
    };
    if list.is_empty() || list.len() > shared.bounds.prompts {
        return Err(wrong(&format!("1 to {} of them, not {}", shared.bounds.prompts, list.len())));
    }
    let (tokenizer, vocab) = (&shared.model.tokenizer, shared.model.tokenizer.vocab_size());
    let one = |prompt: &Value| match prompt {
        Value::String(text) => {
            let said = tokenizer.encode(text);
            let n = said.len();
            let tokens = tokenizer.with_bos(said);
            Ok(Prompt { before: tokens.len() - n, tokens, text: text.clone() })
        }
        Value::Array(ids) if !ids.is_empty() => {
            let id = |v: &Value| v.as_u64().filter(|id| *id < vocab as u64).map(|id| TokenId(id as u32));
            let tokens: Vec<TokenId> =
                ids.iter().map(|v| id(v).ok_or_else(|| wrong(&format!("ids are below {vocab}, not {v}")))).collect::<Result<_, _>>()?;
            let text = tokenizer.decode_lossy(&tokens);
            Ok(Prompt { tokens, before: 0, text })
        }
        other => Err(wrong(&format!("not {other}"))),
    };
    list.iter().map(one).collect()
}

/// A completion that is being answered.
struct Telling {
    shared: Arc<Shared>,
    completion: Completion,
    speaker: Speaker,
    id: String,
    created: u64,
    /// Windows of prompts that were scored.
    scored: usize,
}

/// What is told of a choice.
#[derive(Clone, Default)]
struct Made {
    text: String,
    tokens: Vec<TokenLogprobs>,
    /// Scores with exact tails.
    tails: Value,
    finish: Option<&'static str>,
}

impl Telling {
    fn choices(&self) -> usize {
        self.completion.prompts.len() * self.completion.asked.n
    }

    fn prompt(&self, choice: usize) -> &Prompt {
        &self.completion.prompts[choice / self.completion.asked.n]
    }

    /// What every choice begins with; its logprobs come with the scores.
    fn opening(&self, choice: usize) -> Made {
        let (prompt, c) = (self.prompt(choice), &self.completion);
        let text = if c.echo { prompt.text.clone() } else { String::new() };
        let first = TokenLogprobs { id: prompt.tokens[0], logprobs: None, offset: 0 };
        let tokens = if c.echo && c.logprobs.is_some() && prompt.before == 0 { vec![first] } else { Vec::new() };
        Made { text, tokens, finish: (c.asked.max_tokens == Some(0)).then_some("length"), ..Made::default() }
    }

    /// The prompt whose scores come next: those of one token have none.
    fn scored_prompt(&mut self) -> usize {
        let scored = self.completion.prompts.iter().enumerate().filter(|(_, p)| p.tokens.len() > 1);
        let at = scored.map(|(i, _)| i).nth(self.scored).unwrap_or(0);
        self.scored += 1;
        at
    }

    /// Scores of a prompt, as a part of its choices.
    fn given(&self, prompt: usize, scored: &Scored) -> Made {
        let (prompt, c) = (&self.completion.prompts[prompt], &self.completion);
        let (k, rows) = (c.logprobs.unwrap_or(0).max(1), prompt.tokens.len() - 1);
        if let Some(taus) = &c.tails {
            let ids: Vec<u32> = scored.top.ids[..rows * k].iter().map(|id| id.0).collect();
            let tails =
                json!({"ids": ids, "logprobs": scored.top.logprobs[..rows * k], "other": scored.top.other[..rows * (1 + taus.len())]});
            return Made { tails, ..Made::default() };
        }
        let tokenizer = &self.shared.model.tokenizer;
        let mut offset = prompt.tokens[..1 - prompt.before.min(1)].iter().map(|id| chars(tokenizer.token_bytes(*id))).sum();
        let told = c.logprobs.unwrap_or(0);
        let row = |(row, (id, own)): (usize, (&TokenId, &f32))| {
            let at = row * k..row * k + told;
            let top = scored.top.ids[at.clone()].iter().copied().zip(scored.top.logprobs[at].iter().map(|l| l.min(0.0))).collect();
            let one = TokenLogprobs { id: *id, logprobs: Some(Logprobs { own: *own, top }), offset };
            offset += chars(tokenizer.token_bytes(*id));
            one
        };
        Made { tokens: prompt.tokens[1..].iter().zip(&scored.own).enumerate().map(row).collect(), ..Made::default() }
    }

    fn json(&self, choice: usize, made: &Made, said: bool) -> Value {
        let c = &self.completion;
        // Offsets of what is said count from the beginning of the text that is told.
        let before = if said && c.echo { self.prompt(choice).text.chars().count() } else { 0 };
        let logprobs = c.logprobs.filter(|_| c.tails.is_none()).map(|_| of_text(&self.shared.model.tokenizer, &made.tokens, before));
        let mut out = json!({"index": choice, "text": made.text, "logprobs": logprobs, "finish_reason": made.finish});
        if !made.tails.is_null() {
            out["flow"] = made.tails.clone();
        }
        if c.ids && made.finish.is_some() {
            out["token_ids"] = self.speaker.ids(choice).iter().map(|id| id.0).collect();
        }
        out
    }

    fn object(&self, choices: Vec<Value>) -> Value {
        json!({"id": self.id, "object": "text_completion", "created": self.created, "model": self.shared.name, "choices": choices})
    }

    fn streamed(self) -> Response {
        let (c, mut first) = (&self.completion, Events::default());
        let opens = c.echo || c.asked.max_tokens == Some(0);
        // What is scored opens with its scores.
        let scored = |p: &Prompt| c.echo && c.logprobs.is_some() && p.tokens.len() > 1;
        for (i, _) in c.prompts.iter().enumerate().filter(|(_, p)| opens && !scored(p)) {
            self.tell_opening(&mut first, i, &Made::default());
        }
        streamed(self, first)
    }

    async fn whole(mut self) -> Result<Response, ApiError> {
        let mut made: Vec<Made> = (0..self.choices()).map(|i| self.opening(i)).collect();
        let n = self.completion.asked.n;
        while let Some(piece) = self.speaker.next().await {
            match piece {
                Piece::Failed(why) => return Err(ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, why)),
                Piece::Scored(scored) => {
                    let prompt = self.scored_prompt();
                    let given = self.given(prompt, &scored);
                    for one in &mut made[prompt * n..(prompt + 1) * n] {
                        one.tokens.extend(given.tokens.iter().cloned());
                        one.tails = given.tails.clone();
                    }
                }
                Piece::Part(i, part) => self.add(&mut made[i], i, part),
            }
        }
        let choices = made.iter().enumerate().map(|(i, made)| self.json(i, made, false)).collect();
        let mut body = self.object(choices);
        body["usage"] = self.speaker.usage.json();
        Ok(Json(body).into_response())
    }

    fn add(&self, made: &mut Made, choice: usize, part: Part) {
        let before = if self.completion.echo { self.prompt(choice).text.chars().count() } else { 0 };
        made.text.push_str(&part.text);
        made.tokens.extend(part.tokens.into_iter().map(|t| TokenLogprobs { offset: before + t.offset, ..t }));
        made.finish = part.finish.or(made.finish);
    }

    fn chunk(&self, choices: Vec<Value>, usage: Value) -> Value {
        let mut chunk = self.object(choices);
        if self.completion.asked.usage {
            chunk["usage"] = usage;
        }
        chunk
    }

    /// What the choices of a prompt begin with, and its scores.
    fn tell_opening(&self, to: &mut Events, prompt: usize, given: &Made) {
        let n = self.completion.asked.n;
        for choice in prompt * n..(prompt + 1) * n {
            let mut made = self.opening(choice);
            made.tokens.extend(given.tokens.iter().cloned());
            made.tails = given.tails.clone();
            to.chunk(&self.chunk(vec![self.json(choice, &made, false)], Value::Null));
        }
    }
}

impl Tells for Telling {
    async fn next(&mut self, to: &mut Events) -> bool {
        let piece = self.speaker.next().await;
        match piece {
            Some(Piece::Failed(why)) => {
                self.shared.stats.failed();
                to.failed(why);
                return false;
            }
            Some(Piece::Scored(scored)) => {
                let prompt = self.scored_prompt();
                let given = self.given(prompt, &scored);
                self.tell_opening(to, prompt, &given);
            }
            Some(Piece::Part(i, part)) => {
                let made = Made { text: part.text, tokens: part.tokens, finish: part.finish, ..Made::default() };
                to.chunk(&self.chunk(vec![self.json(i, &made, true)], Value::Null));
            }
            None => {
                if self.completion.asked.usage {
                    to.chunk(&self.chunk(Vec::new(), self.speaker.usage.json()));
                }
                to.done();
                return false;
            }
        }
        true
    }
}
