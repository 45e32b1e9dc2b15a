//! Work that takes long leaves the thread that speaks to all clients.

use std::sync::Arc;

use axum::http::StatusCode;
use tokio::sync::Semaphore;

use crate::error::ApiError;

/// Bytes of a request whose reading, cutting into tokens included, takes no time that anyone would notice.
const SHORT: usize = 32 << 10;

/// Does something with a request of so many bytes: here, or where nobody waits, as many at a time as there are
/// turns. Its turn lasts until it is done,
/// whether the client is still there or not.
pub async fn aside<T: Send + 'static>(
    turns: &Arc<Semaphore>,
    bytes: usize,
    work: impl FnOnce() -> Result<T, ApiError> + Send + 'static,
) -> Result<T, ApiError> {
    if bytes <= SHORT {
        return work();
    }
    let turn = turns.clone().acquire_owned().await.map_err(|_| failed())?;
    let done = tokio::task::spawn_blocking(move || {
        let done = work();
        drop(turn);
        done
    });
    done.await.map_err(|_| failed())?
}

fn failed() -> ApiError {
    ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, "the request failed here")
}
