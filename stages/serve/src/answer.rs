//! One choice as it is made: text, logprobs beside it, and why it ended.

use flow_lm::infer::{Finish, Logprobs, TextStream};
use flow_lm::token::TokenId;
use flow_lm::tokenizer::Tokenizer;
use serde_json::{Value, json};

/// A part of a choice that can be told.
#[derive(Clone, Debug, Default)]
pub struct Part {
    /// Text; whole characters.
    pub text: String,
    /// The tokens of this text, where logprobs were asked for.
    pub tokens: Vec<TokenLogprobs>,
    /// Set with the last part.
    pub finish: Option<&'static str>,
}

/// A token with its alternatives.
#[derive(Clone, Debug)]
pub struct TokenLogprobs {
    /// The token.
    pub id: TokenId,
    /// Its logprob and the alternatives.
    pub logprobs: Logprobs,
    /// Bytes of the answer before it.
    pub offset: usize,
}

/// A choice that is being made.
pub struct Choice {
    stream: TextStream,
    /// Tokens whose text is held back.
    held: Vec<TokenLogprobs>,
    bytes: usize,
    /// Tokens so far.
    pub tokens: usize,
    /// Whether it has ended.
    pub over: bool,
}

impl Choice {
    /// A choice that ends before any of these texts.
    pub fn new(stop: &[String]) -> Self {
        Self { stream: TextStream::new(stop), held: Vec::new(), bytes: 0, tokens: 0, over: false }
    }

    /// Takes a token.
    pub fn token(&mut self, tokenizer: &Tokenizer, id: TokenId, logprobs: Option<Logprobs>) -> Part {
        self.tokens += 1;
        let bytes = tokenizer.token_bytes(id);
        if let Some(logprobs) = logprobs {
            self.held.push(TokenLogprobs { id, logprobs, offset: self.bytes });
        }
        self.bytes += bytes.len();
        let said = self.stream.push(bytes);
        self.over = said.stopped;
        // What is held back keeps its tokens; those of a text that ended the choice are not told.
        let tokens = if said.text.is_empty() { Vec::new() } else { std::mem::take(&mut self.held) };
        Part { text: said.text, tokens, finish: said.stopped.then_some("stop") }
    }

    /// The end of a choice, as OpenAI names it.
    pub fn end(&mut self, finish: Finish) -> Part {
        self.over = true;
        let finish = if finish == Finish::Stop { "stop" } else { "length" };
        Part { text: self.stream.end(), tokens: std::mem::take(&mut self.held), finish: Some(finish) }
    }
}

/// Logprobs of a chat completion: every token with text and bytes.
pub fn of_chat(tokenizer: &Tokenizer, tokens: &[TokenLogprobs]) -> Value {
    let one = |id: TokenId, logprob: f32| {
        let bytes = tokenizer.token_bytes(id);
        json!({"token": String::from_utf8_lossy(bytes), "logprob": logprob, "bytes": bytes, "id": id.0})
    };
    let all = tokens.iter().map(|t| {
        let mut entry = one(t.id, t.logprobs.own);
        entry["top_logprobs"] = t.logprobs.top.iter().map(|(id, l)| one(*id, *l)).collect();
        entry
    });
    json!({"content": all.collect::<Vec<_>>(), "refusal": null})
}

/// Logprobs of a (text) completion: lists side by side.
pub fn of_text(tokenizer: &Tokenizer, tokens: &[TokenLogprobs], before: usize) -> Value {
    let text = |id: TokenId| String::from_utf8_lossy(tokenizer.token_bytes(id)).into_owned();
    let tops = tokens.iter().map(|t| t.logprobs.top.iter().map(|(id, l)| (text(*id), json!(l))).collect::<serde_json::Map<_, _>>());
    json!({
        "tokens": tokens.iter().map(|t| text(t.id)).collect::<Vec<_>>(),
        "token_logprobs": tokens.iter().map(|t| t.logprobs.own).collect::<Vec<_>>(),
        "top_logprobs": tops.collect::<Vec<_>>(),
        "text_offset": tokens.iter().map(|t| before + t.offset).collect::<Vec<_>>(),
    })
}
