//! `Baseline` of a teacher: its locked answers, speed and memory.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::data::Prompt;
use crate::teacher::render;

/// A teacher's greedy answers to fixed prompts.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Baseline {
    /// Its shape and size, or what is asked where.
    #[serde(default)]
    pub teacher: Value,
    /// Of a teacher that runs here.
    pub parameters: Option<u64>,
    /// How prompts are put to it.
    pub template: String,
    /// Of all prompts.
    #[serde(default)]
    pub prompts_digest: String,
    /// Of the teacher.
    #[serde(default)]
    pub teacher_digest: String,
    /// Tokens of an answer, at most.
    #[serde(default = "default_max_tokens")]
    pub max_tokens: usize,
    /// Tokens per second.
    pub decode_tokens_per_second: Option<f64>,
    /// The same of reading.
    pub prefill_tokens_per_second: Option<f64>,
    /// How both were measured.
    #[serde(alias = "decode_measured")]
    pub speed_measured: Option<String>,
    /// Bytes of its weights as its files hold them, and of cache and activations where one sequence is decoded; the file of a
    /// hosted one is not here.
    #[serde(alias = "memory_bytes")]
    pub memory_planned_bytes: Option<u64>,
    /// Bytes of a hosted teacher, as a person says.
    pub memory_given_bytes: Option<u64>,
    /// Share of the JSON prompts that are answered by their schemas.
    pub json_validity: Option<f64>,
    /// The same of answers that are held to these.
    pub json_validity_constrained: Option<f64>,
    /// Tokens of all prompts and answers.
    #[serde(default)]
    pub usage: Usage,
    /// The answers.
    pub results: Vec<Answer>,
}

/// Of baselines that do not say it.
fn default_max_tokens() -> usize {
    128
}

/// Tokens.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Usage {
    /// Of prompts.
    pub prompt_tokens: u64,
    /// Of answers.
    pub completion_tokens: u64,
}

/// An answer.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Answer {
    /// Of the prompt.
    pub id: i64,
    /// Of the prompt.
    pub kind: String,
    /// What was asked.
    pub prompt: String,
    /// What an answer must be.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub schema: Option<Value>,
    /// As the teacher read it; made by the template where the file does not say.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rendered: Option<String>,
    /// The answer.
    pub text: String,
    /// Tokens of it, where they are known.
    pub tokens: Option<u64>,
    /// Why it ended.
    pub finish_reason: Option<String>,
}

impl Answer {
    /// Of a prompt.
    pub fn of(prompt: &Prompt, text: String) -> Self {
        let Prompt { id, kind, prompt, schema } = prompt.clone();
        Self { id, kind, prompt, schema, text, ..Self::default() }
    }

    /// What was asked.
    pub fn asked(&self) -> Prompt {
        Prompt { id: self.id, kind: self.kind.clone(), prompt: self.prompt.clone(), schema: self.schema.clone() }
    }

    /// The prompt as the teacher read it.
    pub fn rendered(&self, template: &str) -> String {
        self.rendered.clone().unwrap_or_else(|| render(template, &self.prompt))
    }
}
