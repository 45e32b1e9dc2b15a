//! A model out of a GGUF file: architectures `llama` and `bitnet`.

use std::collections::BTreeMap;

use flow_engine::plugin::StageError;

use super::names::gguf_name;
use super::read::GgufFile;
use crate::model::config::{Activation, ModelConfig, Role, TensorSpec, Weights};
use crate::model::ternary::masters;

/// Float32 tensors by our names.
pub type Tensors = BTreeMap<String, Vec<f32>>;

/// Shape and numerics that the file declares, with the sequence that it was trained for. Every tensor is there, of the
/// right shape and of a type that is read. `weights` of a `bitnet` file is known only with its values: here `Float`.
pub fn config(file: &GgufFile) -> Result<ModelConfig, StageError> {
    let config = declared(file)?;
    if let Some((field, message)) = config.problem() {
        return Err(file.error(format!("{field}: {message}")));
    }
    for spec in config.tensors() {
        let name = gguf_name(&spec.name);
        let (info, ..) = file.raw(&name)?;
        if info.shape != spec.shape {
            return Err(file.error(format!("tensor `{name}` has shape {:?}, its keys ask for {:?}", info.shape, spec.shape)));
        }
    }
    Ok(config)
}

fn declared(file: &GgufFile) -> Result<ModelConfig, StageError> {
    let architecture = file.text("general.architecture")?.unwrap_or_default();
    if !["llama", "bitnet"].contains(&architecture) {
        return Err(file
            .error(format!("field `general.architecture`: `{architecture}` is not built in"))
            .help("architectures that are read: llama, bitnet; convert the model, or serve it and use `teacher.http`"));
    }
    refuse_extras(file, architecture)?;
    let key = |name: &str| format!("{architecture}.{name}");
    let must = |name: &str| file.whole(&key(name))?.ok_or_else(|| file.error(format!("field `{}` is missing", key(name))));
    let vocab = match file.whole(&key("vocab_size"))? {
        Some(n) => n,
        None => file.raw("token_embd.weight")?.0.shape.first().copied().unwrap_or(0),
    };
    // Every block has tensors: a damaged count must not make a list of billions.
    let layers = must("block_count")?;
    if layers > file.tensors.len() {
        return Err(file.error(format!("field `{}`: {layers} blocks in a file of {} tensors", key("block_count"), file.tensors.len())));
    }
    let (dim, heads) = (must("embedding_length")?, must("attention.head_count")?);
    let head_dim = file.whole(&key("attention.key_length"))?.unwrap_or(dim / heads.max(1));
    if let Some(rotated) = file.whole(&key("rope.dimension_count"))?.filter(|n| *n != head_dim) {
        return Err(
            file.error(format!("field `{}`: {rotated} of {head_dim} dimensions of a head are rotated", key("rope.dimension_count")))
        );
    }
    Ok(ModelConfig {
        vocab,
        dim,
        layers,
        heads,
        kv_heads: file.whole(&key("attention.head_count_kv"))?.unwrap_or(heads),
        head_dim,
        mlp: must("feed_forward_length")?,
        seq: must("context_length")?,
        // The file holds a float32; 10,000 and its like are exact in it.
        rope_theta: file.number(&key("rope.freq_base"))?.map_or(10_000.0, f64::from),
        norm_eps: file.number(&key("attention.layer_norm_rms_epsilon"))?.unwrap_or(1e-5),
        activation: Activation::Silu,
        weights: Weights::Float,
        sub_norm: architecture == "bitnet",
        tied: !file.tensors.iter().any(|t| t.name == "output.weight"),
    })
}

/// Variants of the architecture that the kernels do not compute.
fn refuse_extras(file: &GgufFile, architecture: &str) -> Result<(), StageError> {
    let refuse = |what: String| Err(file.error(what).help("serve the model and use `teacher.http`, or choose another one"));
    let scaling = file.text(&format!("{architecture}.rope.scaling.type"))?.unwrap_or("none");
    let factor = file.number(&format!("{architecture}.rope.scaling.factor"))?.unwrap_or(1.0);
    if !(scaling == "none" || scaling == "linear" && factor == 1.0) {
        return refuse(format!("field `{architecture}.rope.scaling.type`: `{scaling}` by {factor} is not supported"));
    }
    if file.whole(&format!("{architecture}.expert_count"))?.unwrap_or(0) > 0 {
        return refuse(format!("field `{architecture}.expert_count`: mixtures of experts are not supported"));
    }
    let extra = |t: &str| t == "rope_freqs.weight" || t.ends_with(".bias") || t.ends_with(".scale");
    if let Some(t) = file.tensors.iter().find(|t| extra(&t.name)) {
        return refuse(format!("tensor `{}`: RoPE factors, biases and separate scales are not supported", t.name));
    }
    Ok(())
}

/// Reads all tensors.
pub fn load(file: &GgufFile) -> Result<(ModelConfig, Tensors), StageError> {
    let mut config = config(file)?;
    let mut tensors = Tensors::new();
    for spec in config.tensors() {
        let values = file.floats(&gguf_name(&spec.name))?;
        tensors.insert(spec.name.clone(), if config.sub_norm { values } else { rotate_half(&config, &spec, values) });
    }
    if config.sub_norm && ternarise(&config, &mut tensors) {
        config.weights = Weights::Absmean;
    }
    Ok((config, tensors))
}

/// Undoes llama.cpp's order of the rows of q and k in architecture `llama`: within a head, rows 2i and 2i + 1 rotate
/// together there, rows i and i + head_dim/2 here.
fn rotate_half(config: &ModelConfig, spec: &TensorSpec, values: Vec<f32>) -> Vec<f32> {
    if !(spec.name.ends_with(".q") || spec.name.ends_with(".k")) {
        return values;
    }
    let (head, cols) = (config.head_dim, spec.shape[1]);
    let mut out = Vec::with_capacity(values.len());
    for rows in values.chunks_exact(head * cols) {
        for part in 0..2 {
            (0..head / 2).for_each(|i| out.extend_from_slice(&rows[(2 * i + part) * cols..][..cols]));
        }
    }
    out
}

/// Where every linear holds nothing but 0 and ± one scale, makes masters of them whose absmean ternarisation gives the
/// codes and the scale back; elsewhere changes nothing.
fn ternarise(config: &ModelConfig, tensors: &mut Tensors) -> bool {
    let linears: Vec<String> = config.tensors().into_iter().filter(|t| t.role == Role::Linear).map(|t| t.name).collect();
    let scale_of = |values: &[f32]| {
        let scale = values.iter().fold(0f32, |m, v| m.max(v.abs()));
        (scale > 0.0 && values.iter().all(|v| *v == 0.0 || v.abs() == scale)).then_some(scale)
    };
    let Some(scales) = linears.iter().map(|n| scale_of(&tensors[n])).collect::<Option<Vec<f32>>>() else { return false };
    for (name, scale) in linears.into_iter().zip(scales) {
        if let Some(values) = tensors.get_mut(&name) {
            let codes: Vec<i8> = values.iter().map(|v| (v / scale) as i8).collect();
            *values = masters(&codes, scale);
        }
    }
    true
}
