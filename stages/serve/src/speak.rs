//! A request's answers as they come.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use flow_lm::TokenId;
use flow_lm::infer::Finish;
use serde_json::{Value, json};
use tokio::sync::watch;

use crate::answer::{Choice, Part};
use crate::ask::Asked;
use crate::shared::{Answering, Shared};
use crate::work::{Scored, Told};

/// Tokens that were read and said.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Of the prompts.
    pub prompt: usize,
    /// Of them, those that a slot held.
    pub reused: usize,
    /// Of all answers.
    pub said: usize,
}

impl Usage {
    /// As clients read it.
    pub fn json(self) -> Value {
        json!({"prompt_tokens": self.prompt, "completion_tokens": self.said, "total_tokens": self.prompt + self.said,
               "prompt_tokens_details": {"cached_tokens": self.reused}})
    }
}

/// What comes next.
pub enum Piece {
    /// A part of a choice.
    Part(usize, Part),
    /// The next window of given text, before all choices.
    Scored(Box<Scored>),
    /// Nothing more will come: the server cannot answer.
    Failed(String),
}

/// The answers of a request as they are made. Dropped, it ends what is left of them.
pub struct Speaker {
    shared: Arc<Shared>,
    answering: Answering,
    choices: Vec<Choice>,
    /// Choices of a prompt.
    n: usize,
    ending: watch::Receiver<bool>,
    begun: Instant,
    first: bool,
    /// So far.
    pub usage: Usage,
}

impl Speaker {
    /// The answers of a request that was submitted.
    pub fn new(shared: Arc<Shared>, answering: Answering, asked: &Asked) -> Self {
        let choices = answering.enough.iter().map(|_| Choice::new(&asked.stop)).collect();
        let usage = Usage { prompt: answering.prompt, ..Usage::default() };
        let ending = shared.ending.clone();
        Self { shared, answering, choices, n: asked.n, ending, begun: Instant::now(), first: true, usage }
    }

    /// Tokens of a choice so far.
    pub fn ids(&self, choice: usize) -> &[TokenId] {
        self.choices.get(choice).map_or(&[], |c| &c.ids)
    }

    /// Whether something is still to come.
    fn is_open(&self) -> bool {
        self.answering.scores > 0 || self.choices.iter().any(|c| !c.over)
    }

    /// The next piece; none when all choices have ended.
    pub async fn next(&mut self) -> Option<Piece> {
        while self.is_open() {
            let told = tokio::select! {
                told = self.answering.told.recv() => told,
                // Its sender is gone only when the server is.
                _ = self.ending.wait_for(|over| *over) => None,
            };
            let Some(told) = told else { return self.fail("the server is stopping".to_owned()) };
            if let Some(piece) = self.take(told) {
                return Some(piece);
            }
        }
        None
    }

    fn take(&mut self, told: Told) -> Option<Piece> {
        match told {
            Told::Failed(why) => self.fail(why),
            Told::Scored(scored) => {
                self.answering.scores -= 1;
                Some(Piece::Scored(scored))
            }
            // The first of a prompt's choices tells what was there before the request.
            Told::Begun { choice, reused } => {
                self.usage.reused += if choice % self.n == 0 { reused } else { 0 };
                None
            }
            Told::Token { choice, .. } | Told::End { choice, .. } if self.choices[choice].over => None,
            Told::Token { choice, token, logprobs } => {
                if std::mem::take(&mut self.first) {
                    self.shared.stats.first_token(self.begun.elapsed());
                }
                self.usage.said += 1;
                let part = self.choices[choice].token(&self.shared.model.tokenizer, token, logprobs);
                if part.finish.is_some() {
                    self.answering.enough[choice].store(true, Ordering::Relaxed);
                    self.shared.stats.answered(self.begun.elapsed());
                }
                (!part.text.is_empty() || part.finish.is_some()).then_some(Piece::Part(choice, part))
            }
            Told::End { finish: Finish::Stuck, .. } => {
                self.fail("the grammar or schema could not be followed to its end within its bounds".to_owned())
            }
            Told::End { choice, finish } => {
                let part = self.choices[choice].end(finish);
                self.shared.stats.answered(self.begun.elapsed());
                Some(Piece::Part(choice, part))
            }
        }
    }

    fn fail(&mut self, why: String) -> Option<Piece> {
        self.answering.scores = 0;
        self.choices.iter_mut().for_each(|c| c.over = true);
        Some(Piece::Failed(why))
    }
}

impl Drop for Speaker {
    fn drop(&mut self) {
        if self.is_open() {
            self.shared.stats.cancelled();
        }
        self.answering.enough.iter().for_each(|e| e.store(true, Ordering::Relaxed));
    }
}
