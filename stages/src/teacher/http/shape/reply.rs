//! The door: what a server sent becomes an answer that can be used, one that is refused, or a failure to try again.

use serde_json::Value;

use super::align::Around;
use super::answer::{Answer, Failed, Failure, Finish, NO_LOGPROBS, Raw, Refusal, Refused, Reply};
use super::call::{Call, Expect};
use super::decode::{Against, Decoded, Manner, decode};
use super::token::{Drawn, Spelling};
use super::{anthropic, failure, gemini, json, openai, scoring, served, stream};
use crate::teacher::http::preset::Shape;
use crate::teacher::http::spec::Spec;

/// What came as the answer to a call.
pub fn read(spec: &Spec, manner: &Manner, call: &Call, body: &[u8]) -> Result<Reply, Failure> {
    let value = value(body)?;
    if let Some(failure) = failure::of(&value) {
        return Err(failure);
    }
    if let Expect::Served(expect) = call.expect {
        let usage = openai::usage(&value);
        return Ok(Reply { answer: Ok(Answer { served: served::read(expect, value)?, ..Answer::default() }), usage, id: None });
    }
    if let Some(scored) = scoring::read(&call.expect, manner, &value) {
        let answer = scored?.map(|steps| Answer { steps, ..Answer::default() });
        return Ok(Reply { answer, usage: openai::usage(&value), id: None });
    }
    let raw = match spec.preset().shape {
        Shape::OpenAi => openai::answer(&value)?,
        Shape::Anthropic => anthropic::answer(&value)?,
        Shape::Gemini => gemini::answer(&value)?,
    };
    let (usage, id) = (raw.usage, raw.id.clone());
    Ok(Reply { answer: judge(raw, manner, call)?, usage, id })
}

/// The object in a body, whether it came at once or as a stream.
fn value(body: &[u8]) -> Result<Value, Failure> {
    if stream::is_stream(body) {
        return stream::joined(body).map_err(Failure::said);
    }
    json::parse(body).map_err(|e| Failure { status: None, why: json::what_else(body, &e), kind: Failed::NoJson })
}

/// Whether an answer is what a person would have read.
fn judge(raw: Raw, manner: &Manner, call: &Call) -> Result<Result<Answer, Refusal>, Failure> {
    let refused = |kind, why: String| Ok(Err(Refusal { kind, why }));
    if let Some(words) = raw.filtered {
        return refused(Refused::Filtered, words);
    }
    let probing = call.expect == Expect::Probe;
    let (tokens, drawn) = (raw.usage.map_or(0, |u| u.1).max(raw.drawn.len() as u64), !raw.drawn.is_empty());
    let text = match raw.text {
        Some(text) => text,
        None if probing || raw.reasoning || raw.instead.is_some() || drawn => String::new(),
        None => return Err(Failure::said("the answer has no text")),
    };
    let empty = text.trim().is_empty() && !probing;
    if empty && (raw.reasoning || (raw.finish == Finish::Length && !drawn)) {
        return refused(Refused::Reasoning, format!("it is empty: its {tokens} tokens went into reasoning, raise `max_tokens`"));
    }
    if let Some(instead) = raw.instead.filter(|_| empty) {
        return refused(Refused::Strange, format!("{instead} came instead of a text"));
    }
    let mut answer = Answer { text, finish: raw.finish, decode_rate: raw.decode_rate, ..Answer::default() };
    if call.expect == Expect::Text {
        return Ok(Ok(answer));
    }
    if !raw.drawn.iter().any(|d| d.token.logprob.is_some() || d.top.iter().any(|t| t.logprob.is_some())) {
        return if drawn || !answer.text.trim().is_empty() { Err(Failure::bare(NO_LOGPROBS)) } else { Ok(Ok(answer)) };
    }
    let ended = answer.finish == Finish::Stop;
    let stops = if ended { call.stops() } else { Vec::new() };
    let against =
        Against { text: &answer.text, around: Around { before: true, begin: false, end: ended, cut: !ended }, stops: &stops, manner };
    let decoded = match decode(&raw.drawn, &against) {
        Ok(decoded) => decoded,
        Err(_) if probing => by_itself(&raw.drawn, manner),
        Err(_) if empty => return refused(Refused::Reasoning, format!("it is empty: its {tokens} tokens are no part of a text")),
        Err(why) => return refused(Refused::Unreadable, why),
    };
    (answer.steps, answer.end, answer.shows) = (decoded.steps, decoded.end, decoded.shows);
    Ok(Ok(answer))
}

/// Tokens as they read, for a probe: there a token of reasoning tells as much as one of an answer.
fn by_itself(drawn: &[Drawn], manner: &Manner) -> Decoded {
    let read: Vec<Drawn> = drawn.iter().filter(|d| d.token.spelled(Spelling::Plain).is_some_and(|b| !b.is_empty())).cloned().collect();
    let text: Vec<u8> = read.iter().filter_map(|d| d.token.spelled(Spelling::Plain)).flatten().collect();
    let against = Against { text: &String::from_utf8_lossy(&text), around: Around::default(), stops: &[], manner };
    decode(&read, &against).unwrap_or_default()
}
