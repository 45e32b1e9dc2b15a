//! Work that takes long leaves the thread that speaks to all clients.

use axum::http::StatusCode;

use crate::error::ApiError;

/// Bytes of a request whose reading, cutting into tokens included, takes no time that anyone would notice.
const SHORT: usize = 32 << 10;

/// Does something with a request of so many bytes: here, or where nobody waits.
pub async fn aside<T: Send + 'static>(bytes: usize, work: impl FnOnce() -> Result<T, ApiError> + Send + 'static) -> Result<T, ApiError> {
    if bytes <= SHORT {
        return work();
    }
    let failed = |_| ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, "the request failed here");
    tokio::task::spawn_blocking(work).await.map_err(failed)?
}
