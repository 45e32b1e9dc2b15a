//! What every request needs: the model, the queue, the bounds.

use std::sync::atomic::AtomicBool;
use std::sync::{Arc, OnceLock};

use axum::http::StatusCode;
use flow_lm::infer::{Constraint, Grammar, Vocabulary};
use flow_lm::{Model, TokenId};
use serde_json::Value;
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};

use crate::ask::{Asked, Bounds};
use crate::error::ApiError;
use crate::queue::Queue;
use crate::stats::Stats;
use crate::worker::{Told, Work};

/// What every request needs.
pub struct Shared {
    /// The model.
    pub model: Model,
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
    /// What a request may ask for.
    pub bounds: Bounds,
    /// Prepared with the first grammar.
    pub vocabulary: OnceLock<Result<Vocabulary, String>>,
}

/// A request on its way.
pub struct Answering {
    /// What is said for it.
    pub told: UnboundedReceiver<Told>,
    /// Set when nothing more is wanted of a choice.
    pub enough: Arc<[AtomicBool]>,
    /// Tokens of the prompt.
    pub prompt: usize,
}

impl Shared {
    /// Compiles a grammar over the model's tokens: bounded, a fraction of a second.
    pub fn constraint(&self, grammar: &Grammar) -> Result<Constraint, ApiError> {
        let vocabulary = self
            .vocabulary
            .get_or_init(|| Vocabulary::new(&self.model.tokenizer, self.model.checkpoint.config.vocab).map_err(|e| e.to_string()));
        let vocabulary = vocabulary.as_ref().map_err(|why| ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, why.clone()))?;
        vocabulary.compile(grammar).map_err(|e| ApiError::field("response_format", e.to_string()))
    }

    /// Puts a request into the queue.
    pub fn submit(
        &self,
        asked: &Asked,
        prompt: &[TokenId],
        logprobs: Option<usize>,
        constraint: Option<&Constraint>,
    ) -> Result<Answering, ApiError> {
        let room = self.slots.1;
        let wanted = asked.max_tokens.unwrap_or(1).max(1);
        if prompt.len() + wanted > room + 1 {
            let message = format!("{} tokens of prompt and {wanted} of the answer never fit into a context of {room}", prompt.len());
            return Err(ApiError { code: Some("context_length_exceeded"), ..ApiError::field("messages", message) });
        }
        let request = flow_lm::infer::Request {
            prompt: prompt.to_vec(),
            max_tokens: asked.max_tokens.unwrap_or(room + 1 - prompt.len()),
            sampling: asked.sampling.clone(),
            constraint: constraint.cloned(),
            draw: 0,
            ends: self.model.tokenizer.ends().to_vec(),
            logprobs,
        };
        let sequences = (0..asked.n).map(|i| flow_lm::infer::Request { draw: i as u64, ..request.clone() }).collect();
        let enough: Arc<[AtomicBool]> = (0..asked.n).map(|_| AtomicBool::new(false)).collect();
        let (send, told) = unbounded_channel();
        self.stats.request();
        self.queue.put(Work { sequences, told: send, enough: enough.clone() }).map_err(|_| self.busy())?;
        Ok(Answering { told, enough, prompt: prompt.len() })
    }

    fn busy(&self) -> ApiError {
        let message = format!("{} requests wait already", self.queue.len());
        ApiError {
            retry_after: Some(self.stats.patience(self.queue.len(), self.slots.0)),
            ..ApiError::new(StatusCode::TOO_MANY_REQUESTS, message)
        }
    }

    /// The model of a request: any name is taken, as there is one model.
    pub fn object(&self) -> Value {
        let config = &self.model.checkpoint.config;
        serde_json::json!({
            "id": self.name, "object": "model", "created": self.created, "owned_by": "flow",
            "meta": {"context": self.slots.1, "vocab": config.vocab, "parameters": config.parameters(),
                     "chat_template": self.model.template.is_some()},
        })
    }
}
