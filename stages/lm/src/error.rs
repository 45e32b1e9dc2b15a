//! What can go wrong, by concern. An [`Error`] says where (file, field, tensor) and what was found; its help says what to
//! do next, where more than one thing can be done.

use std::borrow::Cow;
use std::fmt;
use std::path::{Path, PathBuf};

use flow_shaders::device::DeviceError;

use crate::token::TokenId;

/// A result of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What went wrong, and what to do next.
#[derive(Debug)]
pub struct Error {
    /// What it is about.
    pub concern: Concern,
    /// What to do next.
    pub help: Option<Cow<'static, str>>,
}

/// What an error is about.
#[derive(Debug, thiserror::Error)]
pub enum Concern {
    /// A file or a directory could not be read or written.
    #[error(transparent)]
    File(#[from] FileError),
    /// A file holds something else than it should.
    #[error(transparent)]
    Format(#[from] FormatError),
    /// Two shapes do not go together.
    #[error(transparent)]
    Shape(#[from] ShapeError),
    /// A tokenizer.
    #[error(transparent)]
    Tokenizer(#[from] TokenizerError),
    /// A chat template.
    #[error(transparent)]
    Template(#[from] TemplateError),
    /// A grammar of answers.
    #[error(transparent)]
    Grammar(#[from] GrammarError),
    /// The device that computes.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// What is asked of a model that runs.
    #[error(transparent)]
    Request(#[from] RequestError),
    /// A training cannot go on.
    #[error(transparent)]
    Training(#[from] TrainingError),
}

/// The operating system refused something.
#[derive(Debug, thiserror::Error)]
#[error("{doing} {}: {source}", path.display())]
pub struct FileError {
    /// What was being done, such as `cannot read`.
    pub doing: &'static str,
    /// To which file or directory.
    pub path: PathBuf,
    /// What the system says.
    pub source: std::io::Error,
}

/// A file holds something else than it should.
#[derive(Debug, thiserror::Error)]
pub enum FormatError {
    /// It cannot be read at all.
    #[error("{}: not {format}: {why}", file.display())]
    Unreadable {
        /// The file.
        file: PathBuf,
        /// What it should be, such as `JSON`.
        format: String,
        /// What the reader says.
        why: String,
    },
    /// A field that must be there is not.
    #[error("{}: field `{field}` is missing", file.display())]
    MissingField {
        /// The file.
        file: PathBuf,
        /// The field.
        field: String,
    },
    /// A field has a value that cannot be.
    #[error("{}: field `{field}`: {why}", file.display())]
    Field {
        /// The file.
        file: PathBuf,
        /// The field.
        field: String,
        /// What was expected and found.
        why: String,
    },
    /// A tensor that must be there is not.
    #[error("{}: tensor `{tensor}` is missing{beside}", file.display())]
    MissingTensor {
        /// The file, or the directory of the files.
        file: PathBuf,
        /// The tensor, by its name there.
        tensor: String,
        /// Who asks for it, or what it should stand beside.
        beside: String,
    },
    /// A tensor has another shape than the configuration says.
    #[error("{}: tensor `{tensor}` has shape {found:?}, config.json asks for {wanted:?}", file.display())]
    TensorShape {
        /// The file.
        file: PathBuf,
        /// The tensor, by its name there.
        tensor: String,
        /// Its shape.
        found: Vec<usize>,
        /// What it should be.
        wanted: Vec<usize>,
    },
    /// A tensor cannot be what it says.
    #[error("{}: tensor `{tensor}` {why}", file.display())]
    Tensor {
        /// The file.
        file: PathBuf,
        /// The tensor, by its name there.
        tensor: String,
        /// What is wrong with it, with the value.
        why: String,
    },
    /// What the file asks for is not built in, or cannot be said in its format.
    #[error("{}: {why}", file.display())]
    Unsupported {
        /// The file.
        file: PathBuf,
        /// What.
        why: String,
    },
    /// Something that is to be written cannot be.
    #[error("{what}")]
    Write {
        /// What, and why not.
        what: String,
    },
}

impl FormatError {
    /// A field with a value that cannot be.
    pub fn field(file: &Path, field: impl Into<String>, why: impl Into<String>) -> Error {
        Self::Field { file: file.to_owned(), field: field.into(), why: why.into() }.into()
    }
    /// A tensor that cannot be what it says.
    pub fn tensor(file: &Path, tensor: &str, why: impl Into<String>) -> Error {
        Self::Tensor { file: file.to_owned(), tensor: tensor.to_owned(), why: why.into() }.into()
    }
    /// What is not built in.
    pub fn unsupported(file: &Path, why: impl Into<String>) -> Error {
        Self::Unsupported { file: file.to_owned(), why: why.into() }.into()
    }
    /// A file that is not JSON.
    pub fn not_json(file: &Path, e: &serde_json::Error) -> Error {
        Self::Unreadable { file: file.to_owned(), format: "JSON".into(), why: e.to_string() }.into()
    }
    /// What cannot be written.
    pub fn write(what: impl Into<String>) -> Error {
        Self::Write { what: what.into() }.into()
    }
}

/// Two shapes do not go together.
#[derive(Debug, thiserror::Error)]
pub enum ShapeError {
    /// A configuration cannot be that of a model.
    #[error("{}: field `config.{field}`: {why}", file.display())]
    Config {
        /// Where it stands.
        file: PathBuf,
        /// The field.
        field: &'static str,
        /// What is wrong with it.
        why: String,
    },
    /// A training cannot start from a model.
    #[error("{why}")]
    Start {
        /// Which part of the model does not fit, with both values.
        why: String,
    },
    /// A session is for more positions than attention sees.
    #[error("sequences of {positions} tokens: attention sees a window of {window} (sliding windows are not computed)")]
    Window {
        /// Of a sequence.
        positions: usize,
        /// Keys that a position sees.
        window: usize,
    },
    /// A model cannot be said in another format.
    #[error("the model cannot be written as {to}: {why}")]
    Export {
        /// The format.
        to: &'static str,
        /// What it has no place for.
        why: String,
    },
}

/// A tokenizer.
#[derive(Debug, thiserror::Error)]
pub enum TokenizerError {
    /// Its file cannot be read.
    #[error("{}: not a tokenizer: {why}", file.display())]
    Unreadable {
        /// The file.
        file: PathBuf,
        /// Why.
        why: String,
    },
    /// A model came without one.
    #[error("{}: no tokenizer.json", dir.display())]
    Missing {
        /// The model's directory.
        dir: PathBuf,
    },
    /// It has more tokens than the model.
    #[error("{}: {}", place.display(), beyond(name, *tokens, *vocab))]
    Beyond {
        /// The model's directory, or the tokenizer's file.
        place: PathBuf,
        /// How the tokenizer is called there; nothing where the place is its file.
        name: &'static str,
        /// Its tokens.
        tokens: usize,
        /// The model's.
        vocab: usize,
    },
    /// A format has no place for it.
    #[error("{}: {why}", file.display())]
    Unsupported {
        /// Its file.
        file: PathBuf,
        /// What of it.
        why: String,
    },
    /// A text does not allow as many tokens as were asked for.
    #[error("{wanted} tokens were asked for, the text allows {reachable}")]
    TooFewPairs {
        /// Tokens that were asked for.
        wanted: usize,
        /// Tokens that the text allows.
        reachable: usize,
    },
    /// It could not be trained.
    #[error("the tokenizer could not be trained: {0}")]
    Training(String),
}

fn beyond(name: &str, tokens: usize, vocab: usize) -> String {
    if name.is_empty() {
        format!("holds {tokens} tokens, the model only {vocab}")
    } else {
        format!("{name} has {tokens} tokens, the model {vocab}")
    }
}

/// A chat template cannot take what is put to it.
#[derive(Debug, thiserror::Error)]
#[error("{}: the chat template fails: {why}", place.display())]
pub struct TemplateError {
    /// Where it stands.
    pub place: PathBuf,
    /// What it says.
    pub why: String,
}

/// A grammar that answers cannot be held to.
#[derive(Debug, thiserror::Error)]
pub enum GrammarError {
    /// A GBNF text that is none.
    #[error("the grammar, line {line}, column {column}: {why}")]
    Gbnf {
        /// Line, from 1.
        line: usize,
        /// Character of the line, from 1.
        column: usize,
        /// What is wrong there.
        why: String,
    },
    /// It is larger than what is compiled.
    #[error("the grammar is too large: {what} {found}, at most {most}")]
    Large {
        /// What of it.
        what: &'static str,
        /// What was found.
        found: usize,
        /// What is allowed.
        most: usize,
    },
    /// It cannot be compiled, or not be followed further.
    #[error("the grammar or schema cannot be used: {why}")]
    Refused {
        /// What the compiler says.
        why: String,
    },
}

/// What is asked of a model that runs.
#[derive(Debug, thiserror::Error)]
pub enum RequestError {
    /// A rule of choosing tokens that cannot be.
    #[error("{field}: {why}")]
    Sampling {
        /// The field.
        field: &'static str,
        /// What is wrong with it, with the value.
        why: String,
    },
    /// A prompt without a token.
    #[error("the prompt holds no token")]
    Empty,
    /// A token that the model does not have.
    #[error("token {id} of the prompt: the model has {vocab}")]
    Token {
        /// The token.
        id: TokenId,
        /// Tokens of the model.
        vocab: usize,
    },
    /// A prompt that leaves no room in a slot.
    #[error("the prompt has {tokens} tokens, a slot holds {room}, one of them for the answer")]
    Long {
        /// Tokens of the prompt.
        tokens: usize,
        /// Positions of a slot.
        room: usize,
    },
    /// A session that was not made for such requests.
    #[error("the session was built without `{what}`")]
    Unprepared {
        /// The field of [`crate::infer::Uses`].
        what: &'static str,
    },
    /// Every slot is taken.
    #[error("all {slots} slots are taken")]
    Full {
        /// Slots of the session.
        slots: usize,
    },
}

/// A training cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum TrainingError {
    /// Too many steps had a gradient that was not finite.
    #[error(
        "step {step}: {skipped} of {attempted} attempted steps were skipped because a gradient was not finite ({nan_steps} of them with a loss \
         that was not), at {seen_tokens} tokens; {rule}"
    )]
    Skipped {
        /// Optimizer step.
        step: u64,
        /// Steps that were skipped.
        skipped: u64,
        /// Steps whose gradient could have been finite.
        attempted: u64,
        /// Steps whose loss was not finite.
        nan_steps: u64,
        /// Targets seen.
        seen_tokens: u64,
        /// What is allowed.
        rule: String,
    },
    /// No loss scale will do.
    #[error(
        "step {step}: {in_a_row} steps in a row overflowed what float16 holds, down to a loss scale of {loss_scale}, at {seen_tokens} tokens"
    )]
    Overflows {
        /// Optimizer step.
        step: u64,
        /// Overflows in a row.
        in_a_row: u64,
        /// The scale at the end.
        loss_scale: f32,
        /// Targets seen.
        seen_tokens: u64,
    },
    /// What flows through a model is not finite.
    #[error("what flows into `layers.{layer}.{what}` over the calibration text is not finite")]
    Calibration {
        /// The layer.
        layer: usize,
        /// The linear.
        what: &'static str,
    },
    /// The parameters of the best evaluation are gone.
    #[error("{} is missing or damaged: the best checkpoint is lost", file.display())]
    BestLost {
        /// Where they were.
        file: PathBuf,
    },
    /// The windows are not those that were counted.
    #[error("the traces changed while they were read: window {window} of epoch {epoch} is gone")]
    Changed {
        /// The window that is missing.
        window: u64,
        /// The epoch.
        epoch: u64,
    },
    /// A checkpoint could not be written.
    #[error("cannot write checkpoint {}: {why}", file.display())]
    Checkpoint {
        /// Where to.
        file: PathBuf,
        /// Why.
        why: String,
    },
}

impl Error {
    /// Adds what to do next.
    #[must_use]
    pub fn help(mut self, help: impl Into<Cow<'static, str>>) -> Self {
        self.help = Some(help.into());
        self
    }

    /// The operating system refused something; `doing` as in [`FileError::doing`].
    pub fn io(doing: &'static str, path: &Path, source: std::io::Error) -> Self {
        FileError { doing, path: path.to_owned(), source }.into()
    }
}

impl<C: Into<Concern>> From<C> for Error {
    fn from(concern: C) -> Self {
        Self { concern: concern.into(), help: None }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.concern.fmt(f)
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.concern.source()
    }
}

impl miette::Diagnostic for Error {
    fn help<'a>(&'a self) -> Option<Box<dyn fmt::Display + 'a>> {
        self.help.as_ref().map(|h| Box::new(h) as Box<dyn fmt::Display>)
    }
}
