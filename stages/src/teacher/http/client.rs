//! One request, and what came of it.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use reqwest::header::{HeaderMap, HeaderName, HeaderValue};
use reqwest::{Method, StatusCode};

use super::encoding;
use super::error::HttpError;
use super::pace::{LONGEST, asked_to_wait};
use super::preset::Shape;
use super::shape::{self, Call, Failed, Failure, Manner, Reply};
use super::spec::{Limits, Spec, is_local};

/// What a server may send at most for one answer.
const MOST_BYTES: usize = 256 << 20;

/// Seconds that a body may take once it has begun: it was made before. (Blank lines before it keep a connection alive.)
const BODY: Duration = Duration::from_secs(30);

/// The wall clock: for dates that servers send, never for waiting.
pub type Clock = Arc<dyn Fn() -> SystemTime + Send + Sync>;

/// Connections to one teacher.
pub struct Client {
    http: reqwest::Client,
    spec: Spec,
    timeout: Duration,
    clock: Clock,
    /// The key, so that it can be kept out of everything that is written.
    secret: Option<String>,
    variable: Option<String>,
}

/// What came of a request.
#[derive(Debug)]
pub enum Outcome {
    /// An answer, to be kept whether it can be used or is refused.
    Answer {
        /// As it came.
        body: Vec<u8>,
        /// As it was understood.
        reply: Box<Reply>,
        /// Milliseconds.
        millis: u32,
    },
    /// Worth another try.
    Again {
        /// Why.
        why: String,
        /// How long the server asks to wait.
        wait: Option<Duration>,
        /// How the server is.
        trouble: Trouble,
        /// Whether what was asked for is missing, as it would be next time.
        bare: bool,
    },
    /// This request will never be answered.
    Never(String),
    /// No request will be answered.
    Stop(HttpError),
}

/// What a failed try tells about the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trouble {
    /// It works, and said no or something strange.
    Said,
    /// It fails, or its answer broke off.
    Failed,
    /// Nobody is there.
    Unreachable,
}

impl Client {
    /// Connects nothing yet; `secret` is the value of the variable that the limits name.
    pub fn new(spec: &Spec, limits: &Limits, secret: Option<String>, clock: Clock) -> Result<Self, HttpError> {
        let mut headers = HeaderMap::new();
        for (name, value) in &spec.headers {
            headers.insert(header_name(name)?, header_value(name, value)?);
        }
        if let Some(organization) = &limits.organization {
            headers.insert(header_name("openai-organization")?, header_value("organization", organization)?);
        }
        let variable = limits.key_variable().map(str::to_owned);
        if let Some(secret) = &secret {
            let of = variable.as_deref().unwrap_or("the key");
            let (name, text) = match spec.preset().shape {
                Shape::OpenAi => ("authorization", format!("Bearer {secret}")),
                Shape::Anthropic => ("x-api-key", secret.clone()),
                Shape::Gemini => ("x-goog-api-key", secret.clone()),
            };
            let mut value = HeaderValue::from_str(&text).map_err(|_| HttpError::Key(of.to_owned()))?;
            value.set_sensitive(true);
            headers.insert(header_name(name)?, value);
        }
        if spec.preset().shape == Shape::Anthropic {
            headers.insert(header_name("anthropic-version")?, HeaderValue::from_static("2023-06-01"));
        }
        // One who comes second finds it there.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let mut builder = reqwest::Client::builder()
            .default_headers(headers)
            .user_agent(concat!("flow/", env!("CARGO_PKG_VERSION")))
            .connect_timeout(Duration::from_secs_f64(limits.connect_timeout))
            .pool_max_idle_per_host(limits.concurrency)
            .pool_idle_timeout(Duration::from_secs(30))
            .redirect(reqwest::redirect::Policy::none())
            .tcp_nodelay(true);
        builder = match &limits.proxy {
            Some(proxy) => builder.proxy(reqwest::Proxy::all(proxy).map_err(|_| HttpError::Proxy)?),
            None if is_local(&spec.base_url) => builder.no_proxy(),
            None => builder,
        };
        if spec.base_url.starts_with("http://") {
            // A machine without certificates can ask a server of its own.
            builder = builder.tls_certs_only(std::iter::empty());
        }
        let http = builder.build().map_err(|e| HttpError::Setup(chain(&e)))?;
        Ok(Self { http, spec: spec.clone(), timeout: Duration::from_secs_f64(limits.timeout), clock, secret, variable })
    }

    /// Who is asked.
    pub fn spec(&self) -> &Spec {
        &self.spec
    }

    /// Asks once.
    pub async fn send(&self, call: &Call, manner: &Manner) -> Outcome {
        let started = Instant::now();
        let sent = call.sent(&self.spec).to_string().into_bytes();
        let (status, headers, body) = match self.exchange(Method::POST, &call.url(&self.spec), Some(sent)).await {
            Ok((status, headers, body)) if status.is_success() => (status, headers, body),
            Ok((status, headers, body)) => return self.judge(status, &headers, &said(status, &headers, &body)),
            Err(outcome) => return outcome,
        };
        match shape::read(&self.spec, manner, call, &body) {
            Ok(reply) => {
                let millis = u32::try_from(started.elapsed().as_millis()).unwrap_or(u32::MAX);
                Outcome::Answer { body, reply: Box::new(reply), millis }
            }
            Err(failure) => self.failed(status, &headers, &body, failure),
        }
    }

    /// What a failure in a successful exchange means.
    fn failed(&self, status: StatusCode, headers: &HeaderMap, body: &[u8], failure: Failure) -> Outcome {
        if let Some(inside) = failure.status.and_then(|s| StatusCode::from_u16(s).ok()) {
            return self.judge(inside, headers, &format!("{inside}, sent as {status}: {}", failure.why));
        }
        let why = match failure.kind {
            Failed::NoJson => format!("{} ({}): `{}`", failure.why, kind_of(status, headers, body), beginning(body)),
            Failed::Said | Failed::Bare => failure.why,
        };
        Outcome::Again { why, wait: self.wait(headers), trouble: Trouble::Said, bare: failure.kind == Failed::Bare }
    }

    /// Names of the models that the server lists; `None` where it lists none.
    pub async fn models(&self) -> Result<Option<Vec<String>>, Outcome> {
        let url = format!("{}/models", self.spec.base_url);
        let (status, headers, body) = self.exchange(Method::GET, &url, None).await?;
        if matches!(status.as_u16(), 404 | 405 | 501) {
            return Ok(None);
        }
        if !status.is_success() {
            return Err(self.judge(status, &headers, &said(status, &headers, &body)));
        }
        let Ok(value) = serde_json::from_slice::<serde_json::Value>(&body) else { return Ok(None) };
        let list = value["data"].as_array().or(value["models"].as_array()).or(value.as_array());
        let name = |m: &serde_json::Value| m["id"].as_str().or(m["name"].as_str()).map(|n| n.trim_start_matches("models/").to_owned());
        Ok(list.map(|l| l.iter().filter_map(name).collect()))
    }

    async fn exchange(&self, method: Method, url: &str, body: Option<Vec<u8>>) -> Result<(StatusCode, HeaderMap, Vec<u8>), Outcome> {
        let mut request = self.http.request(method, url);
        if let Some(body) = body {
            request = request.header("content-type", "application/json").body(body);
        }
        let again = |why: String, trouble| Outcome::Again { why: self.scrub(&why), wait: None, trouble, bare: false };
        let work = async {
            let mut response = request.send().await.map_err(|e| {
                let trouble = if e.is_connect() { Trouble::Unreachable } else { Trouble::Failed };
                again(chain(&e.without_url()), trouble)
            })?;
            let (status, headers) = (response.status(), response.headers().clone());
            // A server that streams takes its time between the pieces.
            let streams = header(&headers, "content-type").starts_with("text/event-stream");
            let mut bytes = Vec::new();
            let broke = |e: reqwest::Error| again(format!("the answer broke off: {}", chain(&e.without_url())), Trouble::Failed);
            let mut began: Option<Instant> = None;
            loop {
                let left = began.filter(|_| !streams).map_or(Duration::MAX, |at| BODY.saturating_sub(at.elapsed()));
                let Ok(chunk) = tokio::time::timeout(left, response.chunk()).await else {
                    return Err(again(format!("the answer was not whole {} s after it began", BODY.as_secs()), Trouble::Failed));
                };
                let Some(chunk) = chunk.map_err(broke)? else { break };
                if began.is_none() && chunk.iter().any(|b| !b.is_ascii_whitespace()) {
                    began = Some(Instant::now());
                }
                bytes.extend_from_slice(&chunk);
                if bytes.len() > MOST_BYTES {
                    return Err(again(format!("more than {} MiB came as one answer", MOST_BYTES >> 20), Trouble::Said));
                }
            }
            let bytes =
                encoding::decoded(header(&headers, "content-encoding"), bytes, MOST_BYTES).map_err(|why| again(why, Trouble::Failed))?;
            // Before anything of it is cut, shown or kept.
            Ok((status, headers, self.scrub_bytes(bytes)))
        };
        match tokio::time::timeout(self.timeout, work).await {
            Ok(result) => result,
            Err(_) => Err(again(format!("no whole answer within {} s", self.timeout.as_secs_f64()), Trouble::Failed)),
        }
    }

    fn wait(&self, headers: &HeaderMap) -> Option<Duration> {
        let find = |name: &str| headers.get(name).and_then(|v| v.to_str().ok()).map(str::to_owned);
        asked_to_wait(&find, (self.clock)())
    }

    /// What a status other than success means.
    fn judge(&self, status: StatusCode, headers: &HeaderMap, said: &str) -> Outcome {
        let (host, heard) = (self.spec.base_url.clone(), said.to_owned());
        match status.as_u16() {
            401 | 403 => Outcome::Stop(HttpError::Refused { host, variable: self.variable.clone(), said: heard }),
            402 => Outcome::Stop(HttpError::Money { host, said: heard }),
            404 | 405 => Outcome::Stop(HttpError::Missing { host, model: self.spec.model.clone(), said: heard }),
            429 if said.contains(QUOTA) => Outcome::Stop(HttpError::Quota { host, said: heard }),
            408 | 409 | 429 | 500 | 502 | 503 | 504 | 529 => {
                let wait = self.wait(headers);
                if let Some(wait) = wait.filter(|w| *w > LONGEST) {
                    return Outcome::Stop(HttpError::Later { host, minutes: wait.as_secs() / 60, said: heard });
                }
                let works = matches!(status.as_u16(), 408 | 409 | 429);
                Outcome::Again { why: said.into(), wait, trouble: if works { Trouble::Said } else { Trouble::Failed }, bare: false }
            }
            300..400 => Outcome::Stop(HttpError::Elsewhere { host, said: heard }),
            400..500 => Outcome::Never(said.into()),
            _ => Outcome::Again { why: said.into(), wait: self.wait(headers), trouble: Trouble::Failed, bare: false },
        }
    }

    /// A server may repeat the key; nothing that is written may.
    fn scrub(&self, text: &str) -> String {
        match &self.secret {
            Some(secret) if !secret.is_empty() => text.replace(secret.as_str(), "***"),
            _ => text.to_owned(),
        }
    }

    fn scrub_bytes(&self, body: Vec<u8>) -> Vec<u8> {
        match &self.secret {
            Some(secret) if !secret.is_empty() && body.windows(secret.len()).any(|w| w == secret.as_bytes()) => {
                String::from_utf8_lossy(&body).replace(secret.as_str(), "***").into_bytes()
            }
            _ => body,
        }
    }
}

fn header<'a>(headers: &'a HeaderMap, name: &str) -> &'a str {
    headers.get(name).and_then(|v| v.to_str().ok()).unwrap_or_default()
}

/// What a server says in an answer that is none.
fn said(status: StatusCode, headers: &HeaderMap, body: &[u8]) -> String {
    match shape::error_message(body) {
        // A word that decides is not always in the message.
        Some(message) if !message.contains(QUOTA) && String::from_utf8_lossy(body).contains(QUOTA) => {
            format!("{status}: {message} ({QUOTA})")
        }
        Some(message) => format!("{status}: {message}"),
        None if body.trim_ascii().is_empty() => status.to_string(),
        None => format!("{}: `{}`", kind_of(status, headers, body), beginning(body)),
    }
}

/// What providers call an account without money.
const QUOTA: &str = "insufficient_quota";

/// Status, type and size of a body.
fn kind_of(status: StatusCode, headers: &HeaderMap, body: &[u8]) -> String {
    let kind = Some(header(headers, "content-type")).filter(|k| !k.is_empty()).unwrap_or("no content type");
    format!("{status}, {kind}, {} bytes", body.len())
}

/// The first 200 bytes of a body, on one line.
fn beginning(body: &[u8]) -> String {
    let text = String::from_utf8_lossy(&body[..body.len().min(200)]).split_whitespace().collect::<Vec<_>>().join(" ");
    if body.len() > 200 { text + "…" } else { text }
}

fn header_name(name: &str) -> Result<HeaderName, HttpError> {
    name.parse().map_err(|_| HttpError::HeaderName(name.to_owned()))
}

fn header_value(name: &str, value: &str) -> Result<HeaderValue, HttpError> {
    HeaderValue::from_str(value).map_err(|_| HttpError::HeaderValue(name.to_owned()))
}

/// An error with what caused it, in one line.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(e) = cause {
        let next = e.to_string();
        if !text.contains(&next) {
            text.push_str(": ");
            text.push_str(&next);
        }
        cause = e.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    /// Certificates are checked by the library; that a provider of ciphers is there shows in the first bytes of a handshake.
    #[test]
    fn https_begins_with_a_handshake() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
        let port = listener.local_addr().expect("an address").port();
        let greeted = std::thread::spawn(move || {
            let mut first = [0u8; 6];
            listener.accept().expect("a connection").0.read_exact(&mut first).map(|()| first)
        });
        let spec = serde_json::json!({"teacher": "http", "provider": "openai", "model": "m", "base_url": format!("https://127.0.0.1:{port}/v1"),
            "endpoint": "chat", "system": null, "body": {}, "headers": {}, "ask_top_k": 0, "memory_bytes": null});
        let spec: Spec = serde_json::from_value(spec).expect("a spec");
        let clock: Clock = std::sync::Arc::new(std::time::SystemTime::now);
        let client = Client::new(&spec, &Limits::default(), None, clock).expect("a client");
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        assert!(matches!(runtime.block_on(client.models()), Err(Outcome::Again { .. })));
        // A TLS record that holds a handshake: its client hello.
        let hello = greeted.join().expect("joins").expect("bytes");
        assert!((hello[0], hello[5]) == (22, 1), "{hello:?}");
    }
}
