//! `/v1/chat/completions`.

use std::convert::Infallible;
use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::sse::{Event, Sse};
use axum::response::{IntoResponse, Response};
use flow_lm::infer::Grammar;
use futures_util::stream;
use serde_json::{Value, json};

use crate::answer::{TokenLogprobs, of_chat};
use crate::ask::{Asked, content};
use crate::error::ApiError;
use crate::id::{now, unique};
use crate::shared::Shared;
use crate::speak::{Piece, Speaker, Usage};
use crate::tools::{self, Call, Wanted};

/// What is asked beside what every completion has.
struct Chat {
    asked: Asked,
    tools: Vec<Value>,
    wanted: Wanted,
    logprobs: Option<usize>,
}

/// Answers a conversation.
pub async fn complete(State(shared): State<Arc<Shared>>, body: Value) -> Result<Response, ApiError> {
    let vocab = shared.model.checkpoint.config.vocab;
    let mut asked = Asked::read(&body, &shared.bounds, vocab)?;
    let (tools, wanted) = tools::read(&body, shared.bounds.parts)?;
    let logprobs = logprobs(&body, shared.bounds.logprobs)?;
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
    let messages = messages(&body, shared.bounds.parts)?;
    let text = match template {
        // A base model continues what was said.
        None => messages.iter().filter_map(|m| m["content"].as_str()).collect(),
        Some(template) => template.render(&messages, Some(&tools[..]).filter(|t| knows && !t.is_empty() && wanted != Wanted::Nothing))?,
    };
    let prompt = shared.model.tokenizer.context(&text);
    let constraint = asked.grammar.as_ref().map(|g| shared.constraint(g)).transpose()?;
    let answering = shared.submit(&asked, &prompt, logprobs, constraint.as_ref())?;
    let speaker = Speaker::new(shared.clone(), answering, &asked.stop);
    let chat = Chat { asked, tools, wanted, logprobs };
    Ok(if chat.asked.stream { streamed(shared, chat, speaker).into_response() } else { whole(&shared, &chat, speaker).await? })
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
            found => {
                let why = format!("`system`, `developer`, `user`, `assistant` or `tool`, not {found:?}");
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
        for call in out["tool_calls"].as_array_mut().into_iter().flatten() {
            let read = call["function"]["arguments"].as_str().and_then(|a| serde_json::from_str::<Value>(a).ok());
            if let Some(object) = read {
                call["function"]["arguments"] = object;
            }
        }
        Ok(out)
    };
    given.iter().enumerate().map(one).collect()
}

/// Text and calls of a whole answer.
fn split(chat: &Chat, text: String) -> (String, Vec<Call>) {
    match chat.wanted {
        Wanted::Nothing => (text, Vec::new()),
        _ => tools::parse(&text, &chat.tools),
    }
}

fn calls_json(calls: &[Call], indexed: bool) -> Value {
    let one = |(i, call): (usize, &Call)| {
        let mut out = json!({"id": unique("call"), "type": "function", "function": {"name": call.name, "arguments": call.arguments}});
        if indexed {
            out["index"] = i.into();
        }
        out
    };
    calls.iter().enumerate().map(one).collect()
}

fn usage_json(usage: Usage) -> Value {
    json!({"prompt_tokens": usage.prompt, "completion_tokens": usage.said, "total_tokens": usage.prompt + usage.said,
           "prompt_tokens_details": {"cached_tokens": usage.reused}})
}

async fn whole(shared: &Shared, chat: &Chat, mut speaker: Speaker) -> Result<Response, ApiError> {
    let mut made: Vec<(String, Vec<TokenLogprobs>, &str)> = vec![(String::new(), Vec::new(), "length"); chat.asked.n];
    while let Some(piece) = speaker.next().await {
        match piece {
            Piece::Failed(why) => return Err(ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, why)),
            Piece::Part(i, part) => {
                made[i].0.push_str(&part.text);
                made[i].1.extend(part.tokens);
                made[i].2 = part.finish.unwrap_or(made[i].2);
            }
        }
    }
    let choice = |(i, (text, tokens, finish)): (usize, (String, Vec<TokenLogprobs>, &str))| {
        let (text, calls) = split(chat, text);
        let mut message = json!({"role": "assistant", "content": text, "refusal": null});
        if !calls.is_empty() {
            message["tool_calls"] = calls_json(&calls, false);
            message["content"] = Some(text).filter(|t| !t.is_empty()).into();
        }
        let logprobs = chat.logprobs.map(|_| of_chat(&shared.model.tokenizer, &tokens));
        json!({"index": i, "message": message, "logprobs": logprobs, "finish_reason": if calls.is_empty() { finish } else { "tool_calls" }})
    };
    let choices: Vec<Value> = made.into_iter().enumerate().map(choice).collect();
    let body = json!({"id": unique("chatcmpl"), "object": "chat.completion", "created": now(), "model": shared.name,
                      "choices": choices, "usage": usage_json(speaker.usage)});
    Ok(Json(body).into_response())
}

/// The state of a stream.
struct Streamed {
    shared: Arc<Shared>,
    chat: Chat,
    speaker: Speaker,
    id: String,
    created: u64,
    /// Events that are ready.
    ready: std::collections::VecDeque<Event>,
    /// What of each choice is not told yet, where it may be a call.
    held: Vec<String>,
    over: bool,
}

fn streamed(shared: Arc<Shared>, chat: Chat, speaker: Speaker) -> Response {
    let n = chat.asked.n;
    let mut state = Streamed {
        shared,
        chat,
        speaker,
        id: unique("chatcmpl"),
        created: now(),
        ready: Default::default(),
        held: vec![String::new(); n],
        over: false,
    };
    for i in 0..n {
        state.push(i, &json!({"role": "assistant", "content": ""}), None, None);
    }
    let events = stream::unfold(state, |mut state| async move {
        loop {
            if let Some(event) = state.ready.pop_front() {
                return Some((Ok::<_, Infallible>(event), state));
            }
            if state.over {
                return None;
            }
            state.advance().await;
        }
    });
    Sse::new(events).into_response()
}

impl Streamed {
    fn push(&mut self, index: usize, delta: &Value, logprobs: Option<Value>, finish: Option<&str>) {
        let choices = json!([{"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": finish}]);
        self.chunk(choices, Value::Null);
    }

    fn chunk(&mut self, choices: Value, usage: Value) {
        let mut chunk = json!({"id": self.id, "object": "chat.completion.chunk", "created": self.created, "model": self.shared.name, "choices": choices});
        if self.chat.asked.usage {
            chunk["usage"] = usage;
        }
        self.ready.push_back(Event::default().data(chunk.to_string()));
    }

    async fn advance(&mut self) {
        match self.speaker.next().await {
            Some(Piece::Failed(why)) => {
                let error = ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, why);
                self.ready.push_back(Event::default().data(error.body().to_string()));
                self.over = true;
            }
            Some(Piece::Part(i, part)) => {
                let logprobs = self.chat.logprobs.map(|_| of_chat(&self.shared.model.tokenizer, &part.tokens));
                if self.chat.wanted == Wanted::Nothing {
                    if !part.text.is_empty() {
                        self.push(i, &json!({"content": part.text}), logprobs, None);
                    }
                    part.finish.into_iter().for_each(|finish| self.push(i, &json!({}), None, Some(finish)));
                    return;
                }
                self.held[i].push_str(&part.text);
                self.tell_held(i, part.finish);
            }
            None => {
                if self.chat.asked.usage {
                    let usage = usage_json(self.speaker.usage);
                    self.chunk(json!([]), usage);
                }
                self.ready.push_back(Event::default().data("[DONE]"));
                self.over = true;
            }
        }
    }

    /// Tells what of a choice is surely text; at its end the calls in it, or the rest.
    fn tell_held(&mut self, i: usize, finish: Option<&str>) {
        let Some(finish) = finish else {
            let plain = if self.chat.wanted == Wanted::Auto { tools::plain(&self.held[i]) } else { 0 };
            if plain > 0 {
                let text: String = self.held[i].drain(..plain).collect();
                self.push(i, &json!({"content": text}), None, None);
            }
            return;
        };
        let (text, calls) = tools::parse(&std::mem::take(&mut self.held[i]), &self.chat.tools);
        if !text.is_empty() {
            self.push(i, &json!({"content": text}), None, None);
        }
        if !calls.is_empty() {
            self.push(i, &json!({"tool_calls": calls_json(&calls, true)}), None, None);
        }
        self.push(i, &json!({}), None, Some(if calls.is_empty() { finish } else { "tool_calls" }));
    }
}
