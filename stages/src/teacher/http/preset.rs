//! What is known of each provider, as data. A row tells what was true on its date; the probe tells what is true now.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// A provider or a server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Provider {
    /// api.deepseek.com.
    DeepSeek,
    /// api.openai.com, or any server of the same shape where `base_url` is given.
    OpenAi,
    /// openrouter.ai.
    OpenRouter,
    /// api.groq.com.
    Groq,
    /// api.aimlapi.com.
    AimlApi,
    /// api.together.xyz.
    Together,
    /// api.fireworks.ai.
    Fireworks,
    /// api.x.ai.
    Xai,
    /// api.mistral.ai.
    Mistral,
    /// Google's Gemini API.
    Gemini,
    /// api.anthropic.com.
    Anthropic,
    /// vLLM's server.
    Vllm,
    /// SGLang's server.
    Sglang,
    /// llama.cpp's server.
    #[serde(rename = "llama.cpp")]
    LlamaCpp,
    /// Ollama's server.
    Ollama,
    /// `flow serve`.
    Flow,
}

/// Shape of requests and answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    /// `/chat/completions` and `/completions`.
    OpenAi,
    /// `/messages`.
    Anthropic,
    /// `/models/MODEL:generateContent`.
    Gemini,
}

/// How logprobs are asked for in a chat.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Asked {
    /// `logprobs: true, top_logprobs: k`.
    Flag,
    /// `logprobs: k`.
    Count,
}

/// Whether logprobs come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Offered {
    /// With every model.
    Yes,
    /// With some models, or some versions of the server.
    Some,
    /// Never: hard targets only.
    No,
}

/// Of which distribution logprobs are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum When {
    /// The model's own, before temperature and top-p.
    Before,
    /// Not documented.
    Unknown,
}

/// How given text is scored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scoring {
    /// `/completions` with `prompt_logprobs: k`.
    PromptLogprobs,
    /// `/completions` with `echo: true`.
    Echo,
    /// `/generate` with `return_logprob` and `logprob_start_len`.
    Generate,
    /// `/completion`, one request a token, with the tokens before it as the prompt.
    Steps,
}

/// One row of the table.
#[derive(Debug)]
pub struct Preset {
    /// Whose row it is.
    pub provider: Provider,
    /// Name in `provider:`.
    pub name: &'static str,
    /// When the row was written.
    pub written: &'static str,
    /// Where requests go unless `base_url` says otherwise.
    pub base_url: &'static str,
    /// The usual name of the variable with the key; none where a server needs none.
    pub key: Option<&'static str>,
    /// Shape of requests.
    pub shape: Shape,
    /// How logprobs are asked for.
    pub asked: Asked,
    /// Whether they come.
    pub offered: Offered,
    /// Most alternatives a token.
    pub most: usize,
    /// Of which distribution they are.
    pub when: When,
    /// How given text is scored, where it can be.
    pub scoring: Option<Scoring>,
    /// Whether a seed may be sent.
    pub seed: bool,
    /// Field with the most tokens of an answer.
    pub limit: &'static str,
    /// Further fields of every request, JSON.
    pub body: &'static str,
    /// What the terms say about training with outputs; a person reads them before paying.
    pub terms: &'static str,
}

const WRITTEN: &str = "2026-11-24";
const OPEN: &str = "the licence of the model decides whether its outputs may train another";

const BASE: Preset = Preset {
    provider: Provider::OpenAi,
    name: "openai",
    written: WRITTEN,
    base_url: "https://api.openai.com/v1",
    key: Some("OPENAI_API_KEY"),
    shape: Shape::OpenAi,
    asked: Asked::Flag,
    offered: Offered::Some,
    most: 20,
    when: When::Unknown,
    scoring: None,
    seed: true,
    limit: "max_tokens",
    body: "{}",
    terms: OPEN,
};

/// All of them.
pub static PRESETS: [Preset; 16] = [
    Preset {
        provider: Provider::DeepSeek,
        name: "deepseek",
        base_url: "https://api.deepseek.com/v1",
        key: Some("DEEPSEEK_API_KEY"),
        seed: false,
        terms: "its terms allow outputs to train other models; the licence of the model is to be kept",
        ..BASE
    },
    Preset { when: When::Before, terms: "its terms forbid outputs to develop models that compete with its own", ..BASE },
    Preset {
        provider: Provider::OpenRouter,
        name: "openrouter",
        base_url: "https://openrouter.ai/api/v1",
        key: Some("OPENROUTER_API_KEY"),
        // Only routes that understand every field, or logprobs vanish with the route.
        body: r#"{"provider": {"require_parameters": true}}"#,
        terms: "the terms of the provider that it routes to decide; pin it with `body: {provider: {order: [...]}}`",
        ..BASE
    },
    Preset { provider: Provider::Groq, name: "groq", base_url: "https://api.groq.com/openai/v1", key: Some("GROQ_API_KEY"), ..BASE },
    Preset { provider: Provider::AimlApi, name: "aimlapi", base_url: "https://api.aimlapi.com/v1", key: Some("AIMLAPI_API_KEY"), ..BASE },
    Preset {
        provider: Provider::Together,
        name: "together",
        base_url: "https://api.together.xyz/v1",
        key: Some("TOGETHER_API_KEY"),
        asked: Asked::Count,
        scoring: Some(Scoring::Echo),
        ..BASE
    },
    Preset {
        provider: Provider::Fireworks,
        name: "fireworks",
        base_url: "https://api.fireworks.ai/inference/v1",
        key: Some("FIREWORKS_API_KEY"),
        offered: Offered::Yes,
        most: 5,
        seed: false,
        ..BASE
    },
    Preset {
        provider: Provider::Xai,
        name: "xai",
        base_url: "https://api.x.ai/v1",
        key: Some("XAI_API_KEY"),
        most: 8,
        terms: "its terms forbid outputs to develop models that compete with its own",
        ..BASE
    },
    Preset {
        provider: Provider::Mistral,
        name: "mistral",
        base_url: "https://api.mistral.ai/v1",
        key: Some("MISTRAL_API_KEY"),
        seed: false,
        terms: "its terms limit what outputs may train; read them for your plan",
        ..BASE
    },
    Preset {
        provider: Provider::Gemini,
        name: "gemini",
        base_url: "https://generativelanguage.googleapis.com/v1beta",
        key: Some("GEMINI_API_KEY"),
        shape: Shape::Gemini,
        terms: "its terms forbid outputs to develop models that compete with its own",
        ..BASE
    },
    Preset {
        provider: Provider::Anthropic,
        name: "anthropic",
        base_url: "https://api.anthropic.com/v1",
        key: Some("ANTHROPIC_API_KEY"),
        shape: Shape::Anthropic,
        offered: Offered::No,
        most: 0,
        seed: false,
        terms: "its terms forbid outputs to train models without permission",
        ..BASE
    },
    Preset {
        provider: Provider::Vllm,
        name: "vllm",
        base_url: "http://127.0.0.1:8000/v1",
        key: None,
        offered: Offered::Yes,
        when: When::Before,
        scoring: Some(Scoring::PromptLogprobs),
        ..BASE
    },
    Preset {
        provider: Provider::Sglang,
        name: "sglang",
        base_url: "http://127.0.0.1:30000/v1",
        key: None,
        offered: Offered::Yes,
        scoring: Some(Scoring::Generate),
        ..BASE
    },
    Preset {
        provider: Provider::LlamaCpp,
        name: "llama.cpp",
        base_url: "http://127.0.0.1:8080/v1",
        key: None,
        offered: Offered::Yes,
        when: When::Before,
        scoring: Some(Scoring::Steps),
        // Its own top-k and min-p would cut the distribution that is sampled from.
        body: r#"{"top_k": 0, "min_p": 0.0}"#,
        ..BASE
    },
    Preset { provider: Provider::Ollama, name: "ollama", base_url: "http://127.0.0.1:11434/v1", key: None, ..BASE },
    Preset {
        provider: Provider::Flow,
        name: "flow",
        written: "2026-11-27",
        base_url: "http://127.0.0.1:8080/v1",
        key: None,
        offered: Offered::Yes,
        when: When::Before,
        scoring: Some(Scoring::Echo),
        ..BASE
    },
];

impl Provider {
    /// What is known of it.
    pub fn preset(self) -> &'static Preset {
        PRESETS.iter().find(|p| p.provider == self).unwrap_or(&BASE)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_provider_has_its_row_and_its_name() {
        for preset in &PRESETS {
            assert!(std::ptr::eq(preset.provider.preset(), preset), "{}", preset.name);
            assert_eq!(serde_json::to_value(preset.provider).expect("name"), preset.name);
            assert!(serde_json::from_str::<serde_json::Value>(preset.body).is_ok_and(|b| b.is_object()), "{}", preset.name);
            assert!(url::Url::parse(preset.base_url).is_ok() && preset.written.len() == 10 && !preset.terms.is_empty());
            assert_eq!(preset.most == 0, preset.offered == Offered::No, "{}", preset.name);
        }
    }
}
