//! Reading a model, whatever its layout.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::checkpoint::Checkpoint;
use super::directory::{self, json_or_none};
use super::gguf::{self, GgufFile};
use super::{flow, hf};
use crate::config::{ModelConfig, Weights};
use crate::error::{Error, FormatError, Result, TokenizerError};
use crate::tokenizer::{Roles, Tokenizer};

/// `model_type` of a directory whose weights are [`MODEL_GGUF`].
pub const GGUF_TYPE: &str = "gguf";

/// The weights of such a directory.
pub const MODEL_GGUF: &str = "model.gguf";

/// The weights of such a directory where they came in parts: the name of one of them.
#[must_use]
pub fn part_name(number: usize, of: usize) -> String {
    format!("model-{number:05}-of-{of:05}.gguf")
}

/// The file of such a directory that is read: the first part where there are several.
fn model_file(dir: &Path) -> PathBuf {
    let is_first = |name: &str| name.starts_with("model-00001-of-") && name.ends_with(".gguf");
    let names = std::fs::read_dir(dir).into_iter().flatten().flatten().filter_map(|e| e.file_name().into_string().ok());
    let first = names.into_iter().find(|name| is_first(name));
    dir.join(first.as_deref().unwrap_or(MODEL_GGUF))
}

/// The GGUF file that a path is, or whose directory it is.
pub(super) fn is_around_gguf(path: &Path) -> Result<Option<PathBuf>> {
    if path.is_file() {
        return Ok(Some(path.to_owned()));
    }
    let (_, json) = config_of(path)?;
    Ok((json["model_type"] == GGUF_TYPE).then(|| model_file(path)))
}

/// `config.json` is no longer than this.
const LONGEST_CONFIG: u64 = 16 << 20;

/// Shape of what [`load`] reads, out of `config.json` or the header of a GGUF file: no tensor is looked for. How ternary matrices
/// of a GGUF file are held is known only with their values: it is called `Float` here.
pub fn shape(path: &Path) -> Result<ModelConfig> {
    if path.is_file() {
        return gguf::model::shape(path);
    }
    let (file, json) = config_of(path)?;
    match json["model_type"].as_str() {
        Some(GGUF_TYPE) => within_file(gguf::model::shape(&model_file(path))?, &file, &json),
        Some(flow::MODEL_TYPE) => flow::config_of(&file, json, None).map(|(config, _)| config),
        _ => hf::config_of(&file, &json, None),
    }
}

/// Reads a model: a directory of ours, one of Hugging Face's (`model_type` `llama` or `bitnet`), one around a GGUF file, or
/// a GGUF file itself.
pub fn load(path: &Path) -> Result<Checkpoint> {
    load_as(path, None)
}

/// Reads a model with other block linears than its configuration says (a BitNet checkpoint in full precision).
pub fn load_as(dir: &Path, weights: Option<Weights>) -> Result<Checkpoint> {
    if dir.is_file() {
        let (config, tensors) = gguf::model::load(GgufFile::read(dir)?)?;
        return Ok(Checkpoint { config, tensors, extra: Value::Null, tokenizer: None });
    }
    let (path, json) = config_of(dir)?;
    let tokenizer = Some(dir.join("tokenizer.json")).filter(|t| t.is_file());
    match json["model_type"].as_str() {
        Some(GGUF_TYPE) => around_gguf(dir, &path, &json, tokenizer),
        Some(flow::MODEL_TYPE) => flow::load(dir, &path, json, weights, tokenizer),
        _ => {
            let (config, tensors) = hf::read_directory(dir, &path, &json, weights)?;
            Ok(Checkpoint { config, tensors, extra: json["extra"].clone(), tokenizer })
        }
    }
}

/// `config.json` of a directory, and where it lies.
fn config_of(dir: &Path) -> Result<(PathBuf, Value)> {
    let path = dir.join("config.json");
    let mut text = Vec::new();
    File::open(&path)
        .and_then(|file| file.take(LONGEST_CONFIG).read_to_end(&mut text))
        .map_err(|e| Error::io("cannot read", &path, e).help("a model directory holds config.json and model.safetensors"))?;
    let json = serde_json::from_slice(&text).map_err(|e| FormatError::not_json(&path, &e))?;
    Ok((path, json))
}

/// Reads a model with its tokenizer.
pub fn load_with_tokenizer(path: &Path) -> Result<(Checkpoint, Tokenizer)> {
    let model = load(path)?;
    let tokenizer = tokenizer_of(path, &model)?;
    Ok((model, tokenizer))
}

/// The tokenizer that a model at `path` came with, its tokens' roles as the model's files give them.
pub fn tokenizer_of(path: &Path, model: &Checkpoint) -> Result<Tokenizer> {
    let (tokenizer, name) = if path.is_file() {
        let file = GgufFile::read(path)?;
        let json = gguf::tokenizer::json(&file)?.to_string();
        let unreadable = |why| TokenizerError::Unreadable { file: path.to_owned(), why };
        (Tokenizer::from_bytes(json.as_bytes()).map_err(unreadable)?, "its tokenizer")
    } else {
        let json = model.tokenizer.as_ref().ok_or_else(|| {
            Error::from(TokenizerError::Missing { dir: path.to_owned() }).help("a model directory needs its tokenizer beside config.json")
        })?;
        (Tokenizer::load(json)?, "tokenizer.json")
    };
    let roles = roles_of(path, model, &tokenizer)?;
    let tokenizer = roles.iter().fold(tokenizer, Tokenizer::with_roles);
    let (tokens, vocab) = (tokenizer.vocab_size(), model.config.vocab);
    if tokens > vocab {
        return Err(TokenizerError::Beyond { place: path.to_owned(), name, tokens, vocab }.into());
    }
    Ok(tokenizer)
}

/// Roles of tokens where a model's files say them: as `flow` wrote them down, else those that the keys of a GGUF file or the
/// small files beside a checkpoint of others give.
pub fn roles_of(path: &Path, model: &Checkpoint, tokenizer: &Tokenizer) -> Result<Option<Roles>> {
    if path.is_file() {
        return gguf::roles::of(&GgufFile::read(path)?).map(Some);
    }
    if let Ok(roles) = serde_json::from_value::<Roles>(model.extra["tokens"].clone()) {
        return Ok(Some(roles));
    }
    let config = json_or_none(&path.join("config.json"))?.unwrap_or_default();
    if config["model_type"] == flow::MODEL_TYPE && json_or_none(&path.join("tokenizer_config.json"))?.is_none() {
        return Ok(None);
    }
    directory::roles(path, &config, tokenizer).map(Some)
}

fn around_gguf(dir: &Path, path: &Path, json: &Value, tokenizer: Option<PathBuf>) -> Result<Checkpoint> {
    let (config, tensors) = gguf::model::load(GgufFile::read(&model_file(dir))?)?;
    Ok(Checkpoint { config: within_file(config, path, json)?, tensors, extra: json["extra"].clone(), tokenizer })
}

/// A file's shape with the window that the directory around it says.
fn within_file(mut config: ModelConfig, path: &Path, json: &Value) -> Result<ModelConfig> {
    let seq = json["seq"].as_u64().filter(|n| (1..=config.seq as u64).contains(n));
    config.seq = seq
        .ok_or_else(|| FormatError::field(path, "seq", format!("expected a number from 1 to {}, found {}", config.seq, json["seq"])))?
        as usize;
    Ok(config)
}
