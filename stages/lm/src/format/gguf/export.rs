//! A ternary student as a file that stock llama.cpp loads.

use std::path::Path;

use half::f16;
use rayon::prelude::*;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::names::gguf_name;
use super::pack;
use super::tokenizer_keys;
use super::types::TensorType;
use super::write::{Entry, GgufWriter, Value};
use crate::config::{Activation, ModelConfig, Role, TensorSpec, Weights};
use crate::error::{Error, Result, ShapeError};
use crate::format::checkpoint::Checkpoint;
use crate::format::tensors::TensorSource;
use crate::format::ternary::{Ternary, by_rule};

/// Storage of the ternary linears.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum LinearType {
    /// 2.0625 bits a weight, the fastest.
    #[default]
    #[serde(rename = "tq2_0")]
    Tq2_0,
    /// 1.6875 bits a weight, the smallest.
    #[serde(rename = "tq1_0")]
    Tq1_0,
}

/// Storage of the embedding, which is also the head.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum EmbeddingType {
    /// float16.
    #[default]
    F16,
    /// float32.
    F32,
}

/// What an export did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Exported {
    /// Bytes of all tensors.
    pub tensor_bytes: u64,
    /// Linears whose columns no block of 256 divides: they are stored as float16.
    pub wide: Vec<String>,
}

/// Writes architecture `bitnet`, with the tokenizer in `tokenizer` (a `tokenizer.json`), `name` as `general.name`, and a chat
/// template where there is one.
pub fn export(
    model: &Checkpoint,
    tokenizer: &Path,
    (name, template): (&str, Option<&str>),
    (linear, embedding): (LinearType, EmbeddingType),
    to: &Path,
) -> Result<Exported> {
    exportable(&model.config)?;
    let linear = match linear {
        LinearType::Tq2_0 => TensorType::Tq2_0,
        LinearType::Tq1_0 => TensorType::Tq1_0,
    };
    let mut writer = GgufWriter::default();
    architecture_keys(&mut writer, &model.config, name, linear);
    tokenizer_keys::add(&mut writer, tokenizer, model.config.vocab, template)?;
    let mut wide = Vec::new();
    for spec in model.config.tensors() {
        if spec.role == Role::Scale {
            continue;
        }
        let ty = match spec.role {
            Role::Embedding | Role::Head if embedding == EmbeddingType::F16 => TensorType::F16,
            Role::Linear if spec.shape[1] % pack::BLOCK == 0 => linear,
            Role::Linear => {
                wide.push(spec.name.clone());
                TensorType::F16
            }
            _ => TensorType::F32,
        };
        let (name, shape) = (gguf_name(&spec.name), spec.shape.clone());
        writer.tensor(Entry { name, shape, ty, data: Box::new(move || bytes_of(model, &spec, ty)) });
    }
    writer.write(to)?;
    Ok(Exported { tensor_bytes: writer.tensor_bytes(), wide })
}

/// Refuses what llama.cpp's `bitnet` cannot compute.
fn exportable(c: &ModelConfig) -> Result<()> {
    let refuse = |why: &'static str, help: &'static str| Err(Error::from(ShapeError::Export { why }).help(help));
    if c.weights == Weights::Float {
        return refuse("its linears are full precision", "train it ternary (`train.bitnet`), or keep its safetensors checkpoint");
    }
    if c.activation == Activation::Relu2 {
        return refuse(
            "stock llama.cpp's `bitnet` architecture has SiLU, the student has ReLU²",
            "train with `activation: silu`, or use the model's safetensors checkpoint (`flow get`)",
        );
    }
    if !c.sub_norm {
        return refuse("llama.cpp's `bitnet` architecture needs SubLN before `o` and `down`", "train with `sub_norm: true`");
    }
    if !c.tied {
        return refuse("llama.cpp's `bitnet` architecture ties the head to the embedding", "train with `tied: true`");
    }
    if c.heads * c.head_dim != c.dim {
        return refuse("heads × head_dim must be the hidden size", "choose `head_dim` as dim / heads");
    }
    Ok(())
}

fn architecture_keys(w: &mut GgufWriter<'_>, c: &ModelConfig, name: &str, linear: TensorType) {
    let file_type = if linear == TensorType::Tq1_0 { 36 } else { 37 };
    w.key("general.architecture", Value::Text("bitnet".into()));
    w.key("general.name", Value::Text(name.into()));
    w.key("general.file_type", Value::U32(file_type));
    let mut number = |key: &str, value: usize| w.key(format!("bitnet.{key}"), Value::U32(value as u32));
    number("context_length", c.seq);
    number("embedding_length", c.dim);
    number("block_count", c.layers);
    number("feed_forward_length", c.mlp);
    number("attention.head_count", c.heads);
    number("attention.head_count_kv", c.kv_heads);
    number("rope.dimension_count", c.head_dim);
    number("vocab_size", c.vocab);
    w.key("bitnet.attention.layer_norm_rms_epsilon", Value::F32(c.norm_eps));
    w.key("bitnet.rope.freq_base", Value::F32(c.rope_theta as f32));
    w.key("bitnet.rope.scaling.type", Value::Text("linear".into()));
    w.key("bitnet.rope.scaling.factor", Value::F32(1.0));
}

fn bytes_of(model: &Checkpoint, spec: &TensorSpec, ty: TensorType) -> Vec<u8> {
    let values = &model.tensors.tensor(&spec.name);
    if spec.role != Role::Linear {
        return match ty {
            TensorType::F16 => values.iter().flat_map(|v| f16::from_f32(*v).to_bits().to_le_bytes()).collect(),
            _ => values.iter().flat_map(|v| v.to_le_bytes()).collect(),
        };
    }
    let learned = model.config.weights == Weights::Threshold;
    let scales = learned.then(|| model.tensors.tensor(&format!("{}_scale", spec.name)));
    let ternary = by_rule(model.config.weights, values, scales.as_deref(), spec.shape[0], spec.shape[1]);
    let rows: Vec<Vec<u8>> = (0..ternary.rows).into_par_iter().map(|r| row_bytes(&ternary, r, ty)).collect();
    rows.concat()
}

fn row_bytes(t: &Ternary, row: usize, ty: TensorType) -> Vec<u8> {
    let (codes, scale) = (t.row(row), t.scale(row));
    let mut out = Vec::new();
    match ty {
        TensorType::Tq2_0 => pack::tq2_0(codes, scale, &mut out),
        TensorType::Tq1_0 => pack::tq1_0(codes, scale, &mut out),
        TensorType::F16 => out.extend(codes.iter().flat_map(|c| f16::from_f32(f32::from(*c) * scale).to_bits().to_le_bytes())),
        _ => out.extend(codes.iter().flat_map(|c| (f32::from(*c) * scale).to_le_bytes())),
    }
    out
}
