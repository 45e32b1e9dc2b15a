//! `export.gguf`: a ternary student as a file that stock llama.cpp loads.

use flow_engine::plugin::{InputPort, OutputPort, Stage, StageError, TaskContext};
use flow_lm::chat::in_directory;
use flow_lm::format;
use flow_lm::format::gguf::export::{EmbeddingType, LinearType, export};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Parameters of `export.gguf`.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ExportParams {
    /// Storage of the ternary linears.
    #[serde(rename = "type")]
    pub linear: LinearType,
    /// Storage of the embedding, which is also the head.
    pub embedding: EmbeddingType,
    /// `general.name` in the file; by default `flow student`.
    pub name: Option<String>,
}

/// `export.gguf`.
pub struct ExportStage;

impl Stage for ExportStage {
    type Params = ExportParams;
    const KIND: &'static str = "export.gguf";
    const REVISION: u32 = 1;
    const SUMMARY: &'static str = "Writes a ternary student as GGUF for llama.cpp.";

    fn inputs(&self) -> Vec<InputPort> {
        vec![
            InputPort::required("student", &["Model"], "A ternary model with SiLU and SubLN."),
            InputPort::required("tokenizer", &["Tokenizer"], "The tokenizer that it was trained with."),
        ]
    }
    fn outputs(&self) -> Vec<OutputPort> {
        vec![OutputPort::pure("gguf", "Gguf", "Architecture `bitnet`, loads in stock llama.cpp.")]
    }
    fn run(&self, p: ExportParams, ctx: &TaskContext) -> Result<(), StageError> {
        let student = ctx.input("student")?;
        let model = format::load(student)?;
        let template = if student.is_dir() { in_directory(student)?.map(|(_, template)| template) } else { None };
        let name = p.name.as_deref().unwrap_or("flow student");
        let made = export(&model, ctx.input("tokenizer")?, (name, template.as_deref()), (p.linear, p.embedding), ctx.output("gguf")?)?;
        if !made.wide.is_empty() {
            ctx.warn(format!(
                "{} linears have columns that no block of 256 divides and are stored as float16: {}",
                made.wide.len(),
                made.wide.iter().take(3).cloned().collect::<Vec<_>>().join(", ")
            ));
        }
        ctx.metric("tensor_bytes", made.tensor_bytes as f64);
        Ok(())
    }
}
