//! A request's answers: as they come, or whole.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use flow_lm::infer::Finish;

use crate::answer::{Choice, Part};
use crate::shared::{Answering, Shared};
use crate::worker::Told;

/// Tokens that were read and said.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Of the prompt.
    pub prompt: usize,
    /// Of them, those that a slot held.
    pub reused: usize,
    /// Of all answers.
    pub said: usize,
}

/// What comes next.
pub enum Piece {
    /// A part of a choice.
    Part(usize, Part),
    /// Nothing more will come: the server cannot answer.
    Failed(String),
}

/// The answers of a request as they are made. Dropped, it ends what is left of them.
pub struct Speaker {
    shared: Arc<Shared>,
    answering: Answering,
    choices: Vec<Choice>,
    begun: Instant,
    first: bool,
    /// So far.
    pub usage: Usage,
}

impl Speaker {
    /// The answers of a request that was submitted.
    pub fn new(shared: Arc<Shared>, answering: Answering, stop: &[String]) -> Self {
        let choices = answering.enough.iter().map(|_| Choice::new(stop)).collect();
        let usage = Usage { prompt: answering.prompt, ..Usage::default() };
        Self { shared, answering, choices, begun: Instant::now(), first: true, usage }
    }

    /// The next part; none when all choices have ended.
    pub async fn next(&mut self) -> Option<Piece> {
        while self.choices.iter().any(|c| !c.over) {
            let Some(told) = self.answering.told.recv().await else {
                return self.fail("the server is stopping".to_owned());
            };
            match told {
                Told::Failed(why) => return self.fail(why),
                Told::Token { choice, .. } | Told::End { choice, .. } if self.choices[choice].over => {}
                Told::Token { choice, token, logprobs } => {
                    if std::mem::take(&mut self.first) {
                        self.shared.stats.first_token(self.begun.elapsed());
                    }
                    self.usage.said += 1;
                    let part = self.choices[choice].token(&self.shared.model.tokenizer, token, logprobs);
                    if part.finish.is_some() {
                        self.answering.enough[choice].store(true, Ordering::Relaxed);
                        self.ended(0);
                    }
                    if !part.text.is_empty() || part.finish.is_some() {
                        return Some(Piece::Part(choice, part));
                    }
                }
                Told::End { finish: Finish::Stuck, .. } => {
                    return self.fail("the grammar or schema could not be followed to its end within its bounds".to_owned());
                }
                Told::End { choice, finish, reused } => {
                    let part = self.choices[choice].end(finish);
                    self.ended(reused);
                    return Some(Piece::Part(choice, part));
                }
            }
        }
        None
    }

    fn ended(&mut self, reused: usize) {
        self.usage.reused = self.usage.reused.max(reused);
        self.shared.stats.prompt(self.usage.prompt, reused);
        self.shared.stats.answered(self.begun.elapsed());
    }

    fn fail(&mut self, why: String) -> Option<Piece> {
        self.choices.iter_mut().for_each(|c| c.over = true);
        self.shared.stats.failed();
        Some(Piece::Failed(why))
    }
}

impl Drop for Speaker {
    fn drop(&mut self) {
        if self.choices.iter().any(|c| !c.over) {
            self.shared.stats.cancelled();
        }
        self.answering.enough.iter().for_each(|e| e.store(true, Ordering::Relaxed));
    }
}
