//! Who may ask: `Host` and `Origin` on loopback (DNS rebinding), and the key.

use axum::extract::{Request, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use std::sync::Arc;

use crate::error::ApiError;

/// What is asked of a request before it is read.
#[derive(Clone)]
pub struct Doors {
    /// Whether only names of this machine may stand in `Host` and `Origin`.
    pub loopback: bool,
    /// Hash of the key: equal hashes are compared in constant time.
    pub key: Option<blake3::Hash>,
}

/// Lets a request in, or says why not.
pub async fn check(State(doors): State<Arc<Doors>>, request: Request, next: Next) -> Response {
    match doors.refuses(request.headers(), request.uri().path()) {
        Some(error) => error.into_response(),
        None => next.run(request).await,
    }
}

impl Doors {
    fn refuses(&self, headers: &HeaderMap, path: &str) -> Option<ApiError> {
        let text = |name| headers.get(name).map(|v| v.to_str().unwrap_or("\u{fffd}"));
        if self.loopback {
            let forbidden = |what: &str, value: &str| {
                Some(ApiError::new(
                    StatusCode::FORBIDDEN,
                    format!("{what} `{value}` is not this machine: the server listens on loopback only"),
                ))
            };
            match text(header::HOST) {
                Some(host) if is_loopback(host) => {}
                host => return forbidden("Host", host.unwrap_or_default()),
            }
            if let Some(origin) = text(header::ORIGIN)
                && !origin.split_once("://").is_some_and(|(scheme, host)| matches!(scheme, "http" | "https") && is_loopback(host))
            {
                return forbidden("Origin", origin);
            }
        }
        // Whether the server lives, and the page that asks for the key, are no secrets.
        if let Some(key) = self.key
            && !matches!(path, "/health" | "/")
        {
            let given =
                text(header::AUTHORIZATION).and_then(|v| v.split_once(' ')).filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer"));
            if given.is_none_or(|(_, given)| blake3::hash(given.trim().as_bytes()) != key) {
                let refused = ApiError::new(StatusCode::UNAUTHORIZED, "the key is missing or wrong: send `Authorization: Bearer KEY`");
                return Some(ApiError { code: Some("invalid_api_key"), ..refused });
            }
        }
        None
    }
}

/// `localhost`, `127.x.x.x` or `[::1]`, with a port or without.
fn is_loopback(host: &str) -> bool {
    let name = match host.strip_prefix('[') {
        Some(rest) => match rest.split_once(']') {
            Some((name, port)) if port.is_empty() || is_port(port) => name,
            _ => return false,
        },
        None => match host.split_once(':') {
            Some((name, port)) if port.bytes().all(|b| b.is_ascii_digit()) => name,
            Some(_) => return false,
            None => host,
        },
    };
    name.eq_ignore_ascii_case("localhost") || name.parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

fn is_port(text: &str) -> bool {
    text.strip_prefix(':').is_some_and(|p| p.bytes().all(|b| b.is_ascii_digit()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(doors: &Doors, path: &str, headers: &[(&'static str, &str)]) -> Option<u16> {
        let map = headers.iter().map(|(n, v)| (n.parse().expect("a name"), v.parse().expect("a value"))).collect();
        doors.refuses(&map, path).map(|e| e.status.as_u16())
    }

    #[test]
    fn only_this_machine_is_meant_on_loopback() {
        let doors = Doors { loopback: true, key: None };
        for host in ["localhost", "LOCALHOST:8080", "127.0.0.1:1", "127.9.9.9", "[::1]", "[::1]:8080"] {
            assert_eq!(refused(&doors, "/v1/models", &[("host", host)]), None, "{host}");
        }
        for host in
            ["evil.example", "localhost.evil.example", "127.0.0.1.evil.example:80", "0.0.0.0", "[::1", "[::1]x", "localhost:80@evil", ""]
        {
            assert_eq!(refused(&doors, "/v1/models", &[("host", host)]), Some(403), "{host}");
        }
        assert_eq!(refused(&doors, "/", &[]), Some(403), "no Host");
        for (origin, status) in
            [("http://localhost:3000", None), ("https://evil.example", Some(403)), ("null", Some(403)), ("file://", Some(403))]
        {
            assert_eq!(refused(&doors, "/v1/models", &[("host", "localhost"), ("origin", origin)]), status, "{origin}");
        }
    }

    #[test]
    fn a_key_is_asked_for_where_there_is_one() {
        let doors = Doors { loopback: false, key: Some(blake3::hash(b"secret")) };
        for (value, status) in [
            ("Bearer secret", None),
            ("bearer  secret", None),
            ("Bearer secre", Some(401)),
            ("secret", Some(401)),
            ("Basic secret", Some(401)),
        ] {
            assert_eq!(refused(&doors, "/v1/models", &[("authorization", value)]), status, "{value}");
        }
        assert_eq!(refused(&doors, "/v1/models", &[]), Some(401));
        assert_eq!(refused(&doors, "/health", &[]), None);
    }
}
