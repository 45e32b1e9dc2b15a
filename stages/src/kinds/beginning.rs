//! What a student begins as, when it is trained: the model that is taken, its tokenizer, the shape of what is kept, and the
//! parameters.

use std::path::{Path, PathBuf};

use flow_engine::plugin::{StageError, TaskContext, Wired};
use flow_lm::chat::{CHAT_TEMPLATE, ChatTemplate};
use flow_lm::config::{A4, ModelConfig};
use flow_lm::format::tokenizer_file::TokenizerFile;
use flow_lm::format::{self, Checkpoint};
use flow_lm::tokenizer::{Roles, TokenId, Tokenizer};
use flow_lm::train::start::KeptLayer;
use flow_lm::train::{Calibration, Carved, Start};
use flow_shaders::device::Device;
use serde_json::{Value, json};

use super::init::{Init, Source};
use crate::data::read_text;
use crate::estimate;
use crate::teacher::WINDOW;
use crate::teacher::http::spec::Spec;

/// A model with its tokenizer, and where it is.
pub(super) struct TakenModel {
    at: PathBuf,
    model: Checkpoint,
    tokenizer: Tokenizer,
}

impl TakenModel {
    /// The model that a student begins as: what `init` says, or the one on the input `init`.
    pub fn of(init: Option<&Init>, ctx: &TaskContext) -> Result<Option<Self>, StageError> {
        let at = match init.map(|i| i.from) {
            None => ctx.input_opt("init"),
            Some(Source::Init) => Some(ctx.input("init")?),
            Some(Source::Teacher) => Some(ctx.input("teacher")?),
            Some(Source::File) => init.and_then(|i| i.path.as_ref()).map(|path| path.0.as_path()),
        };
        at.map(|at| Self::read(at, ("init", "parameters"), "leave `init` out")).transpose()
    }

    fn read(at: &Path, (port, what): (&str, &str), help: &str) -> Result<Self, StageError> {
        if let Some(spec) = Spec::read(at)? {
            return Err(StageError::new(format!("`{port}`: {}: a hosted teacher has no {what} here", spec.named())).help(help));
        }
        let (model, tokenizer) = format::load_with_tokenizer(at)?;
        Ok(Self { at: at.to_owned(), model, tokenizer })
    }

    /// The shape of what `init` keeps of it, with windows of `seq` tokens where that is said.
    pub fn shape(&self, init: &Init, seq: Option<usize>) -> Result<ModelConfig, StageError> {
        let shape = init.carve().shape(&self.model.config).map_err(of_init)?;
        let context = shape.seq.min(shape.window.unwrap_or(shape.seq));
        if let Some(beyond) = seq.filter(|seq| *seq > context) {
            return Err(StageError::new(format!("`seq: {beyond}` is beyond the model's context of {context} tokens"))
                .help(format!("set `seq: {context}` or less")));
        }
        Ok(ModelConfig { seq: seq.unwrap_or(context.min(WINDOW)), a4: A4::default(), ..shape })
    }
}

/// The shape that a student will have whose model is not made yet; nothing where it is not known before.
pub(super) fn planned(init: &Init, seq: Option<usize>, wired: &Wired<'_>) -> Option<ModelConfig> {
    let model = match init.from {
        Source::Teacher => estimate::model_on(wired, "teacher"),
        Source::Init => estimate::model_on(wired, "init"),
        Source::File => estimate::shape_of_model(&init.path.as_ref()?.0),
    };
    let shape = init.carve().shape(&model?).ok()?;
    Some(ModelConfig { seq: seq.unwrap_or(shape.seq.min(WINDOW)).min(shape.seq), ..shape })
}

/// A student's tokenizer, and what goes beside it into the student's directory.
pub(super) struct OwnTokenizer {
    /// The tokenizer.
    pub tokenizer: Tokenizer,
    /// Tokens of the model that it came with; its own where it came alone.
    pub vocab: usize,
    /// `tokenizer.json`, where it is a file already.
    file: Option<PathBuf>,
    /// Further files of the student's directory: name and content.
    beside: Vec<(&'static str, String)>,
    roles: Option<Roles>,
}

impl OwnTokenizer {
    /// The one on the input `tokenizer`; else that of the model that is taken, or of the teacher.
    pub fn of(taken: Option<&TakenModel>, ctx: &TaskContext) -> Result<Self, StageError> {
        if let Some(path) = ctx.input_opt("tokenizer") {
            let tokenizer = Tokenizer::load(path)?;
            let vocab = tokenizer.vocab_size();
            return Ok(Self { tokenizer, vocab, file: Some(path.to_owned()), beside: Vec::new(), roles: None });
        }
        match taken {
            Some(taken) => Self::of_model(taken),
            None => {
                let help = "wire `tokenizer` to `tokenizer.bpe`";
                Self::of_model(&TakenModel::read(ctx.input("teacher")?, ("teacher", "tokenizer"), help)?)
            }
        }
    }

    fn of_model(of: &TakenModel) -> Result<Self, StageError> {
        let TokenizerFile { tokenizer, json, .. } = TokenizerFile::of_model(&of.at, &of.model)?;
        let template = ChatTemplate::of(&of.at, &tokenizer)?.map(|t| (CHAT_TEMPLATE, t.source().to_owned()));
        let file = of.model.tokenizer.clone();
        let content = file.is_none().then(|| ("tokenizer.json", json.to_string()));
        let roles = format::roles_of(&of.at, &of.model, &tokenizer)?;
        Ok(Self { tokenizer, vocab: of.model.config.vocab, file, beside: content.into_iter().chain(template).collect(), roles })
    }

    /// Writes a student's directory: its tensors, `extra` in its `config.json`, and this tokenizer.
    pub fn save<'t>(
        &self,
        dir: &Path,
        config: &ModelConfig,
        tensors: impl IntoIterator<Item = (&'t str, &'t [f32])>,
        mut extra: Value,
    ) -> Result<(), StageError> {
        if let Some(roles) = &self.roles {
            extra["tokens"] = json!(roles);
        }
        format::save(dir, config, tensors, self.file.as_deref(), &extra)?;
        for (name, content) in &self.beside {
            let path = dir.join(name);
            std::fs::write(&path, content).map_err(|e| StageError::io("cannot write", &path, &e))?;
        }
        Ok(())
    }
}

/// The parameters of a student of shape `config` that begins as a model, and what its log says of them. Without `init` the
/// blocks of both must be the same.
pub(super) fn start(
    init: Option<&Init>,
    taken: TakenModel,
    (config, tokenizer): (&ModelConfig, &Tokenizer),
    seed: u64,
    device: &Device,
    ctx: &TaskContext,
) -> Result<(Start, Value), StageError> {
    let TakenModel { model, tokenizer: theirs, .. } = taken;
    let Some(init) = init else {
        let start = Start::of(model, &theirs, config, tokenizer).map_err(of_init)?;
        let said = said(&start);
        return Ok((start, said));
    };
    let calibration = if init.calibrates() {
        // What it loses is refused where the student reads it.
        let text: Vec<TokenId> = theirs.encode(&read_text(ctx.input("text")?)?);
        let seq = config.seq.min(model.config.seq).min(model.config.window.unwrap_or(usize::MAX));
        Some(Calibration::of(device, &text, theirs.bos(), seq, init.calibration_tokens, seed).map_err(of_init)?)
    } else {
        None
    };
    let calibrated = calibration.as_ref().map(Calibration::tokens);
    if let Some(tokens) = calibrated {
        ctx.log(format!("init: measures what flows through the model over {tokens} tokens"));
    }
    let carved = Carved::of(model, &init.carve(), calibration.as_ref()).map_err(of_init)?;
    let start = Start::carved(carved, &theirs, config, tokenizer).map_err(of_init)?;
    name(&start, ctx);
    let mut said = said(&start);
    let kept = start.model().layers();
    said["layers"] = kept.iter().map(|l| l.from).collect();
    if let Some(tokens) = calibrated {
        said["calibration_tokens"] = tokens.into();
    }
    let of_layers = |of: fn(&KeptLayer) -> Value| kept.iter().map(of).collect::<Value>();
    if init.width.heads.is_some() {
        said["kv_heads"] = of_layers(|l| json!(l.kv_heads));
    }
    if init.sub_norm.is_some() {
        said["sub_norm"] = of_layers(|l| json!(l.sub_norm));
    }
    said["drawn"] = json!(start.drawn());
    said["left_out"] = json!(start.left_out());
    Ok((start, said))
}

fn said(start: &Start) -> Value {
    let vocabulary = if start.same_vocabulary() { "the same" } else { "another" };
    json!({"vocabulary": vocabulary, "parameters": start.parameters()})
}

/// Names every tensor that is not taken over.
fn name(start: &Start, ctx: &TaskContext) {
    for d in start.drawn() {
        let there = d.there.as_ref().map_or("the model has none".to_owned(), |shape| format!("the model's is {shape:?}"));
        ctx.log(format!("init: `{}` {:?} is drawn: {there}", d.tensor, d.here));
    }
    for tensor in start.left_out() {
        ctx.log(format!("init: `{tensor}` of the model is left out: the student has none"));
    }
    let (drawn, left_out) = (start.drawn().len(), start.left_out().len());
    if drawn + left_out > 0 {
        ctx.warn(format!(
            "init: {drawn} tensors do not match the model and are drawn, {left_out} of the model's are left out; the log names each"
        ));
    }
}

/// A refusal of what `init` asks for.
fn of_init(e: flow_lm::Error) -> StageError {
    let e = StageError::from(e);
    StageError { message: format!("`init`: {}", e.message), ..e }
}
