//! Who is asked and how: `teacher.json`, which is part of keys, and the limits beside it, which are not.

use std::collections::BTreeMap;
use std::path::Path;

use flow_engine::plugin::StageError;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use url::{Host, Url};

use super::preset::{Preset, Provider, Shape};

/// How a prompt reaches the model.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Endpoint {
    /// As a message, under the server's own chat template.
    #[default]
    Chat,
    /// As the beginning of a text, under the template that the pipeline says.
    Completions,
}

/// `teacher.json`: what decides an answer. No secret is in it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Spec {
    /// Always `http`.
    pub teacher: String,
    /// Provider.
    pub provider: Provider,
    /// Where requests go, without a slash at the end.
    pub base_url: String,
    /// Model.
    pub model: String,
    /// Chat or completions.
    pub endpoint: Endpoint,
    /// System message of a chat.
    pub system: Option<String>,
    /// Further fields of every request.
    pub body: Map<String, Value>,
    /// Further headers of every request.
    pub headers: BTreeMap<String, String>,
    /// Alternatives to ask for.
    pub ask_top_k: usize,
    /// Memory of the hosted model in bytes, as a person says.
    pub memory_bytes: Option<u64>,
    /// By which rules its answers are read: what was made by others is made again, from the kept answers.
    #[serde(default, skip_serializing_if = "crate::is_default")]
    pub reading: u32,
}

/// The rules by which answers are read now. Raised where the same answer gives other rows.
pub const READING: u32 = 2;

/// File in a teacher's directory that tells a hosted one.
pub const FILE: &str = "teacher.json";

impl Spec {
    /// The hosted teacher in this directory; `None` where it is a model.
    pub fn read(dir: &Path) -> Result<Option<Self>, StageError> {
        let path = dir.join(FILE);
        if !path.is_file() {
            return Ok(None);
        }
        let text = std::fs::read(&path).map_err(|e| StageError::io("cannot read", &path, &e))?;
        let spec = serde_json::from_slice(&text).map_err(|e| StageError::new(format!("{}: not a hosted teacher: {e}", path.display())))?;
        Ok(Some(spec))
    }
    /// What is known of the provider.
    pub fn preset(&self) -> &'static Preset {
        self.provider.preset()
    }
    /// The teacher in words.
    pub fn named(&self) -> String {
        format!("{} at {} ({})", self.model, self.base_url, self.preset().name)
    }
    /// What traces and baselines are locked to: everything that decides an answer.
    pub fn digest(&self) -> String {
        let decides = Self { memory_bytes: None, reading: 0, ..self.clone() };
        let value = flow_engine::key::canonical(&serde_json::to_value(&decides).unwrap_or_default());
        blake3::hash(value.to_string().as_bytes()).to_hex().to_string()
    }
}

/// A base URL as requests use it, or what is wrong with it.
pub fn base_url(text: &str, shape: Shape) -> Result<String, String> {
    let url = Url::parse(text).map_err(|e| format!("`{text}` is no URL: {e}"))?;
    if !matches!(url.scheme(), "http" | "https") || url.host().is_none() {
        return Err(format!("`{text}` is neither http:// nor https://"));
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err("holds a user or a password, which would be written into files: name a variable in `api_key_env`".into());
    }
    if url.query().is_some() || url.fragment().is_some() {
        return Err(format!("`{text}` has a query, which would be lost: put fields into `body`"));
    }
    let mut base = url.as_str().trim_end_matches('/').to_owned();
    for endpoint in ["/chat/completions", "/completions", "/messages"] {
        base.truncate(base.strip_suffix(endpoint).unwrap_or(&base).len());
    }
    if Url::parse(&base).is_ok_and(|u| matches!(u.path(), "" | "/")) {
        base.push_str(if shape == Shape::Gemini { "/v1beta" } else { "/v1" });
    }
    Ok(base)
}

/// Whether a URL means this machine.
pub fn is_local(base_url: &str) -> bool {
    Url::parse(base_url).is_ok_and(|url| match url.host() {
        Some(Host::Domain(name)) => name == "localhost",
        Some(Host::Ipv4(ip)) => ip.is_loopback(),
        Some(Host::Ipv6(ip)) => ip.is_loopback(),
        None => false,
    })
}

/// How a teacher may be asked; never part of a key. The fields are those of `teacher.http`.
#[derive(Clone, Debug, Deserialize)]
#[serde(default)]
pub struct Limits {
    /// Variable with the key.
    pub api_key_env: Option<String>,
    /// Account that is billed.
    pub organization: Option<String>,
    /// Proxy of all requests.
    pub proxy: Option<String>,
    /// Seconds that an answer may take.
    pub timeout: f64,
    /// Seconds that a connection may take.
    pub connect_timeout: f64,
    /// Requests at the same time.
    pub concurrency: usize,
    /// Requests a minute.
    pub requests_per_minute: Option<f64>,
    /// Tokens a minute, prompts and answers.
    pub tokens_per_minute: Option<f64>,
    /// Price of a million prompt tokens.
    pub price_prompt: Option<f64>,
    /// Price of a million tokens of answers.
    pub price_completion: Option<f64>,
    /// Tokens that a stage may use.
    pub budget_tokens: Option<u64>,
    /// Money that a stage may use, in the unit of the prices.
    pub budget_cost: Option<f64>,
    /// Tries of a request.
    pub attempts: u32,
    /// Seconds before the second try.
    pub backoff: f64,
    /// Most seconds between tries.
    pub backoff_max: f64,
    /// Seconds without any answer after which a stage gives up.
    pub outage: f64,
    /// Whether this run asks again for what is refused; no parameter of a stage.
    pub reask: bool,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            api_key_env: None,
            organization: None,
            proxy: None,
            timeout: seconds::<{ Self::TIMEOUT_MS }>(),
            connect_timeout: seconds::<{ Self::CONNECT_TIMEOUT_MS }>(),
            concurrency: Self::CONCURRENCY,
            requests_per_minute: None,
            tokens_per_minute: None,
            price_prompt: None,
            price_completion: None,
            budget_tokens: None,
            budget_cost: None,
            attempts: Self::ATTEMPTS,
            backoff: seconds::<{ Self::BACKOFF_MS }>(),
            backoff_max: seconds::<{ Self::BACKOFF_MAX_MS }>(),
            outage: seconds::<{ Self::OUTAGE_MS }>(),
            reask: false,
        }
    }
}

/// A default in milliseconds, as seconds.
pub fn seconds<const MS: u32>() -> f64 {
    f64::from(MS) / 1000.0
}
/// A default number.
pub fn count<const N: usize>() -> usize {
    N
}
/// A default number of tries.
pub fn tries<const N: u32>() -> u32 {
    N
}

impl Limits {
    /// Default of `timeout`, as all of these.
    pub const TIMEOUT_MS: u32 = 600_000;
    /// See there.
    pub const CONNECT_TIMEOUT_MS: u32 = 10_000;
    /// See there.
    pub const CONCURRENCY: usize = 8;
    /// See there.
    pub const ATTEMPTS: u32 = 10;
    /// See there.
    pub const BACKOFF_MS: u32 = 500;
    /// See there.
    pub const BACKOFF_MAX_MS: u32 = 60_000;
    /// See there.
    pub const OUTAGE_MS: u32 = 300_000;

    /// The limits among a stage's unkeyed parameters; absent ones take their defaults.
    pub fn of(operational: &Value) -> Result<Self, StageError> {
        if operational.is_null() {
            return Ok(Self::default());
        }
        serde_json::from_value(operational.clone()).map_err(|e| StageError::new(format!("limits of the teacher: {e}")))
    }
    /// Cost of tokens, where prices are known.
    pub fn cost(&self, prompt: u64, completion: u64) -> Option<f64> {
        let (p, c) = (self.price_prompt?, self.price_completion?);
        Some((prompt as f64 * p + completion as f64 * c) / 1e6)
    }
    /// The variable with the key, if there is one.
    pub fn key_variable(&self) -> Option<&str> {
        self.api_key_env.as_deref().filter(|v| !v.is_empty())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base_urls_are_completed_and_refused() {
        for (given, wanted) in [
            ("http://127.0.0.1:8080", "http://127.0.0.1:8080/v1"),
            ("http://127.0.0.1:8080/", "http://127.0.0.1:8080/v1"),
            ("http://localhost:1/v1/", "http://localhost:1/v1"),
            ("https://a.example/openai/v1/chat/completions", "https://a.example/openai/v1"),
        ] {
            assert_eq!(base_url(given, Shape::OpenAi).as_deref(), Ok(wanted));
        }
        assert_eq!(base_url("https://g.example", Shape::Gemini).as_deref(), Ok("https://g.example/v1beta"));
        for bad in ["localhost:8080", "ftp://a/b", "http://user:word@a/v1", "http://a/v1?key=1", "no url"] {
            assert!(base_url(bad, Shape::OpenAi).is_err(), "{bad}");
        }
        assert!(is_local("http://127.0.0.1:1/v1") && is_local("http://[::1]:1/v1") && !is_local("https://a.example/v1"));
    }
}
