//! A model on disk: `config.json`, `model.safetensors` and `tokenizer.json` in one directory.
//!
//! [`save`] writes our own layout: float32 tensors by the names of [`ModelConfig::tensors`]. [`load`] reads it back,
//! and Hugging Face directories (`model_type` `llama` or `bitnet`) and GGUF files (`model_type` `gguf`, `model.gguf`)
//! into the same form.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

use flow_engine::plugin::StageError;
use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::config::{ModelConfig, Weights};
use super::import;
use super::tensors::Tensors;
use crate::gguf::{self, GgufFile};
use crate::map::Mapped;

/// A model that was read.
#[derive(Clone, Debug)]
pub struct Checkpoint {
    /// Shape and numerics.
    pub config: ModelConfig,
    /// Float32 tensors by the names of [`ModelConfig::tensors`], each of the right size.
    pub tensors: Tensors,
    /// What the writer said beside the shape (preset, activation bits, digests, roles of tokens); `null` where nothing.
    pub extra: Value,
    /// `tokenizer.json`, if the directory holds one.
    pub tokenizer: Option<PathBuf>,
}

/// `config.json` of our own checkpoints.
#[derive(Serialize, Deserialize)]
struct ConfigFile {
    model_type: String,
    config: ModelConfig,
    #[serde(default)]
    extra: Value,
}

const MODEL_TYPE: &str = "flow";

/// `model_type` of a directory whose weights are [`MODEL_GGUF`].
pub const GGUF_TYPE: &str = "gguf";

/// The weights of such a directory.
pub const MODEL_GGUF: &str = "model.gguf";

/// Writes a model directory; the same content always gives the same bytes.
pub fn save<'t>(
    dir: &Path,
    config: &ModelConfig,
    tensors: impl IntoIterator<Item = (&'t str, &'t [f32])>,
    tokenizer: Option<&Path>,
    extra: &Value,
) -> Result<(), StageError> {
    std::fs::create_dir_all(dir).map_err(|e| StageError::io("cannot make", dir, &e))?;
    let given: HashMap<&str, &[f32]> = tensors.into_iter().collect();
    let mut views = Vec::new();
    for spec in config.tensors() {
        let values = given.get(spec.name.as_str()).copied().unwrap_or_default();
        if values.len() != spec.len() {
            return Err(StageError::new(format!(
                "checkpoint {}: tensor `{}` has {} values, the shape {:?} needs {}",
                dir.display(),
                spec.name,
                values.len(),
                spec.shape,
                spec.len()
            )));
        }
        let view = TensorView::new(Dtype::F32, spec.shape.clone(), bytemuck::cast_slice(values))
            .map_err(|e| StageError::new(format!("checkpoint {}: tensor `{}`: {e}", dir.display(), spec.name)))?;
        views.push((spec.name, view));
    }
    let path = dir.join("model.safetensors");
    safetensors::serialize_to_file(views, None, &path).map_err(|e| StageError::new(format!("cannot write {}: {e}", path.display())))?;
    let file = ConfigFile { model_type: MODEL_TYPE.into(), config: config.clone(), extra: extra.clone() };
    let json = serde_json::to_string_pretty(&file).map_err(|e| StageError::new(e.to_string()))?;
    let path = dir.join("config.json");
    std::fs::write(&path, json + "\n").map_err(|e| StageError::io("cannot write", &path, &e))?;
    if let Some(from) = tokenizer {
        let to = dir.join("tokenizer.json");
        // Read and written, not copied: an input in a cache is read-only, and so would its copy be.
        let bytes = std::fs::read(from).map_err(|e| StageError::io("cannot read", from, &e))?;
        std::fs::write(&to, bytes).map_err(|e| StageError::io("cannot write", &to, &e))?;
    }
    Ok(())
}

/// Reads a model directory: ours, or a Hugging Face one.
pub fn load(dir: &Path) -> Result<Checkpoint, StageError> {
    load_as(dir, None)
}

/// Reads a model directory with other block linears than its configuration says (a BitNet checkpoint in full precision).
pub fn load_as(dir: &Path, weights: Option<Weights>) -> Result<Checkpoint, StageError> {
    let path = dir.join("config.json");
    let text = std::fs::read(&path)
        .map_err(|e| StageError::io("cannot read", &path, &e).help("a model directory holds config.json and model.safetensors"))?;
    let json: Value = serde_json::from_slice(&text).map_err(|e| StageError::new(format!("{}: not JSON: {e}", path.display())))?;
    let tokenizer = Some(dir.join("tokenizer.json")).filter(|t| t.is_file());
    if json["model_type"] == GGUF_TYPE {
        return load_gguf(dir, &path, &json, tokenizer);
    }
    if json["model_type"] != MODEL_TYPE {
        let (config, tensors) = import::hugging_face(dir, &path, &json, weights)?;
        return Ok(Checkpoint { config, tensors, extra: json["extra"].clone(), tokenizer });
    }
    let file: ConfigFile = serde_json::from_value(json).map_err(|e| StageError::new(format!("{}: {e}", path.display())))?;
    let mut config = file.config;
    config.weights = weights.unwrap_or(config.weights);
    if let Some((field, message)) = config.problem() {
        return Err(StageError::new(format!("{}: field `config.{field}`: {message}", path.display())));
    }
    let mut tensors = BTreeMap::new();
    let path = dir.join("model.safetensors");
    let bytes = Mapped::open(&path)?;
    let stored = parse(&path, &bytes)?;
    for spec in config.tensors() {
        let view = stored.tensor(&spec.name).map_err(|_| {
            StageError::new(format!("{}: tensor `{}` is missing; config.json asks for it", path.display(), spec.name))
                .help("the two files of the directory belong to different models")
        })?;
        if view.shape() != spec.shape {
            return Err(wrong_shape(&path, &spec.name, view.shape(), &spec.shape));
        }
        tensors.insert(spec.name.clone(), floats(&path, &spec.name, &view)?);
    }
    Ok(Checkpoint { config, tensors: tensors.into(), extra: file.extra, tokenizer })
}

fn load_gguf(dir: &Path, path: &Path, json: &Value, tokenizer: Option<PathBuf>) -> Result<Checkpoint, StageError> {
    let (mut config, tensors) = gguf::model::load(GgufFile::read(&dir.join(MODEL_GGUF))?)?;
    let seq = json["seq"].as_u64().filter(|n| (1..=config.seq as u64).contains(n));
    config.seq = seq.ok_or_else(|| {
        StageError::new(format!("{}: field `seq`: expected a number from 1 to {}, found {}", path.display(), config.seq, json["seq"]))
    })? as usize;
    Ok(Checkpoint { config, tensors, extra: json["extra"].clone(), tokenizer })
}

pub(super) fn read_file(path: &Path) -> Result<Vec<u8>, StageError> {
    std::fs::read(path).map_err(|e| StageError::io("cannot read", path, &e))
}

pub(super) fn parse<'b>(path: &Path, bytes: &'b [u8]) -> Result<SafeTensors<'b>, StageError> {
    SafeTensors::deserialize(bytes).map_err(|e| {
        StageError::new(format!("{}: not a readable safetensors file ({} bytes): {e}", path.display(), bytes.len())).help(
            "the file is damaged or cut short: fetch it again, or delete it and run the stage that makes it (in a cache, `flow verify` heals it)",
        )
    })
}

pub(super) fn wrong_shape(path: &Path, name: &str, found: &[usize], wanted: &[usize]) -> StageError {
    StageError::new(format!("{}: tensor `{name}` has shape {found:?}, config.json asks for {wanted:?}", path.display()))
        .help("the two files of the directory belong to different models")
}

/// Values of a float tensor as float32.
pub(super) fn floats(path: &Path, name: &str, view: &TensorView<'_>) -> Result<Vec<f32>, StageError> {
    let bytes = view.data();
    let halves = || bytes.chunks_exact(2).map(|b| u16::from_le_bytes([b[0], b[1]]));
    match view.dtype() {
        Dtype::F32 => Ok(bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect()),
        Dtype::F16 => Ok(halves().map(|h| half::f16::from_bits(h).to_f32()).collect()),
        Dtype::BF16 => Ok(halves().map(|h| half::bf16::from_bits(h).to_f32()).collect()),
        other => Err(StageError::new(format!("{}: tensor `{name}` has type {other:?}, expected F32, F16 or BF16", path.display()))),
    }
}
