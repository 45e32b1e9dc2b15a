//! `data.prompts`: prompts as JSON lines, split into training and evaluation.

use std::fmt::Write as _;

use flow_engine::plugin::{InputPort, OutputPort, ParamError, SourceFile, Stage, StageError, TaskContext};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::data::prompts::{choose, read_prompts};
use crate::data::spread::spread_of;

/// Parameters of `data.prompts`.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct PromptsParams {
    /// JSON lines, each `{"id": 0, "kind": "prose", "prompt": "…"}`.
    pub path: SourceFile,
    /// Prompts to keep for evaluation: a share below 1, or a count. Spread evenly over each kind.
    #[serde(default = "default_eval")]
    pub eval: f64,
    /// Take only this many prompts, spread over the file.
    #[serde(default)]
    pub limit: Option<usize>,
}

fn default_eval() -> f64 {
    0.1
}

/// `data.prompts`.
pub struct PromptsStage;

impl Stage for PromptsStage {
    type Params = PromptsParams;
    const KIND: &'static str = "data.prompts";
    const REVISION: u32 = 3;
    const SUMMARY: &'static str = "Reads prompts and keeps some of them for evaluation.";

    fn inputs(&self) -> Vec<InputPort> {
        Vec::new()
    }
    fn outputs(&self) -> Vec<OutputPort> {
        vec![
            OutputPort::pure("train", "Prompts", "Prompts for traces, JSON lines."),
            OutputPort::pure("eval", "Prompts", "Prompts for evaluation, JSON lines."),
        ]
    }
    fn check(&self, p: &PromptsParams) -> Result<Vec<String>, ParamError> {
        let wrong = |path: &str, message: String| Err(ParamError { path: path.into(), message, help: None });
        if !(p.eval > 0.0 && p.eval.is_finite()) || (p.eval >= 1.0 && p.eval.fract() != 0.0) {
            return wrong("eval", format!("{} is neither a share between 0 and 1 nor a count", p.eval));
        }
        if p.limit == Some(0) {
            return wrong("limit", "0 leaves no prompt".into());
        }
        Ok(Vec::new())
    }
    fn run(&self, p: PromptsParams, ctx: &TaskContext) -> Result<(), StageError> {
        let prompts = spread_of(read_prompts(&p.path.0)?, p.limit, 0);
        let eval = choose(&prompts, p.eval);
        let count = eval.iter().filter(|e| **e).count();
        if count == 0 || count == prompts.len() {
            return Err(StageError::new(format!(
                "{}: eval: {} leaves {} of {} prompts for training and {count} for evaluation",
                p.path.0.display(),
                p.eval,
                prompts.len() - count,
                prompts.len()
            ))
            .help("give more prompts or another `eval`, so that both sides have some"));
        }
        for (port, wanted) in [("train", false), ("eval", true)] {
            let mut text = String::new();
            for (prompt, _) in prompts.iter().zip(&eval).filter(|(_, e)| **e == wanted) {
                let line = serde_json::to_string(prompt).map_err(|e| StageError::new(e.to_string()))?;
                let _ = writeln!(text, "{line}");
            }
            let out = ctx.output(port)?;
            std::fs::write(out, text).map_err(|e| StageError::io("cannot write", out, &e))?;
        }
        Ok(())
    }
}
