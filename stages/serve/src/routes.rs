//! What is served, and what of it every request passes.

use std::sync::Arc;

use axum::body::Bytes;
use axum::extract::{DefaultBodyLimit, State};
use axum::http::{StatusCode, header};
use axum::middleware::from_fn_with_state;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use flow_lm::TokenId;
use serde_json::{Value, json};

use crate::chat;
use crate::doors::{self, Doors};
use crate::error::ApiError;
use crate::shared::Shared;

/// Bytes of a request's body, at most.
pub const MAX_BODY: usize = 8 << 20;

/// How deep a body's JSON may be nested is bounded by its reader (128).
fn parse(body: &[u8]) -> Result<Value, ApiError> {
    let value: Value =
        serde_json::from_slice(body).map_err(|e| ApiError::new(StatusCode::BAD_REQUEST, format!("the body is not JSON: {e}")))?;
    if value.is_object() { Ok(value) } else { Err(ApiError::new(StatusCode::BAD_REQUEST, "the body is no JSON object")) }
}

/// The router over a model.
pub fn router(shared: &Arc<Shared>, doors: Doors) -> Router {
    Router::new()
        .route("/health", get(health))
        .route("/metrics", get(metrics))
        .route("/v1/models", get(models))
        .route("/v1/models/{name}", get(model))
        .route("/v1/chat/completions", post(chat_completions))
        .route("/tokenize", post(tokenize))
        .route("/detokenize", post(detokenize))
        .fallback(unknown)
        .method_not_allowed_fallback(wrong_method)
        .layer(DefaultBodyLimit::max(MAX_BODY))
        .layer(from_fn_with_state(Arc::new(doors), doors::check))
        .with_state(shared.clone())
}

/// A refusal, counted.
fn counted(shared: &Shared, result: Result<Response, ApiError>) -> Response {
    result.unwrap_or_else(|e| {
        if e.status.is_server_error() {
            shared.stats.failed()
        } else {
            shared.stats.refused()
        }
        e.into_response()
    })
}

async fn chat_completions(State(shared): State<Arc<Shared>>, body: Result<Bytes, axum::extract::rejection::BytesRejection>) -> Response {
    let answered = match body {
        Err(e) => Err(ApiError::new(e.status(), e.body_text())),
        Ok(body) => match parse(&body) {
            Err(e) => Err(e),
            Ok(body) => chat::complete(State(shared.clone()), body).await,
        },
    };
    counted(&shared, answered)
}

async fn health(State(shared): State<Arc<Shared>>) -> Json<Value> {
    Json(json!({"status": "ok", "waiting": shared.queue.len()}))
}

async fn metrics(State(shared): State<Arc<Shared>>) -> Response {
    let text = shared.stats.text(shared.queue.len(), shared.slots.0);
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4")], text).into_response()
}

async fn models(State(shared): State<Arc<Shared>>) -> Json<Value> {
    Json(json!({"object": "list", "data": [shared.object()]}))
}

async fn model(State(shared): State<Arc<Shared>>, axum::extract::Path(name): axum::extract::Path<String>) -> Result<Json<Value>, ApiError> {
    if name == shared.name {
        return Ok(Json(shared.object()));
    }
    let missing = ApiError::new(StatusCode::NOT_FOUND, format!("there is no model `{name}`: this one is `{}`", shared.name));
    Err(ApiError { code: Some("model_not_found"), ..missing })
}

async fn tokenize(State(shared): State<Arc<Shared>>, body: Bytes) -> Result<Json<Value>, ApiError> {
    let body = parse(&body)?;
    let text = body["content"].as_str().or(body["text"].as_str()).ok_or_else(|| ApiError::field("content", "a text"))?;
    let tokenizer = &shared.model.tokenizer;
    let ids = if body["add_special"] == true { tokenizer.context(text) } else { tokenizer.encode(text) };
    let piece = |id: &TokenId| json!({"id": id.0, "bytes": tokenizer.token_bytes(*id)});
    Ok(Json(if body["with_pieces"] == true {
        json!({"tokens": ids.iter().map(piece).collect::<Vec<_>>()})
    } else {
        json!({"tokens": ids.iter().map(|id| id.0).collect::<Vec<_>>()})
    }))
}

async fn detokenize(State(shared): State<Arc<Shared>>, body: Bytes) -> Result<Json<Value>, ApiError> {
    let body = parse(&body)?;
    let vocab = shared.model.tokenizer.vocab_size() as u64;
    let one = |v: &Value| v.as_u64().filter(|id| *id < vocab).map(|id| TokenId(id as u32));
    let ids: Option<Vec<TokenId>> = body["tokens"].as_array().and_then(|all| all.iter().map(one).collect());
    let ids = ids.ok_or_else(|| ApiError::field("tokens", format!("a list of ids below {vocab}")))?;
    Ok(Json(json!({"content": shared.model.tokenizer.decode_lossy(&ids)})))
}

async fn unknown(uri: axum::http::Uri) -> ApiError {
    let offered = "/v1/models, /v1/completions, /v1/chat/completions, /tokenize, /detokenize, /health, /metrics";
    let what = match uri.path() {
        "/v1/embeddings" => "embeddings are not offered".to_owned(),
        p if p.starts_with("/v1/images") => "images are not offered".to_owned(),
        p if p.starts_with("/v1/audio") => "audio is not offered".to_owned(),
        p => format!("there is no {p}"),
    };
    ApiError::new(StatusCode::NOT_FOUND, format!("{what}; served are {offered}"))
}

async fn wrong_method(method: axum::http::Method, uri: axum::http::Uri) -> ApiError {
    ApiError::new(StatusCode::METHOD_NOT_ALLOWED, format!("{} does not take {method}", uri.path()))
}
