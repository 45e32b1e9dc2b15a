//! The door: what a server sent becomes an answer that can be used, one that is refused, or a failure to try again.

use std::fmt;

use serde_json::Value;

use super::align::Around;
use super::decode::{Against, Decoded, Manner, decode};
use super::token::{Drawn, Spelling};
use super::{Call, Expect, Step, anthropic, failure, gemini, json, openai, scoring, stream};
use crate::teacher::http::preset::Shape;
use crate::teacher::http::spec::Spec;

/// Why an answer ended.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Finish {
    /// By itself, or before a text that was asked to end it.
    Stop,
    /// At the most tokens that were asked for.
    Length,
    /// The server does not say.
    #[default]
    Unknown,
    /// The server's own word.
    Other(String),
}

impl fmt::Display for Finish {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Finish::Stop => "stop",
            Finish::Length => "length",
            Finish::Unknown => "unknown",
            Finish::Other(word) => word,
        })
    }
}

/// An answer as a person would have read it. The bytes of its steps join to the text, white space at either end left out.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Answer {
    /// The text.
    pub text: String,
    /// Its tokens, where logprobs came.
    pub steps: Vec<Step>,
    /// The token that ended it, where the server tells it.
    pub end: Option<Step>,
    /// Why it ended.
    pub finish: Finish,
    /// Tokens a second of decoding, where the server measures it.
    pub decode_rate: Option<f64>,
    /// What it shows of the server.
    pub shows: Manner,
}

/// Kinds of refused answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Refused {
    /// The provider did not let it through.
    Filtered,
    /// It is empty: its tokens went into reasoning.
    Reasoning,
    /// Its tokens cannot be told from its text.
    Unreadable,
    /// It is no text.
    Strange,
}

/// An answer that came, was paid for, and cannot be used.
#[derive(Clone, Debug, PartialEq)]
pub struct Refusal {
    /// Of which kind.
    pub kind: Refused,
    /// In words.
    pub why: String,
}

/// What came, whether it can be used or not.
#[derive(Clone, Debug, PartialEq)]
pub struct Reply {
    /// The answer, or why it is refused.
    pub answer: Result<Answer, Refusal>,
    /// Tokens of prompt and answer, as billed.
    pub usage: Option<(u64, u64)>,
    /// The provider's name of this answer.
    pub id: Option<String>,
}

/// No answer came.
#[derive(Clone, Debug, PartialEq)]
pub struct Failure {
    /// The status that the server means, where it answered 200 all the same.
    pub status: Option<u16>,
    /// In words.
    pub why: String,
    /// In what way.
    pub kind: Failed,
}

/// How an exchange came to no answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failed {
    /// The server says so, or sends something strange.
    Said,
    /// A text came without its logprobs: asked again, it would come without them too.
    Bare,
    /// What came is no JSON.
    NoJson,
}

impl Failure {
    /// Something strange.
    pub fn said(why: impl Into<String>) -> Self {
        Self { status: None, why: why.into(), kind: Failed::Said }
    }
    /// What was asked for is missing.
    pub fn bare(why: impl Into<String>) -> Self {
        Self { status: None, why: why.into(), kind: Failed::Bare }
    }
}

/// An answer in the shape that all providers' answers share, before it is checked.
#[derive(Clone, Debug, Default)]
pub struct Raw {
    /// What a person reads.
    pub text: Option<String>,
    /// Its tokens, and perhaps those of reasoning before it.
    pub drawn: Vec<Drawn>,
    /// Whether there is reasoning before it.
    pub reasoning: bool,
    /// The provider's own words where it did not let the answer through.
    pub filtered: Option<String>,
    /// What it is instead of a text.
    pub instead: Option<&'static str>,
    /// Why it ended.
    pub finish: Finish,
    /// Tokens of prompt and answer, as billed.
    pub usage: Option<(u64, u64)>,
    /// The provider's name of this answer.
    pub id: Option<String>,
    /// Tokens a second of decoding.
    pub decode_rate: Option<f64>,
}

/// What came as the answer to a call.
pub fn read(spec: &Spec, manner: &Manner, call: &Call, body: &[u8]) -> Result<Reply, Failure> {
    let value = value(body)?;
    if let Some(failure) = failure::of(&value) {
        return Err(failure);
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
        return if drawn || !answer.text.trim().is_empty() { Err(Failure::bare(super::NO_LOGPROBS)) } else { Ok(Ok(answer)) };
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
