//! The keys and the tensors beside its weights with which a model of a family stands in a file.

use super::names::ROPE_FACTORS;
use super::storage::Storage;
use super::types::TensorType;
use super::write::{Entry, GgufWriter, Value};
use crate::config::{Activation, ModelConfig, RopeScaling};
use crate::error::{Error, Result, ShapeError};
use crate::format::family::Family;

/// What a file says of where its model comes from.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct About {
    /// `general.name`.
    pub name: String,
    /// `general.author`.
    pub author: Option<String>,
    /// `general.license`.
    pub licence: Option<String>,
}

/// The family whose architecture computes a model in stock llama.cpp; the rest is refused.
pub(super) fn family(c: &ModelConfig) -> Result<&'static Family> {
    let refuse = |why: String, help: &'static str| Err(Error::from(ShapeError::Export { to: "GGUF", why }).help(help));
    let other = "choose the options of one family, or keep the model's directory";
    let family = match Family::of(c) {
        Ok(family) => family,
        Err(why) => return refuse(why, other),
    };
    let name = family.architecture;
    if c.activation == Activation::Relu2 {
        return refuse(
            format!("stock llama.cpp's `{name}` architecture has SiLU, the student has ReLU²"),
            "train with `activation: silu`, or use `export.safetensors`",
        );
    }
    if c.no_rope != family.no_rope(c.layers) {
        let why = format!("layers {:?} have no RoPE, llama.cpp's `{name}` leaves it out in {:?}", c.no_rope, family.no_rope(c.layers));
        return refuse(why, "use `export.safetensors`, whose configuration lists them");
    }
    if family.sub_norm && !c.tied {
        let why = "llama.cpp's `bitnet` architecture ties the head to the embedding".into();
        return refuse(why, "train with `tied: true`, or use `export.safetensors`");
    }
    if family.sub_norm && c.heads * c.head_dim != c.dim {
        return refuse("heads × head_dim must be the hidden size".into(), "choose `head_dim` as dim / heads");
    }
    // Only that architecture looks for the tensor.
    let by_tensor = matches!(c.rope_scaling, Some(RopeScaling::Llama3 { .. } | RopeScaling::Factors { .. }));
    if by_tensor && name != "llama" {
        let why = format!("llama.cpp's `{name}` architecture scales RoPE by one factor only");
        return refuse(why, "use `export.safetensors`, or a linear scaling");
    }
    Ok(family)
}

/// Adds them.
pub(super) fn add(w: &mut GgufWriter<'_>, c: &ModelConfig, family: &Family, about: &About, linear: Storage) {
    let name = family.architecture;
    w.key("general.architecture", Value::Text(name.into()));
    w.key("general.name", Value::Text(about.name.clone()));
    for (key, value) in [("author", &about.author), ("license", &about.licence)] {
        if let Some(value) = value {
            w.key(format!("general.{key}"), Value::Text(value.clone()));
        }
    }
    w.key("general.file_type", Value::U32(linear.file_type()));
    let mut number = |key: &str, value: usize| w.key(format!("{name}.{key}"), Value::U32(value as u32));
    number("context_length", c.seq);
    number("embedding_length", c.dim);
    number("block_count", c.layers);
    number("feed_forward_length", c.mlp);
    number("attention.head_count", c.heads);
    number("attention.head_count_kv", c.kv_heads);
    if c.heads * c.head_dim != c.dim {
        number("attention.key_length", c.head_dim);
        number("attention.value_length", c.head_dim);
    }
    number("rope.dimension_count", c.head_dim);
    number("vocab_size", c.vocab);
    if let Some(window) = c.window {
        number("attention.sliding_window", window);
    }
    w.key(format!("{name}.attention.layer_norm_rms_epsilon"), Value::F32(c.norm_eps));
    w.key(format!("{name}.rope.freq_base"), Value::F32(c.rope_theta as f32));
    let factor = match c.rope_scaling {
        Some(RopeScaling::Linear { factor }) => Some(factor as f32),
        // Files of this architecture have always said so.
        _ => family.sub_norm.then_some(1.0),
    };
    if let Some(factor) = factor {
        w.key(format!("{name}.rope.scaling.type"), Value::Text("linear".into()));
        w.key(format!("{name}.rope.scaling.factor"), Value::F32(factor));
    }
}

/// Adds the tensor that scales RoPE where no key can.
pub(super) fn add_factors(w: &mut GgufWriter<'_>, c: &ModelConfig) {
    let Some(scaling @ (RopeScaling::Llama3 { .. } | RopeScaling::Factors { .. })) = &c.rope_scaling else { return };
    let factors = scaling.divisors(c.rope_theta, c.head_dim);
    let bytes = move || factors.iter().flat_map(|f| f.to_le_bytes()).collect();
    w.tensor(Entry { name: ROPE_FACTORS.into(), shape: vec![c.head_dim / 2], ty: TensorType::F32, data: Box::new(bytes) });
}
