//! `export.safetensors`: a model as a Hugging Face directory with its model card.

use flow_engine::plugin::{InputPort, OutputPort, Stage, StageError, TaskContext};
use flow_lm::chat::in_directory;
use flow_lm::format;
use flow_lm::format::hf_export::{FloatType, export};
use flow_lm::format::tokenizer_file::TokenizerFile;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::card::{CARD, Card, Made, Said};
use crate::measurements::Report;

/// Parameters of `export.safetensors`.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct SafetensorsParams {
    /// Storage of the weights: `bfloat16`, or `float32` which keeps the values of ternary matrices exactly.
    pub dtype: FloatType,
    /// What the model card calls it; by default `flow student`.
    pub name: Option<String>,
    /// Who made it.
    pub author: Option<String>,
    /// Its licence, such as `apache-2.0`.
    pub licence: Option<String>,
    /// The model that it was made of or learned from, such as `HuggingFaceTB/SmolLM2-135M-Instruct`.
    pub teacher: Option<String>,
    /// What it was trained on, in words.
    pub text: Option<String>,
}

/// `export.safetensors`.
pub struct SafetensorsStage;

impl Stage for SafetensorsStage {
    type Params = SafetensorsParams;
    const KIND: &'static str = "export.safetensors";
    const REVISION: u32 = 1;
    const SUMMARY: &'static str = "Writes a model as a Hugging Face directory with a model card.";

    fn inputs(&self) -> Vec<InputPort> {
        vec![
            InputPort::required("student", &["Model"], "A model with the options of one family."),
            InputPort::optional("tokenizer", &["Tokenizer"], "The tokenizer that it was trained with. Its own where none is wired."),
            InputPort::optional("report", &["EvalReport", "TextReport"], "Its evaluation, for the figures of the card."),
            InputPort::optional("text", &["Text"], "What it was trained on, for its digest on the card."),
            InputPort::optional("traces", &["Traces", "ProjectedTraces"], "What it was distilled from, likewise."),
        ]
    }
    fn outputs(&self) -> Vec<OutputPort> {
        // The card tells figures that a machine measured, and how the stages before were made.
        vec![OutputPort::measured("model", "HfModel", "Directory: config.json, model.safetensors, tokenizer, README.md.")]
    }
    fn run(&self, p: SafetensorsParams, ctx: &TaskContext) -> Result<(), StageError> {
        let (student, to) = (ctx.input("student")?, ctx.output("model")?);
        let model = format::load(student)?;
        let tokenizer = TokenizerFile::given_or_own(ctx.input_opt("tokenizer"), student, &model)?;
        let template = if student.is_dir() { in_directory(student)?.map(|(_, template)| template) } else { None };
        let bytes = export(&model, &tokenizer, template.as_deref(), p.dtype, to)?;
        let report = ctx.inputs("report").next().map(Report::read).transpose()?;
        let inputs = &ctx.task().inputs;
        let card = Card {
            said: Said { name: p.name, author: p.author, licence: p.licence, teacher: p.teacher, text: p.text },
            model: &model,
            storage: (p.dtype, bytes),
            chat: template.is_some(),
            made: Made::Stages {
                stage: &ctx.task().stage,
                inputs: inputs.iter().map(|i| (i.port.as_str(), i.from.as_str(), i.digest.as_str())).collect(),
                ancestors: ctx.task().provenance.iter().map(|p| (p.stage.as_str(), p.kind.as_str())).collect(),
            },
            report: report.as_ref(),
        };
        let path = to.join(CARD);
        std::fs::write(&path, card.text()).map_err(|e| StageError::io("cannot write", &path, &e))?;
        ctx.metric("tensor_bytes", bytes as f64);
        Ok(())
    }
}
