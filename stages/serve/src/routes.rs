//! What is served, and what of it every request passes.

use std::sync::Arc;

use std::panic::AssertUnwindSafe;
use std::time::Duration;

use axum::body::Bytes;
use axum::extract::rejection::{BytesRejection, PathRejection};
use axum::extract::{DefaultBodyLimit, FromRequest, Path, Request, State};
use axum::http::{HeaderValue, StatusCode, header};
use axum::middleware::{Next, from_fn, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use flow_lm::TokenId;
use futures_util::FutureExt;
use serde_json::{Value, json};

use crate::aside::aside;
use crate::chat;
use crate::completions;
use crate::doors::{self, Doors};
use crate::error::ApiError;
use crate::id::unique;
use crate::page::page;
use crate::shared::Shared;

/// Bytes of a request's body, at most.
pub const MAX_BODY: usize = 2 << 20;

/// Time that a request's body may take to come.
const BODY_TIME: Duration = Duration::from_secs(30);

/// The router over a model.
pub fn router(shared: &Arc<Shared>, doors: Doors) -> Router {
    Router::new()
        .route("/", get(page))
        .route("/health", get(health))
        .route("/metrics", get(metrics))
        .route("/v1/models", get(models))
        .route("/v1/models/{name}", get(model))
        .route("/v1/completions", post(text_completions))
        .route("/v1/chat/completions", post(chat_completions))
        .route("/tokenize", post(tokenize))
        .route("/detokenize", post(detokenize))
        .route("/flow/model", post(served))
        .fallback(unknown)
        .method_not_allowed_fallback(wrong_method)
        .layer(DefaultBodyLimit::max(MAX_BODY))
        .layer(from_fn_with_state(Arc::new(doors), doors::check))
        .layer(from_fn_with_state(shared.clone(), counted))
        .layer(from_fn(alone))
        .with_state(shared.clone())
}

/// A panic in one request ends that request.
async fn alone(request: Request, next: Next) -> Response {
    let answered = AssertUnwindSafe(next.run(request)).catch_unwind().await;
    answered.unwrap_or_else(|_| ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, "the request failed here").into_response())
}

/// Gives an answer its name, and counts refusals and failures.
async fn counted(State(shared): State<Arc<Shared>>, request: Request, next: Next) -> Response {
    let mut response = next.run(request).await;
    if let Ok(id) = HeaderValue::from_str(&unique("req_")) {
        response.headers_mut().insert("x-request-id", id);
    }
    if response.status().is_server_error() {
        shared.stats.failed();
    } else if response.status().is_client_error() {
        shared.stats.refused();
    }
    response
}

/// A body of JSON, an object. How deep it may be nested is bounded by its reader (128).
struct Body(Value, usize);

impl FromRequest<Arc<Shared>> for Body {
    type Rejection = ApiError;

    async fn from_request(request: Request, state: &Arc<Shared>) -> Result<Self, ApiError> {
        // What says that it is too long is not waited for.
        let said = request.headers().get(header::CONTENT_LENGTH).and_then(|v| v.to_str().ok()?.parse::<usize>().ok());
        if said.is_some_and(|n| n > MAX_BODY) {
            return Err(ApiError::new(StatusCode::PAYLOAD_TOO_LARGE, format!("a body of more than {} MiB", MAX_BODY >> 20)));
        }
        let bytes = tokio::time::timeout(BODY_TIME, Bytes::from_request(request, state)).await;
        let late = |_| ApiError::new(StatusCode::REQUEST_TIMEOUT, format!("the body did not come within {} s", BODY_TIME.as_secs()));
        let bytes = bytes.map_err(late)?.map_err(|e: BytesRejection| ApiError::new(e.status(), e.body_text()))?;
        let size = bytes.len();
        let value = aside(&state.turns, size, move || {
            let bad = |why: String| ApiError::new(StatusCode::BAD_REQUEST, why);
            let value: Value = serde_json::from_slice(&bytes).map_err(|e| bad(format!("the body is not JSON: {e}")))?;
            if value.is_object() { Ok(value) } else { Err(bad("the body is no JSON object".into())) }
        });
        Ok(Self(value.await?, size))
    }
}

async fn chat_completions(State(shared): State<Arc<Shared>>, Body(body, bytes): Body) -> Result<Response, ApiError> {
    chat::complete(shared, body, bytes).await
}

async fn text_completions(State(shared): State<Arc<Shared>>, Body(body, bytes): Body) -> Result<Response, ApiError> {
    completions::complete(shared, body, bytes).await
}

/// All that a student of this model needs to know of it: `provider: flow` of `teacher.http`.
async fn served(State(shared): State<Arc<Shared>>) -> Result<Json<Value>, ApiError> {
    let inside = shared.clone();
    // A large vocabulary takes its time to be written.
    aside(&shared.turns, usize::MAX, move || told(&inside).map(Json)).await
}

fn told(shared: &Shared) -> Result<Value, ApiError> {
    let (model, internal) = (&shared.model, |why: String| ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, why));
    let config = &model.checkpoint.config;
    Ok(json!({
        "flow": 1,
        "tokenizer": model.tokenizer.to_json().map_err(internal)?,
        "roles": model.tokenizer.roles(),
        "chat_template": model.template.as_ref().map(flow_lm::chat::ChatTemplate::source),
        "vocab": config.vocab, "seq": config.seq, "context": shared.slots.1, "window": shared.window,
        "parameters": config.parameters(), "layers": config.layers,
        "candidates": shared.bounds.candidates.min(config.vocab), "taus": shared.bounds.taus,
    }))
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

async fn model(State(shared): State<Arc<Shared>>, name: Result<Path<String>, PathRejection>) -> Result<Json<Value>, ApiError> {
    let Path(name) = name.map_err(|e| ApiError::new(e.status(), e.body_text()))?;
    if name == shared.name {
        return Ok(Json(shared.object()));
    }
    let missing = ApiError::new(StatusCode::NOT_FOUND, format!("there is no model `{name}`: this one is `{}`", shared.name));
    Err(ApiError { code: Some("model_not_found"), ..missing })
}

async fn tokenize(State(shared): State<Arc<Shared>>, Body(body, bytes): Body) -> Result<Json<Value>, ApiError> {
    let turns = shared.turns.clone();
    aside(&turns, bytes, move || {
        let text = body["content"].as_str().or(body["text"].as_str()).ok_or_else(|| ApiError::field("content", "a text"))?;
        let tokenizer = &shared.model.tokenizer;
        let ids = if body["add_special"] == true { tokenizer.context(text) } else { tokenizer.encode(text) };
        let piece = |id: &TokenId| json!({"id": id.0, "bytes": tokenizer.token_bytes(*id)});
        let with_pieces = body["with_pieces"] == true;
        let one = |id: &TokenId| if with_pieces { piece(id) } else { id.0.into() };
        Ok(Json(json!({"tokens": ids.iter().map(one).collect::<Vec<_>>()})))
    })
    .await
}

async fn detokenize(State(shared): State<Arc<Shared>>, Body(body, bytes): Body) -> Result<Json<Value>, ApiError> {
    let turns = shared.turns.clone();
    aside(&turns, bytes, move || {
        let tokenizer = &shared.model.tokenizer;
        let vocab = tokenizer.vocab_size() as u64;
        let one = |v: &Value| v.as_u64().filter(|id| *id < vocab).map(|id| TokenId(id as u32));
        let ids: Option<Vec<TokenId>> = body["tokens"].as_array().and_then(|all| all.iter().map(one).collect());
        let ids = ids.ok_or_else(|| ApiError::field("tokens", format!("a list of ids below {vocab}")))?;
        Ok(Json(json!({"content": tokenizer.decode_lossy(&ids)})))
    })
    .await
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

#[cfg(test)]
mod tests {
    use axum::body::Body as Bytes;
    use hyper::service::Service;
    use hyper_util::service::TowerToHyperService;

    use super::*;

    #[test]
    fn a_panic_ends_one_request() {
        async fn boom() -> Response {
            panic!("what nobody thought of")
        }
        let service = TowerToHyperService::new(Router::<()>::new().route("/boom", get(boom)).route("/", get(page)).layer(from_fn(alone)));
        let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
        let ask = |path: &str| {
            let request = Request::builder().uri(path).body(Bytes::empty()).expect("a request");
            runtime.block_on(service.call(request)).expect("never fails").status()
        };
        assert_eq!((ask("/boom"), ask("/")), (StatusCode::INTERNAL_SERVER_ERROR, StatusCode::OK));
    }
}
