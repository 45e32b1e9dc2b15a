//! `teacher.file`: a model that exists already, as a teacher: a GGUF file, or a directory of safetensors.

use flow_engine::plugin::{InputPort, OutputPort, ParamError, SourcePath, Stage, StageError, TaskContext};
use flow_lm::format::finite;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::teacher::import::{complete, import};

/// Parameters of `teacher.file`.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct FileParams {
    /// A `.gguf` file, or a directory with `config.json`, safetensors and `tokenizer.json`.
    pub path: SourcePath,
    /// Window in tokens: what is scored at once, and the longest prompt with its answer. The model's own context, 512 at
    /// most, where null.
    #[serde(default)]
    pub seq: Option<usize>,
}

/// `teacher.file`.
pub struct FileStage;

impl Stage for FileStage {
    type Params = FileParams;
    const KIND: &'static str = "teacher.file";
    // 2: weights are looked at.
    const REVISION: u32 = 2;
    const SUMMARY: &'static str = "Takes a GGUF file or a safetensors directory as the teacher.";
    const HEAVY: bool = true;

    fn inputs(&self) -> Vec<InputPort> {
        Vec::new()
    }
    fn outputs(&self) -> Vec<OutputPort> {
        vec![OutputPort::pure("teacher", "Teacher", "Model directory.")]
    }
    fn check(&self, p: &FileParams) -> Result<Vec<String>, ParamError> {
        if p.seq == Some(0) {
            return Err(ParamError { path: "seq".into(), message: "must be above 0".into(), help: None });
        }
        Ok(Vec::new())
    }
    fn run(&self, p: FileParams, ctx: &TaskContext) -> Result<(), StageError> {
        let (from, to) = (p.path.0.as_path(), ctx.output("teacher")?);
        complete(from)?;
        // What the next stage would find wrong is said here, of the file that the user named.
        let (model, tokenizer) = flow_lm::format::load_with_tokenizer(from)?;
        finite::check(from, &model)?;
        std::fs::create_dir_all(to).map_err(|e| StageError::io("cannot make", to, &e))?;
        let seq = import(from, to, p.seq)?;
        ctx.metric("parameters", model.config.parameters() as f64);
        ctx.log(format!(
            "{} layers, {} parameters, {} tokens, windows of {}",
            model.config.layers,
            model.config.parameters(),
            tokenizer.vocab_size(),
            seq
        ));
        Ok(())
    }
}
