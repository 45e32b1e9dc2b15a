//! `export.gguf`: a model as a file that stock llama.cpp loads.

use flow_engine::plugin::{InputPort, OutputPort, Stage, StageError, TaskContext};
use flow_lm::chat::in_directory;
use flow_lm::format;
use flow_lm::format::gguf::export::{About, Exported, How, Storage, export};
use flow_lm::format::tokenizer_file::TokenizerFile;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::is_default;

/// Parameters of `export.gguf`.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ExportParams {
    /// Storage of the linears of the blocks: `q2_0`, `tq2_0` and `tq1_0` take ternary ones with their codes and scales, the
    /// others the values of any.
    #[serde(rename = "type")]
    pub linear: Storage,
    /// Storage of the embedding, which is also the head of a model that ties them.
    pub embedding: Storage,
    /// Storage of the head; that of the embedding where null.
    #[serde(skip_serializing_if = "is_default")]
    pub head: Option<Storage>,
    /// `general.name` in the file; by default `flow student`.
    pub name: Option<String>,
    /// `general.author` in the file.
    #[serde(skip_serializing_if = "is_default")]
    pub author: Option<String>,
    /// `general.license` in the file, such as `apache-2.0`.
    #[serde(skip_serializing_if = "is_default")]
    pub licence: Option<String>,
}

impl Default for ExportParams {
    fn default() -> Self {
        Self { linear: Storage::Tq2_0, embedding: Storage::F16, head: None, name: None, author: None, licence: None }
    }
}

/// `export.gguf`.
pub struct ExportStage;

impl Stage for ExportStage {
    type Params = ExportParams;
    const KIND: &'static str = "export.gguf";
    const REVISION: u32 = 2;
    const SUMMARY: &'static str = "Writes a model as GGUF for llama.cpp, ternary matrices as they were trained.";

    fn inputs(&self) -> Vec<InputPort> {
        vec![
            InputPort::required("student", &["Model"], "A model with SiLU and the options of one family."),
            InputPort::optional("tokenizer", &["Tokenizer"], "The tokenizer that it was trained with. Its own where none is wired."),
        ]
    }
    fn outputs(&self) -> Vec<OutputPort> {
        vec![OutputPort::pure("gguf", "Gguf", "The family's own architecture, `bitnet` with SubLN; loads in stock llama.cpp.")]
    }
    fn run(&self, p: ExportParams, ctx: &TaskContext) -> Result<(), StageError> {
        let student = ctx.input("student")?;
        let model = format::load(student)?;
        let tokenizer = TokenizerFile::given_or_own(ctx.input_opt("tokenizer"), student, &model)?;
        let template = if student.is_dir() { in_directory(student)?.map(|(_, template)| template) } else { None };
        let name = p.name.unwrap_or_else(|| "flow student".into());
        let about = About { name, author: p.author, licence: p.licence };
        let how = How { about, template: template.as_deref(), linear: p.linear, embedding: p.embedding, head: p.head };
        let made = export(&model, &tokenizer, &how, ctx.output("gguf")?)?;
        if let Some(warning) = wide(&made) {
            ctx.warn(warning);
        }
        ctx.metric("tensor_bytes", made.tensor_bytes as f64);
        Ok(())
    }
}

/// What to say of matrices that are stored in another type than was asked for.
pub fn wide(made: &Exported) -> Option<String> {
    let first = made.wide.iter().take(3).cloned().collect::<Vec<_>>().join(", ");
    let n = made.wide.len();
    (n > 0).then(|| format!("{n} matrices have columns that no block of their type divides and are stored as float16: {first}"))
}
