//! Grammars, compiled once each: a client asks for the same one again and again.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

use axum::http::StatusCode;
use flow_lm::infer::{Constraint, Grammar, Vocabulary};
use tokio::sync::Semaphore;

use crate::error::ApiError;
use crate::shared::Shared;

/// Grammars that are kept.
const KEPT: usize = 32;

/// Grammars that are compiled at a time: what they may take of time and memory is bounded for each.
const TOGETHER: usize = 2;

/// Grammars that were asked for lately, compiled.
pub struct Compiled {
    /// By what they were compiled from, the latest last.
    kept: Mutex<VecDeque<(blake3::Hash, Constraint)>>,
    turns: Arc<Semaphore>,
}

impl Default for Compiled {
    fn default() -> Self {
        Self { kept: Mutex::default(), turns: Arc::new(Semaphore::new(TOGETHER)) }
    }
}

impl Compiled {
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

/// The constraint of a grammar over the model's tokens, at its beginning; `param` is the field that asks for it.
pub async fn constraint(shared: &Arc<Shared>, grammar: Grammar, param: &'static str) -> Result<Constraint, ApiError> {
    // Its debug form holds all that it says.
    let hash = blake3::hash(format!("{grammar:?}").as_bytes());
    if let Some(found) = shared.compiled.find(&hash) {
        return Ok(found);
    }
    let internal = |why: &str| ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, why);
    let turn = shared.compiled.turns.clone().acquire_owned().await.map_err(|_| internal("the server is stopping"))?;
    // Another request may have asked for the same.
    if let Some(found) = shared.compiled.find(&hash) {
        return Ok(found);
    }
    let inside = shared.clone();
    let compiled = tokio::task::spawn_blocking(move || {
        let constraint = compile(&inside, &grammar, param);
        // Its turn lasts until it is done, whether the client is still there or not.
        drop(turn);
        constraint
    });
    let constraint = compiled.await.map_err(|_| internal("the grammar could not be compiled"))??;
    shared.compiled.keep(hash, constraint.fresh());
    Ok(constraint)
}

fn compile(shared: &Shared, grammar: &Grammar, param: &str) -> Result<Constraint, ApiError> {
    let model = &shared.model;
    let prepare = || Vocabulary::new(&model.tokenizer, model.checkpoint.config.vocab).map_err(|e| e.to_string());
    let vocabulary = shared.vocabulary.get_or_init(prepare).as_ref();
    let vocabulary = vocabulary.map_err(|why| ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, why.clone()))?;
    vocabulary.compile(grammar).map_err(|e| ApiError::field(param, e.to_string()))
}
