//! `teacher.file`: a model that exists already, as a teacher: a GGUF file, or a directory of safetensors.

use crate::task;
use std::path::Path;

use flow_engine::plugin::{InputPort, OutputPort, ParamError, SourcePath, Stage, StageError, TaskContext};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::directory;
use super::template::CHAT_TEMPLATE;
use flow_lm::format::gguf::{self, GgufFile, roles};
use flow_lm::format::{GGUF_TYPE, MODEL_GGUF};

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

/// Window of a teacher that was made for longer ones.
const WINDOW: usize = 512;

/// `teacher.file`.
pub struct FileStage;

impl Stage for FileStage {
    type Params = FileParams;
    const KIND: &'static str = "teacher.file";
    const REVISION: u32 = 1;
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
        std::fs::create_dir_all(to).map_err(|e| StageError::io("cannot make", to, &e))?;
        if from.is_dir() {
            directory::import(from, to, p.seq)?
        } else {
            import(from, to, p.seq)?
        }
        // What the next stage would find wrong is said here.
        let (model, tokenizer) = flow_lm::format::load_with_tokenizer(to)?;
        ctx.metric("parameters", model.config.parameters() as f64);
        ctx.log(format!(
            "{} layers, {} parameters, {} tokens, windows of {}",
            model.config.layers,
            model.config.parameters(),
            tokenizer.vocab_size(),
            model.config.seq
        ));
        Ok(())
    }
}

/// The window to use of a model that was made for `context`.
pub(super) fn window(path: &Path, asked: Option<usize>, context: usize) -> Result<usize, StageError> {
    match asked {
        Some(seq) if seq > context => {
            Err(StageError::new(format!("{}: `seq: {seq}` is beyond the model's context of {context} tokens", path.display()))
                .help(format!("set `seq: {context}` or less")))
        }
        Some(seq) => Ok(seq),
        None => Ok(context.min(WINDOW)),
    }
}

/// The file itself, and beside it what its keys say in the form that other teachers have.
fn import(from: &Path, to: &Path, seq: Option<usize>) -> Result<(), StageError> {
    let file = GgufFile::read(from)?;
    let config = gguf::model::config(&file)?;
    let tokenizer = gguf::tokenizer::json(&file)?;
    let name = file.text("general.name")?.unwrap_or_default();
    let about = json!({
        "model_type": GGUF_TYPE,
        "seq": window(from, seq, config.seq)?,
        "extra": {"name": name, "tokens": roles::of(&file)?},
    });
    task::write_json(&to.join("config.json"), &about)?;
    write(&to.join("tokenizer.json"), &tokenizer.to_string())?;
    if let Some(template) = file.text("tokenizer.chat_template")? {
        write(&to.join(CHAT_TEMPLATE), template)?;
    }
    copy(from, &to.join(MODEL_GGUF))
}

pub(super) fn write(path: &Path, text: &str) -> Result<(), StageError> {
    std::fs::write(path, text).map_err(|e| StageError::io("cannot write", path, &e))
}

/// Copies a file (shared blocks where the file system can), writable whatever the source is.
pub(super) fn copy(from: &Path, to: &Path) -> Result<(), StageError> {
    let failed = |e: std::io::Error| StageError::io("cannot copy", from, &e);
    let mut source = std::fs::File::open(from).map_err(failed)?;
    let mut target = std::fs::File::create(to).map_err(failed)?;
    std::io::copy(&mut source, &mut target).map(drop).map_err(failed)
}
