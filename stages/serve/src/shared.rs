//! What every request needs: the model, the queue, the bounds.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use axum::http::StatusCode;
use flow_lm::infer::{Constraint, Request};
use flow_lm::{Model, TokenId};
use serde_json::{Value, json};
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};
use tokio::sync::{Semaphore, watch};

use crate::ask::{Asked, Bounds};
use crate::compiled::Compiled;
use crate::error::ApiError;
use crate::queue::Queue;
use crate::stats::Stats;
use crate::work::{Given, Task, Told, Work};

/// What every request needs.
pub struct Shared {
    /// The model.
    pub model: Arc<Model>,
    /// How clients call it.
    pub name: String,
    /// When it was opened, seconds since 1970.
    pub created: u64,
    /// Requests that wait.
    pub queue: Arc<Queue>,
    /// What is counted.
    pub stats: Arc<Stats>,
    /// Slots, and the positions of each.
    pub slots: (usize, usize),
    /// Tokens of given text that can be scored in one go; none where the server does not score.
    pub window: Option<usize>,
    /// What a request may ask for.
    pub bounds: Bounds,
    /// Grammars that were asked for lately.
    pub compiled: Arc<Compiled>,
    /// Turns of what is done aside.
    pub turns: Arc<Semaphore>,
    /// Set when the grace of a stop is over.
    pub ending: watch::Receiver<bool>,
}

/// A request on its way.
pub struct Answering {
    /// What is said for it.
    pub told: UnboundedReceiver<Told>,
    /// Set when nothing more is wanted of a choice.
    pub enough: Arc<[AtomicBool]>,
    /// Windows that are scored first.
    pub scores: usize,
    /// Tokens of all prompts.
    pub prompt: usize,
}

impl Shared {
    /// Puts a request into the queue: `scores` first, then `asked.n` continuations of each of the prompts.
    pub fn submit(
        &self,
        asked: &Asked,
        prompts: &[Vec<TokenId>],
        logprobs: Option<usize>,
        constraint: Option<&Constraint>,
        scores: Vec<Given>,
    ) -> Result<Answering, ApiError> {
        let continued = if asked.max_tokens == Some(0) { &[] } else { prompts };
        let mut tasks: Vec<Task> = Vec::new();
        let count = scores.len();
        tasks.extend(scores.into_iter().map(Task::Score));
        for prompt in continued {
            let one = self.request(asked, prompt, logprobs, constraint)?;
            let choice = tasks.len() - count;
            tasks.extend((0..asked.n).map(|i| {
                Task::Sequence(
                    choice + i,
                    Box::new(Request {
                        draw: one.draw.wrapping_add(i as u64),
                        constraint: one.constraint.as_ref().map(Constraint::fresh),
                        ..one.clone()
                    }),
                )
            }));
        }
        let enough: Arc<[AtomicBool]> = (count..tasks.len()).map(|_| AtomicBool::new(false)).collect();
        let (send, told) = unbounded_channel();
        // Taken are those that are answered: others are counted as refused.
        if !tasks.is_empty() {
            self.queue.put(Work { tasks, told: send, enough: enough.clone() }).map_err(|_| self.busy())?;
        }
        self.stats.request();
        Ok(Answering { told, enough, scores: count, prompt: prompts.iter().map(Vec::len).sum() })
    }

    fn request(
        &self,
        asked: &Asked,
        prompt: &[TokenId],
        logprobs: Option<usize>,
        constraint: Option<&Constraint>,
    ) -> Result<Request, ApiError> {
        let room = self.slots.1;
        let wanted = asked.max_tokens.unwrap_or(1);
        if prompt.len().saturating_add(wanted) > room + 1 || prompt.len() >= room {
            // Clients tell it by OpenAI's words.
            let message = format!(
                "This model's maximum context length is {room} tokens. However, you asked for {} of them: {} in the prompt, {wanted} in the answer.",
                prompt.len().saturating_add(wanted),
                prompt.len()
            );
            return Err(ApiError { code: Some("context_length_exceeded"), ..ApiError::field(asked.prompt, message) });
        }
        Ok(Request {
            prompt: prompt.to_vec(),
            max_tokens: asked.max_tokens.unwrap_or(room + 1 - prompt.len()),
            sampling: asked.sampling.clone(),
            constraint: constraint.cloned(),
            draw: asked.draw,
            ends: self.model.tokenizer.ends().to_vec(),
            logprobs,
        })
    }

    fn busy(&self) -> ApiError {
        let waiting = self.queue.len();
        ApiError {
            retry_after: Some(self.stats.patience(waiting, self.slots.0)),
            code: Some("queue_full"),
            ..ApiError::new(StatusCode::TOO_MANY_REQUESTS, format!("as many requests wait already as may: {waiting}"))
        }
    }

    /// The model as `/v1/models` tells it.
    pub fn object(&self) -> Value {
        let config = &self.model.checkpoint.config;
        json!({
            "id": self.name, "object": "model", "created": self.created, "owned_by": "flow",
            "meta": {"context": self.slots.1, "vocab": config.vocab, "parameters": config.parameters(),
                     "chat_template": self.model.template.is_some()},
        })
    }
}
