//! Grammars, compiled once each: a client asks for the same one again and again.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use axum::http::StatusCode;
use flow_lm::Model;
use flow_lm::infer::{Constraint, Grammar, Vocabulary};
use tokio::sync::Semaphore;

use crate::error::ApiError;

/// Grammars that are kept.
const KEPT: usize = 32;

/// Grammars that are compiled at a time: what they may take of time and memory is bounded for each.
const TOGETHER: usize = 2;

/// Grammars over a model's tokens that were asked for lately.
pub struct Compiled {
    /// Prepared with the first grammar.
    vocabulary: OnceLock<Result<Vocabulary, String>>,
    /// By what they were compiled from, the latest last.
    kept: Mutex<VecDeque<(blake3::Hash, Constraint)>>,
    turns: Arc<Semaphore>,
}

impl Default for Compiled {
    fn default() -> Self {
        Self { vocabulary: OnceLock::new(), kept: Mutex::default(), turns: Arc::new(Semaphore::new(TOGETHER)) }
    }
}

impl Compiled {
    /// The constraint of a grammar over the model's tokens, at its beginning; `param` is the field that asks for it.
    pub async fn constraint(self: &Arc<Self>, model: &Arc<Model>, grammar: Grammar, param: &'static str) -> Result<Constraint, ApiError> {
        // Its debug form holds all that it says.
        let hash = blake3::hash(format!("{grammar:?}").as_bytes());
        if let Some(found) = self.find(&hash) {
            return Ok(found);
        }
        let turn = self.turns.clone().acquire_owned().await.map_err(|_| internal("the server is stopping"))?;
        // Another request may have asked for the same.
        if let Some(found) = self.find(&hash) {
            return Ok(found);
        }
        let (inside, model) = (self.clone(), model.clone());
        let compiled = tokio::task::spawn_blocking(move || {
            let constraint = inside.compile(&model, &grammar, param);
            // Its turn lasts until it is done, whether the client is still there or not.
            drop(turn);
            constraint
        });
        let constraint = compiled.await.map_err(|_| internal("the grammar could not be compiled"))??;
        self.keep(hash, constraint.fresh());
        Ok(constraint)
    }

    fn compile(&self, model: &Model, grammar: &Grammar, param: &str) -> Result<Constraint, ApiError> {
        let prepare = || Vocabulary::new(&model.tokenizer, model.checkpoint.config.vocab).map_err(|e| e.to_string());
        let vocabulary = self.vocabulary.get_or_init(prepare).as_ref().map_err(|why| internal(why))?;
        vocabulary.compile(grammar).map_err(|e| ApiError::field(param, e.to_string()))
    }

    fn find(&self, hash: &blake3::Hash) -> Option<Constraint> {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let at = kept.iter().position(|(h, _)| h == hash)?;
        let found = kept.remove(at)?;
        // What one answer does to its automaton is nobody else's.
        let fresh = found.1.fresh();
        kept.push_back(found);
        Some(fresh)
    }

    fn keep(&self, hash: blake3::Hash, constraint: Constraint) {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        kept.push_back((hash, constraint));
        if kept.len() > KEPT {
            kept.pop_front();
        }
    }
}

fn internal(why: &str) -> ApiError {
    ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, why)
}
