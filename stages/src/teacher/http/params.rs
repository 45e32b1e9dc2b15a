//! What a pipeline says of a teacher behind an API.

use std::collections::BTreeMap;

use flow_engine::plugin::{ParamError, StageError};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::preset::Provider;
use super::spec::{self, Endpoint, Limits, Spec, count, seconds, tries};

/// Parameters of `teacher.http`. What a person is, pays and waits for is in no key.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct HttpParams {
    /// Who serves the model: what requests look like, and what is known of the answers.
    pub provider: Provider,
    /// The model's name there.
    pub model: String,
    /// Where requests go; the provider's own address where null.
    #[serde(default)]
    pub base_url: Option<String>,
    /// `chat` puts a prompt as a message; `completions` lets the model continue it.
    #[serde(default)]
    pub endpoint: Endpoint,
    /// System message of a chat.
    #[serde(default)]
    pub system: Option<String>,
    /// Further fields of every request.
    #[serde(default)]
    pub body: Map<String, Value>,
    /// Further headers of every request; no credentials.
    #[serde(default)]
    pub headers: BTreeMap<String, String>,
    /// Alternatives to ask for; as many as the provider gives where null. `top_k` of a collection cuts them when they are read.
    #[serde(default)]
    pub ask_top_k: Option<usize>,
    /// Memory of the hosted model in bytes, for reports: nobody can measure it from here.
    #[serde(default)]
    pub memory_bytes: Option<u64>,
    /// Name of the environment variable that holds the key; empty or null where none is needed.
    #[serde(default)]
    #[schemars(extend("x-flow" = "secret-env"))]
    pub api_key_env: Option<String>,
    /// Account that is billed, where a key may use several.
    #[serde(default)]
    #[schemars(extend("x-key" = false))]
    pub organization: Option<String>,
    /// Proxy of all requests, such as `http://proxy:3128`; where null what the environment says, for other machines.
    #[serde(default)]
    #[schemars(extend("x-key" = false))]
    pub proxy: Option<String>,
    /// Seconds that an answer may take.
    #[serde(default = "seconds::<{ Limits::TIMEOUT_MS }>")]
    #[schemars(extend("x-key" = false))]
    pub timeout: f64,
    /// Seconds that a connection may take.
    #[serde(default = "seconds::<{ Limits::CONNECT_TIMEOUT_MS }>")]
    #[schemars(extend("x-key" = false))]
    pub connect_timeout: f64,
    /// Requests at the same time.
    #[serde(default = "count::<{ Limits::CONCURRENCY }>")]
    #[schemars(extend("x-key" = false))]
    pub concurrency: usize,
    /// Requests a minute, at most.
    #[serde(default)]
    #[schemars(extend("x-key" = false))]
    pub requests_per_minute: Option<f64>,
    /// Tokens of prompts and answers a minute, at most.
    #[serde(default)]
    #[schemars(extend("x-key" = false))]
    pub tokens_per_minute: Option<f64>,
    /// Price of a million prompt tokens.
    #[serde(default)]
    #[schemars(extend("x-key" = false))]
    pub price_prompt: Option<f64>,
    /// Price of a million tokens of answers.
    #[serde(default)]
    #[schemars(extend("x-key" = false))]
    pub price_completion: Option<f64>,
    /// Tokens that each stage may use of this teacher, answers that are kept already included.
    #[serde(default)]
    #[schemars(extend("x-key" = false))]
    pub budget_tokens: Option<u64>,
    /// Money that each stage may use, in the unit of the prices, answers that are kept already included.
    #[serde(default)]
    #[schemars(extend("x-key" = false))]
    pub budget_cost: Option<f64>,
    /// Tries of a request before it counts as failed.
    #[serde(default = "tries::<{ Limits::ATTEMPTS }>")]
    #[schemars(extend("x-key" = false))]
    pub attempts: u32,
    /// Seconds before the second try; doubled from try to try.
    #[serde(default = "seconds::<{ Limits::BACKOFF_MS }>")]
    #[schemars(extend("x-key" = false))]
    pub backoff: f64,
    /// Most seconds between two tries.
    #[serde(default = "seconds::<{ Limits::BACKOFF_MAX_MS }>")]
    #[schemars(extend("x-key" = false))]
    pub backoff_max: f64,
    /// Seconds without any answer after which a stage gives up.
    #[serde(default = "seconds::<{ Limits::OUTAGE_MS }>")]
    #[schemars(extend("x-key" = false))]
    pub outage: f64,
}

impl HttpParams {
    /// What decides an answer.
    pub fn spec(&self) -> Result<Spec, ParamError> {
        let preset = self.provider.preset();
        let base_url = spec::base_url(self.base_url.as_deref().unwrap_or(preset.base_url), preset.shape).map_err(|message| ParamError {
            path: "base_url".into(),
            message,
            help: None,
        })?;
        Ok(Spec {
            teacher: "http".into(),
            provider: self.provider,
            base_url,
            model: self.model.clone(),
            endpoint: self.endpoint,
            system: self.system.clone(),
            body: self.body.clone(),
            headers: self.headers.clone(),
            ask_top_k: self.ask_top_k.unwrap_or(preset.most),
            memory_bytes: self.memory_bytes,
            reading: spec::READING,
        })
    }
    /// How it may be asked.
    pub fn limits(&self) -> Result<Limits, StageError> {
        Limits::of(&serde_json::to_value(self).map_err(|e| StageError::new(e.to_string()))?)
    }
}
