//! Our own layout: `config.json`, `model.safetensors` with float32 tensors by the names of [`ModelConfig::tensors`], and
//! `tokenizer.json` in one directory.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

use safetensors::tensor::{Dtype, TensorView};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::checkpoint::Checkpoint;
use super::map::Mapped;
use super::safetensors::{floats, parse, wrong_shape};
use crate::config::{ModelConfig, Weights};
use crate::error::{Error, FormatError, Result, ShapeError};

/// `config.json`.
#[derive(Serialize, Deserialize)]
struct ConfigFile {
    model_type: String,
    config: ModelConfig,
    #[serde(default)]
    extra: Value,
}

/// `model_type` of such a directory.
pub(super) const MODEL_TYPE: &str = "flow";

/// Writes a model directory; the same content always gives the same bytes.
pub fn save<'t>(
    dir: &Path,
    config: &ModelConfig,
    tensors: impl IntoIterator<Item = (&'t str, &'t [f32])>,
    tokenizer: Option<&Path>,
    extra: &Value,
) -> Result<()> {
    std::fs::create_dir_all(dir).map_err(|e| Error::io("cannot make", dir, e))?;
    let given: HashMap<&str, &[f32]> = tensors.into_iter().collect();
    let mut views = Vec::new();
    for spec in config.tensors() {
        let values = given.get(spec.name.as_str()).copied().unwrap_or_default();
        if values.len() != spec.len() {
            return Err(FormatError::write(format!(
                "checkpoint {}: tensor `{}` has {} values, the shape {:?} needs {}",
                dir.display(),
                spec.name,
                values.len(),
                spec.shape,
                spec.len()
            )));
        }
        let view = TensorView::new(Dtype::F32, spec.shape.clone(), bytemuck::cast_slice(values))
            .map_err(|e| FormatError::write(format!("checkpoint {}: tensor `{}`: {e}", dir.display(), spec.name)))?;
        views.push((spec.name, view));
    }
    let path = dir.join("model.safetensors");
    ::safetensors::serialize_to_file(views, None, &path)
        .map_err(|e| FormatError::write(format!("cannot write {}: {e}", path.display())))?;
    let file = ConfigFile { model_type: MODEL_TYPE.into(), config: config.clone(), extra: extra.clone() };
    let json = serde_json::to_string_pretty(&file).map_err(|e| FormatError::write(e.to_string()))?;
    let path = dir.join("config.json");
    std::fs::write(&path, json + "\n").map_err(|e| Error::io("cannot write", &path, e))?;
    if let Some(from) = tokenizer {
        let to = dir.join("tokenizer.json");
        // Read and written, not copied: an input in a cache is read-only, and so would its copy be.
        let bytes = std::fs::read(from).map_err(|e| Error::io("cannot read", from, e))?;
        std::fs::write(&to, bytes).map_err(|e| Error::io("cannot write", &to, e))?;
    }
    Ok(())
}

/// Reads such a directory, whose `config.json` (at `path`) is `json`; `weights` where the block linears are to be others than
/// it says.
pub(super) fn load(dir: &Path, path: &Path, json: Value, weights: Option<Weights>, tokenizer: Option<PathBuf>) -> Result<Checkpoint> {
    let (config, extra) = config_of(path, json, weights)?;
    let mut tensors = BTreeMap::new();
    let path = dir.join("model.safetensors");
    let bytes = Mapped::open(&path)?;
    let stored = parse(&path, &bytes)?;
    for spec in config.tensors() {
        let view = stored.tensor(&spec.name).map_err(|_| {
            let (tensor, beside) = (spec.name.clone(), "; config.json asks for it".to_owned());
            Error::from(FormatError::MissingTensor { file: path.clone(), tensor, beside })
                .help("the two files of the directory belong to different models")
        })?;
        if view.shape() != spec.shape {
            return Err(wrong_shape(&path, &spec.name, view.shape(), &spec.shape));
        }
        tensors.insert(spec.name.clone(), floats(&path, &spec.name, &view)?);
    }
    Ok(Checkpoint { config, tensors: tensors.into(), extra, tokenizer })
}

/// Shape in such a `config.json` (at `path`), and what was said beside it.
pub(super) fn config_of(path: &Path, json: Value, weights: Option<Weights>) -> Result<(ModelConfig, Value)> {
    let file: ConfigFile = serde_json::from_value(json).map_err(|e| FormatError::unsupported(path, e.to_string()))?;
    let mut config = file.config;
    config.weights = weights.unwrap_or(config.weights);
    match config.problem() {
        Some((field, why)) => Err(ShapeError::Config { file: path.to_owned(), field, why }.into()),
        None => Ok((config, file.extra)),
    }
}
