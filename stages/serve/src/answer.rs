//! One choice as it is made: text, logprobs beside it, and why it ended.

use flow_lm::infer::{Finish, Logprobs, TextStream};
use flow_lm::token::TokenId;
use flow_lm::tokenizer::Tokenizer;
use serde_json::{Map, Value, json};

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
    /// Its logprob and the alternatives; the first token of a text has none.
    pub logprobs: Option<Logprobs>,
    /// Characters of the text before it.
    pub offset: usize,
}

/// A choice that is being made.
pub struct Choice {
    stream: TextStream,
    /// Tokens whose text is held back.
    held: Vec<TokenLogprobs>,
    chars: usize,
    /// Tokens so far.
    pub ids: Vec<TokenId>,
    /// Whether it has ended.
    pub over: bool,
}

impl Choice {
    /// A choice that ends before any of these texts.
    pub fn new(stop: &[String]) -> Self {
        Self { stream: TextStream::new(stop), held: Vec::new(), chars: 0, ids: Vec::new(), over: false }
    }

    /// Takes a token.
    pub fn token(&mut self, tokenizer: &Tokenizer, id: TokenId, logprobs: Option<Logprobs>) -> Part {
        self.ids.push(id);
        let bytes = tokenizer.token_bytes(id);
        if logprobs.is_some() {
            self.held.push(TokenLogprobs { id, logprobs, offset: self.chars });
        }
        self.chars += chars(bytes);
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

/// Characters that begin in these bytes: a token may hold only a part of one.
pub fn chars(bytes: &[u8]) -> usize {
    bytes.iter().filter(|b| **b & 0xc0 != 0x80).count()
}

/// A token as a text; one that is no whole characters by its bytes, as OpenAI writes it, so that no two read alike.
fn shown(tokenizer: &Tokenizer, id: TokenId) -> String {
    let bytes = tokenizer.token_bytes(id);
    let escaped = || bytes.iter().fold("bytes:".to_owned(), |text, b| text + &format!("\\x{b:02x}"));
    std::str::from_utf8(bytes).map_or_else(|_| escaped(), str::to_owned)
}

/// Logprobs of a chat completion: every token with text and bytes.
pub fn of_chat(tokenizer: &Tokenizer, tokens: &[TokenLogprobs]) -> Value {
    let one = |id: TokenId, logprob: f32| json!({"token": shown(tokenizer, id), "logprob": logprob, "bytes": tokenizer.token_bytes(id)});
    let all = tokens.iter().filter_map(|t| {
        let logprobs = t.logprobs.as_ref()?;
        let mut entry = one(t.id, logprobs.own);
        entry["top_logprobs"] = logprobs.top.iter().map(|(id, l)| one(*id, *l)).collect();
        Some(entry)
    });
    json!({"content": all.collect::<Vec<_>>(), "refusal": null})
}

/// Logprobs of a (text) completion: lists side by side; the token's own logprob is among the alternatives.
pub fn of_text(tokenizer: &Tokenizer, tokens: &[TokenLogprobs], before: usize) -> Value {
    let tops = |t: &TokenLogprobs| {
        let logprobs = t.logprobs.as_ref()?;
        let own = Some((t.id, logprobs.own)).filter(|_| !logprobs.top.is_empty());
        Some(own.into_iter().chain(logprobs.top.iter().copied()).map(|(id, l)| (shown(tokenizer, id), json!(l))).collect::<Map<_, _>>())
    };
    json!({
        "tokens": tokens.iter().map(|t| shown(tokenizer, t.id)).collect::<Vec<_>>(),
        "token_logprobs": tokens.iter().map(|t| t.logprobs.as_ref().map(|l| l.own)).collect::<Vec<_>>(),
        "top_logprobs": tokens.iter().map(tops).collect::<Vec<_>>(),
        "text_offset": tokens.iter().map(|t| before + t.offset).collect::<Vec<_>>(),
    })
}
