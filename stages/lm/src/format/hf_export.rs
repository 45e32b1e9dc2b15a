//! A model as a directory in Hugging Face's layout, as transformers, vLLM and others load it.

use std::borrow::Cow;
use std::collections::HashMap;
use std::path::Path;

use ::safetensors::tensor::Dtype;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::checkpoint::Checkpoint;
use super::hf::hugging_face_name;
use super::hf_config::{self, Tokens};
use super::ternary::{held, values};
use super::tokenizer_file::TokenizerFile;
use crate::config::{Group, Role, TensorSpec};
use crate::error::{Error, FormatError, Result, TokenizerError};

/// How weights are stored.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum FloatType {
    /// bfloat16: the scale of a ternary matrix is rounded to 8 bits.
    #[default]
    Bfloat16,
    /// float32: values of ternary matrices are exact.
    Float32,
}

impl FloatType {
    /// Name in torch.
    pub fn name(self) -> &'static str {
        match self {
            FloatType::Bfloat16 => "bfloat16",
            FloatType::Float32 => "float32",
        }
    }
    /// By its name.
    pub fn of(name: &str) -> Option<Self> {
        [FloatType::Bfloat16, FloatType::Float32].into_iter().find(|t| t.name() == name)
    }
}

/// The files of such a directory, the card apart.
pub const FILES: [&str; 5] = ["config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "model.safetensors"];

/// Writes everything but a model card into `dir`; bytes of all tensors.
pub fn export(model: &Checkpoint, tokenizer: &TokenizerFile, template: Option<&str>, dtype: FloatType, dir: &Path) -> Result<u64> {
    let c = &model.config;
    let family = hf_config::family(c)?;
    let tokens = tokenizer.tokenizer.vocab_size();
    if tokens > c.vocab {
        return Err(TokenizerError::Beyond { place: tokenizer.place.clone(), name: "", tokens, vocab: c.vocab }.into());
    }
    std::fs::create_dir_all(dir).map_err(|e| Error::io("cannot make", dir, e))?;
    let ends = tokenizer.tokenizer.ends().iter().map(|t| t.0).collect();
    let tokens = Tokens { bos: tokenizer.bos().0, ends };
    put(dir, "config.json", &hf_config::config(c, family, dtype.name(), &tokens))?;
    put(dir, "generation_config.json", &json!({"bos_token_id": tokens.bos, "eos_token_id": tokens.eos(), "do_sample": false}))?;
    put(dir, "tokenizer.json", &tokenizer.content())?;
    put(dir, "tokenizer_config.json", &settings(model, tokenizer, template))?;
    weights(model, dtype, &dir.join("model.safetensors"))
}

fn put(dir: &Path, name: &str, json: &Value) -> Result<()> {
    let path = dir.join(name);
    let text = serde_json::to_string_pretty(json).map_err(|e| FormatError::write(e.to_string()))?;
    std::fs::write(&path, text + "\n").map_err(|e| Error::io("cannot write", &path, e))
}

fn settings(model: &Checkpoint, tokenizer: &TokenizerFile, template: Option<&str>) -> Value {
    let name = |id| tokenizer.tokenizer.name_of(id);
    let mut json = json!({
        "tokenizer_class": "PreTrainedTokenizerFast", "bos_token": name(tokenizer.bos()), "eos_token": name(tokenizer.tokenizer.eos()),
        "add_bos_token": tokenizer.adds_bos(), "model_max_length": model.config.seq, "clean_up_tokenization_spaces": false,
    });
    if let Some(template) = template {
        json["chat_template"] = template.into();
    }
    json
}

/// A tensor whose bytes are made when they are written, so that a model is in memory once.
struct Made<'m> {
    model: &'m Checkpoint,
    spec: TensorSpec,
    dtype: FloatType,
}

impl ::safetensors::View for Made<'_> {
    fn dtype(&self) -> Dtype {
        match self.dtype {
            FloatType::Bfloat16 => Dtype::BF16,
            FloatType::Float32 => Dtype::F32,
        }
    }
    fn shape(&self) -> &[usize] {
        &self.spec.shape
    }
    fn data(&self) -> Cow<'_, [u8]> {
        let (c, tensors) = (&self.model.config, &self.model.tensors);
        // Where transformers rounds, it takes the mean magnitude for the scale: masters have the scale as theirs.
        let masters = hf_config::rounds(c) && self.spec.role == Role::Linear;
        let masters = if masters { held(c, tensors, &self.spec).map(|m| m.masters(Group::Tensor)) } else { None };
        let values = masters.map_or_else(|| values(c, tensors, &self.spec), Cow::Owned);
        Cow::Owned(match self.dtype {
            FloatType::Bfloat16 => values.iter().flat_map(|v| half::bf16::from_f32(*v).to_bits().to_le_bytes()).collect(),
            FloatType::Float32 => values.iter().flat_map(|v| v.to_le_bytes()).collect(),
        })
    }
    fn data_len(&self) -> usize {
        self.spec.len() * if self.dtype == FloatType::Float32 { 4 } else { 2 }
    }
}

fn weights(model: &Checkpoint, dtype: FloatType, path: &Path) -> Result<u64> {
    let specs = model.config.tensors().into_iter().filter(|t| t.role != Role::Scale);
    let views: Vec<_> = specs.map(|spec| (hugging_face_name(&spec.name), Made { model, spec, dtype })).collect();
    let bytes = views.iter().map(|(_, v)| ::safetensors::View::data_len(v) as u64).sum();
    let about = HashMap::from([("format".to_owned(), "pt".to_owned())]);
    ::safetensors::serialize_to_file(views, Some(about), path)
        .map_err(|e| FormatError::write(format!("cannot write {}: {e}", path.display())))?;
    // The library keeps what it writes to the owner; this file is read by whoever reads its neighbours.
    let beside = std::fs::metadata(path.with_file_name("config.json")).map(|m| m.permissions());
    beside.and_then(|p| std::fs::set_permissions(path, p)).map_err(|e| Error::io("cannot write", path, e))?;
    Ok(bytes)
}
