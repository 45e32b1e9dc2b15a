//! `/v1/chat/completions`.

use std::sync::Arc;

use axum::Json;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use flow_lm::TokenId;
use flow_lm::infer::Grammar;
use serde_json::{Value, json};

use crate::answer::{TokenLogprobs, of_chat};
use crate::aside::aside;
use crate::ask::{Asked, content};
use crate::error::ApiError;
use crate::events::{Events, Tells, streamed};
use crate::id::{now, unique};
use crate::shared::Shared;
use crate::speak::{Piece, Speaker};
use crate::tools::{self, Call, Wanted};

/// What is asked beside what every completion has.
struct Chat {
    asked: Asked,
    tools: Vec<Value>,
    wanted: Wanted,
    logprobs: Option<usize>,
}

/// Answers a conversation, whose request has so many bytes.
pub async fn complete(shared: Arc<Shared>, body: Value, bytes: usize) -> Result<Response, ApiError> {
    let inside = shared.clone();
    let (mut chat, prompt) = aside(&shared.turns, bytes, move || read(&inside, &body)).await?;
    let param = if matches!(chat.wanted, Wanted::Required(_)) { "tools" } else { "response_format" };
    let constraint = match chat.asked.grammar.take() {
        Some(grammar) => Some(shared.compiled.constraint(&shared.model, grammar, param).await?),
        None => None,
    };
    let answering = shared.submit(&chat.asked, &[prompt], chat.logprobs, constraint.as_ref(), Vec::new())?;
    let speaker = Speaker::new(shared.clone(), answering, &chat.asked);
    Ok(if chat.asked.stream { Streamed::begin(shared, chat, speaker) } else { whole(&shared, &chat, speaker).await? })
}

/// What is asked, and the tokens that are continued.
fn read(shared: &Shared, body: &Value) -> Result<(Chat, Vec<TokenId>), ApiError> {
    let vocab = shared.model.checkpoint.config.vocab;
    let mut asked = Asked::read(body, "messages", &shared.bounds, vocab)?;
    let (tools, wanted) = tools::read(body, shared.bounds.parts)?;
    let logprobs = logprobs(body, shared.bounds.logprobs)?;
    let template = shared.model.template.as_ref();
    let knows = template.is_some_and(flow_lm::chat::ChatTemplate::takes_tools);
    if wanted == Wanted::Auto && !knows {
        let why = "the model's chat template has no place for tools: `tool_choice: required` calls one all the same";
        return Err(ApiError::field("tools", why));
    }
    if let Wanted::Required(names) = &wanted {
        if asked.grammar.is_some() {
            return Err(ApiError::field("response_format", "either a format or a tool that must be called"));
        }
        asked.grammar = Some(Grammar::Schema(tools::schema(&tools, names)));
    }
    let messages = messages(body, shared.bounds.parts)?;
    let text = match template {
        // A base model continues what was said.
        None => messages.iter().filter_map(|m| m["content"].as_str()).collect(),
        Some(template) => template.render(&messages, Some(&tools[..]).filter(|t| knows && !t.is_empty() && wanted != Wanted::Nothing))?,
    };
    Ok((Chat { asked, tools, wanted, logprobs }, shared.model.tokenizer.context(&text)))
}

fn logprobs(body: &Value, most: usize) -> Result<Option<usize>, ApiError> {
    let top = match &body["top_logprobs"] {
        Value::Null => 0,
        value => value
            .as_u64()
            .filter(|n| *n <= most as u64)
            .ok_or_else(|| ApiError::field("top_logprobs", format!("a number from 0 to {most}, not {value}")))?,
    };
    match &body["logprobs"] {
        Value::Null | Value::Bool(false) if top > 0 => Err(ApiError::field("top_logprobs", "needs `logprobs: true`")),
        Value::Null | Value::Bool(false) => Ok(None),
        Value::Bool(true) => Ok(Some(top as usize)),
        value => Err(ApiError::field("logprobs", format!("`true` or `false`, not {value}"))),
    }
}

/// The messages as templates read them: contents as texts, `developer` as `system`.
fn messages(body: &Value, most: usize) -> Result<Vec<Value>, ApiError> {
    let given = body["messages"].as_array().filter(|m| !m.is_empty() && m.len() <= most);
    let given = given.ok_or_else(|| ApiError::field("messages", format!("a list of 1 to {most} messages")))?;
    let one = |(i, message): (usize, &Value)| {
        let role = match message["role"].as_str() {
            Some("developer") => "system",
            Some(role @ ("system" | "user" | "assistant" | "tool")) => role,
            _ => {
                let why = format!("`system`, `developer`, `user`, `assistant` or `tool`, not {}", message["role"]);
                return Err(ApiError::field(&format!("messages[{i}].role"), why));
            }
        };
        let mut out = json!({"role": role, "content": content(message, i)?});
        for field in ["name", "tool_calls", "tool_call_id"] {
            if !message[field].is_null() {
                out[field] = message[field].clone();
            }
        }
        // Templates read arguments as an object, clients send them back as the text that they got.
        // A field that is only asked for by index would be there from then on.
        for call in out.get_mut("tool_calls").and_then(Value::as_array_mut).into_iter().flatten() {
            let read = call["function"]["arguments"].as_str().and_then(|a| serde_json::from_str::<Value>(a).ok());
            if let Some(object) = read {
                call["function"]["arguments"] = object;
            }
        }
        Ok(out)
    };
    given.iter().enumerate().map(one).collect()
}

/// Text and calls of the rest of an answer, and why it ended: one that was cut off says so, whatever it began. `told`: some of
/// it was told as text before.
fn split<'a>(chat: &Chat, text: String, told: bool, finish: &'a str) -> (String, Vec<Call>, &'a str) {
    let (text, calls) = match chat.wanted {
        Wanted::Nothing => return (text, Vec::new(), finish),
        Wanted::Auto => tools::parse(&text, &chat.tools, told),
        Wanted::Required(_) => match tools::parse(&text, &chat.tools, false) {
            (_, calls) if !calls.is_empty() => (String::new(), calls),
            _ => return (String::new(), tools::cut_off(&text).into_iter().collect(), finish),
        },
    };
    let finish = if calls.is_empty() { finish } else { "tool_calls" };
    (text, calls, finish)
}

fn calls_json(calls: &[Call], indexed: bool) -> Value {
    let one = |(i, call): (usize, &Call)| {
        let mut out = json!({"id": unique("call_"), "type": "function", "function": {"name": call.name, "arguments": call.arguments}});
        if indexed {
            out["index"] = i.into();
        }
        out
    };
    calls.iter().enumerate().map(one).collect()
}

async fn whole(shared: &Shared, chat: &Chat, mut speaker: Speaker) -> Result<Response, ApiError> {
    let mut made: Vec<(String, Vec<TokenLogprobs>, &str)> = vec![(String::new(), Vec::new(), "length"); chat.asked.n];
    while let Some(piece) = speaker.next().await {
        match piece {
            Piece::Failed(why) => return Err(ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, why)),
            Piece::Scored(_) => {}
            Piece::Part(i, part) => {
                made[i].0.push_str(&part.text);
                made[i].1.extend(part.tokens);
                made[i].2 = part.finish.unwrap_or(made[i].2);
            }
        }
    }
    let choice = |(i, (text, tokens, finish)): (usize, (String, Vec<TokenLogprobs>, &str))| {
        let (text, calls, finish) = split(chat, text, false, finish);
        let mut message = json!({"role": "assistant", "content": text, "refusal": null});
        if !calls.is_empty() {
            message["tool_calls"] = calls_json(&calls, false);
            message["content"] = Some(text).filter(|t| !t.is_empty()).into();
        }
        let logprobs = chat.logprobs.map(|_| of_chat(&shared.model.tokenizer, &tokens));
        json!({"index": i, "message": message, "logprobs": logprobs, "finish_reason": finish})
    };
    let choices: Vec<Value> = made.into_iter().enumerate().map(choice).collect();
    let body = json!({"id": unique("chatcmpl-"), "object": "chat.completion", "created": now(), "model": shared.name,
                      "choices": choices, "usage": speaker.usage.json()});
    Ok(Json(body).into_response())
}

/// The state of a stream.
struct Streamed {
    shared: Arc<Shared>,
    chat: Chat,
    speaker: Speaker,
    id: String,
    created: u64,
    /// What of each choice is not told yet, where it may be a call.
    held: Vec<String>,
    /// Of these texts.
    tokens: Vec<Vec<TokenLogprobs>>,
    /// Whether some of a choice was told.
    told: Vec<bool>,
}

/// What a chunk tells of a choice.
#[derive(Default)]
struct Delta<'a> {
    delta: Value,
    tokens: &'a [TokenLogprobs],
    finish: Option<&'a str>,
}

impl Streamed {
    fn begin(shared: Arc<Shared>, chat: Chat, speaker: Speaker) -> Response {
        let n = chat.asked.n;
        let (held, tokens) = (vec![String::new(); n], vec![Vec::new(); n]);
        let finish = (chat.asked.max_tokens == Some(0)).then_some("length");
        let state = Self { shared, chat, speaker, id: unique("chatcmpl-"), created: now(), held, tokens, told: vec![false; n] };
        let mut first = Events::default();
        for i in 0..n {
            state.tell(&mut first, i, Delta { delta: json!({"role": "assistant", "content": ""}), finish, ..Delta::default() });
        }
        streamed(state, first)
    }

    fn tell(&self, to: &mut Events, index: usize, what: Delta<'_>) {
        let tokens = self.chat.logprobs.filter(|_| !what.tokens.is_empty());
        let logprobs = tokens.map(|_| of_chat(&self.shared.model.tokenizer, what.tokens));
        let delta = if what.delta.is_null() { json!({}) } else { what.delta };
        self.chunk(to, json!([{"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": what.finish}]), Value::Null);
    }

    fn chunk(&self, to: &mut Events, choices: Value, usage: Value) {
        let mut chunk = json!({"id": self.id, "object": "chat.completion.chunk", "created": self.created, "model": self.shared.name, "choices": choices});
        if self.chat.asked.usage {
            chunk["usage"] = usage;
        }
        to.chunk(&chunk);
    }

    /// Tells what of a choice is surely text; at its end the calls in it, or the rest.
    fn tell_held(&mut self, to: &mut Events, i: usize, finish: Option<&str>) {
        let (held, mut tokens) = (std::mem::take(&mut self.held[i]), std::mem::take(&mut self.tokens[i]));
        let Some(finish) = finish else {
            let plain = match self.chat.wanted {
                Wanted::Nothing => held.len(),
                Wanted::Auto => tools::plain(&held, self.told[i]),
                Wanted::Required(_) => 0,
            };
            if plain > 0 {
                self.tell(to, i, Delta { delta: json!({"content": held[..plain]}), tokens: &tokens, ..Delta::default() });
                tokens.clear();
            }
            self.told[i] |= plain > 0;
            (self.held[i], self.tokens[i]) = (held[plain..].to_owned(), tokens);
            return;
        };
        let (text, calls, finish) = split(&self.chat, held, self.told[i], finish);
        if !text.is_empty() {
            self.tell(to, i, Delta { delta: json!({"content": text}), tokens: &std::mem::take(&mut tokens), ..Delta::default() });
        }
        if !calls.is_empty() {
            self.tell(
                to,
                i,
                Delta { delta: json!({"tool_calls": calls_json(&calls, true)}), tokens: &std::mem::take(&mut tokens), ..Delta::default() },
            );
        }
        self.tell(to, i, Delta { finish: Some(finish), tokens: &tokens, ..Delta::default() });
    }
}

impl Tells for Streamed {
    async fn next(&mut self, to: &mut Events) -> bool {
        match self.speaker.next().await {
            Some(Piece::Failed(why)) => {
                self.shared.stats.failed();
                to.failed(why);
                false
            }
            Some(Piece::Scored(_)) => true,
            Some(Piece::Part(i, part)) => {
                self.held[i].push_str(&part.text);
                self.tokens[i].extend(part.tokens);
                self.tell_held(to, i, part.finish);
                true
            }
            None => {
                if self.chat.asked.usage {
                    self.chunk(to, json!([]), self.speaker.usage.json());
                }
                to.done();
                false
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_have_the_fields_that_they_came_with() {
        let body = json!({"messages": [
            {"role": "developer", "content": "a"},
            {"role": "assistant", "content": null, "tool_calls": [{"function": {"name": "f", "arguments": "{\"x\": 1}"}}]},
        ]});
        let read = messages(&body, 10).expect("two messages");
        assert_eq!(read[0], json!({"role": "system", "content": "a"}));
        assert_eq!(read[1]["tool_calls"][0]["function"]["arguments"], json!({"x": 1}));
    }
}
