//! Whether all weights of a model are finite: one that is not makes every logit so, far from where it stands.

use std::path::Path;

use rayon::prelude::*;

use super::checkpoint::Checkpoint;
use super::directory::json_or_none;
use super::gguf::names::gguf_name;
use super::hf::hugging_face_name;
use super::load::GGUF_TYPE;
use super::{flow, tensors::TensorSource};
use crate::error::{FormatError, Result};

/// Refuses a model that was read from `path` for its first weight that is NaN or infinite: one parallel pass over all.
pub fn check(path: &Path, model: &Checkpoint) -> Result<()> {
    let specs = model.config.tensors();
    let bad = specs.iter().find_map(|spec| {
        let values = model.tensors.tensor(&spec.name);
        let at = values.par_iter().position_first(|v| !v.is_finite())?;
        Some((spec, at, values[at]))
    });
    let Some((spec, at, value)) = bad else { return Ok(()) };
    let place = match spec.shape[..] {
        [_, cols] => format!("[{}, {}]", at / cols, at % cols),
        _ => format!("[{at}]"),
    };
    let why = format!("holds {value} at {place}: weights must be finite");
    Err(FormatError::tensor(path, &name_in(path, &spec.name)?, why)
        .help("the file is damaged or was written by a training that diverged: fetch it again, or take an earlier checkpoint"))
}

/// What a tensor is called in the files of a model.
fn name_in(path: &Path, ours: &str) -> Result<String> {
    let kind =
        if path.is_file() { Some(GGUF_TYPE.into()) } else { json_or_none(&path.join("config.json"))?.map(|c| c["model_type"].clone()) };
    Ok(match kind.as_ref().and_then(|k: &serde_json::Value| k.as_str()) {
        Some(GGUF_TYPE) => gguf_name(ours),
        Some(flow::MODEL_TYPE) => ours.to_owned(),
        _ => hugging_face_name(ours),
    })
}
