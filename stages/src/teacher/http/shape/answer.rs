//! What comes back: an answer, one that is refused, or a failure; and what all providers' answers share before it is known.

use std::fmt;

use serde_json::Value;

use super::call::Step;
use super::decode::Manner;
use super::token::Drawn;

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
    /// As it came, where it is none of a text.
    pub served: Value,
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

/// What is wrong with an answer that has a text and no logprobs.
pub const NO_LOGPROBS: &str = "no logprobs came";

/// A message, on one line and not too long.
pub(super) fn shortened(message: &str) -> String {
    let mut text = message.split_whitespace().collect::<Vec<_>>().join(" ");
    if let Some((end, _)) = text.char_indices().nth(300) {
        text.truncate(end);
        text.push('…');
    }
    text
}

/// Writes down why an answer ended: the common word for it, or that it was not let through.
pub(super) fn ended(raw: &mut Raw, word: Option<&str>) {
    let word = word.unwrap_or_default();
    raw.finish = match word.to_ascii_lowercase().as_str() {
        "" | "null" | "unknown" | "finish_reason_unspecified" => Finish::Unknown,
        "stop" | "eos" | "eos_token" | "end_turn" | "stop_sequence" | "completed" => Finish::Stop,
        "length" | "max_tokens" | "max_output_tokens" | "model_length" | "model_context_window_exceeded" => Finish::Length,
        "content_filter" | "safety" | "recitation" | "refusal" | "prohibited_content" | "blocklist" | "spii" | "image_safety"
        | "sensitive" => {
            raw.filtered = Some(format!("the provider filtered it (`{word}`)"));
            Finish::Unknown
        }
        other => Finish::Other(other.into()),
    };
}
