//! Answers as a stream of server-sent events.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::time::Duration;

use axum::http::StatusCode;
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use futures_util::stream;
use serde_json::Value;

use crate::error::ApiError;

/// A comment is sent where nothing was for so long, so that nobody between takes the connection for dead.
const KEEP_ALIVE: Duration = Duration::from_secs(15);

/// What tells a stream's events.
pub trait Tells: Send + 'static {
    /// Waits for what comes next and puts its events into `to`; `false` at the end of all.
    fn next(&mut self, to: &mut Events) -> impl Future<Output = bool> + Send;
}

/// Events that are ready.
#[derive(Default)]
pub struct Events(VecDeque<Event>);

impl Events {
    /// One chunk.
    pub fn chunk(&mut self, chunk: &Value) {
        self.0.push_back(Event::default().data(chunk.to_string()));
    }

    /// What ends a stream that was answered.
    pub fn done(&mut self) {
        self.0.push_back(Event::default().data("[DONE]"));
    }

    /// What ends a stream that cannot be answered.
    pub fn failed(&mut self, why: String) {
        self.chunk(&ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, why).body());
    }
}

/// The response of a stream; `first` is ready at once.
pub fn streamed(state: impl Tells, first: Events) -> Response {
    let events = stream::unfold((state, first, true), |(mut state, mut ready, mut more)| async move {
        loop {
            if let Some(event) = ready.0.pop_front() {
                return Some((Ok::<_, Infallible>(event), (state, ready, more)));
            }
            if !more {
                return None;
            }
            more = state.next(&mut ready).await;
        }
    });
    Sse::new(events).keep_alive(KeepAlive::new().interval(KEEP_ALIVE)).into_response()
}
