//! A teacher's locked answers, as an evaluation reads them.
#![allow(missing_docs, reason = "field names are those of the JSON artifact, described in docs/formats.md")]

use std::path::Path;

use flow_engine::plugin::StageError;
use serde::Deserialize;
use serde_json::Value;

use crate::data::Prompt;
use crate::teacher::render;

/// What the evaluation reads of `teacher_baseline.json`.
#[derive(Deserialize)]
pub struct Baseline {
    pub template: String,
    #[serde(default = "default_max_tokens")]
    pub max_tokens: usize,
    pub json_validity: Option<f64>,
    pub json_validity_constrained: Option<f64>,
    pub decode_tokens_per_second: Option<f64>,
    pub results: Vec<Answer>,
}

fn default_max_tokens() -> usize {
    128
}

#[derive(Deserialize)]
pub struct Answer {
    pub id: i64,
    pub kind: String,
    pub prompt: String,
    pub schema: Option<Value>,
    /// As the teacher read it; made by the template where the file does not say.
    rendered: Option<String>,
    pub text: String,
}

impl Answer {
    /// What was asked.
    pub fn asked(&self) -> Prompt {
        Prompt { id: self.id, kind: self.kind.clone(), prompt: self.prompt.clone(), schema: self.schema.clone() }
    }

    /// The prompt as the teacher read it.
    pub fn rendered(&self, template: &str) -> String {
        self.rendered.clone().unwrap_or_else(|| render(template, &self.prompt))
    }
}

/// The baseline in a file.
pub fn read_baseline(path: &Path) -> Result<Baseline, StageError> {
    let text = std::fs::read(path).map_err(|e| StageError::io("cannot read", path, &e))?;
    serde_json::from_slice(&text).map_err(|e| StageError::new(format!("{}: not a baseline: {e}", path.display())))
}
