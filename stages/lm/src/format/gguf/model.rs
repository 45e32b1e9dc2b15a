//! A model out of a GGUF file: architecture `llama`, llama.cpp's `bitnet`, and bitnet.cpp's `bitnet-25` and `bitnet-b1.58`.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use super::names::gguf_name;
use super::packed::{self, shared_scale};
use super::quant::dequantise;
use super::read::GgufFile;
use super::types::TensorType;
use crate::config::{A4, Activation, ModelConfig, Role, TensorSpec, Weights as Rule};
use crate::error::{Error, FormatError, Result};
use crate::format::tensors::{MappedTensors, TensorSource, Tensors};
use crate::format::ternary::masters;

/// Shape and numerics that the file declares, with the sequence that it was trained for. Every tensor is there, of the
/// right shape and of a type that is read. `weights` of a `bitnet` file is known only with its values: here `Float`.
pub fn config(file: &GgufFile) -> Result<ModelConfig> {
    let config = declared(file)?;
    if let Some((field, message)) = config.problem() {
        return Err(file.unsupported(format!("{field}: {message}")));
    }
    for spec in config.tensors() {
        let name = gguf_name(&spec.name);
        let (info, ..) = file.raw(&name)?;
        if info.shape != spec.shape {
            return Err(FormatError::tensor(file.path(), &name, format!("has shape {:?}, its keys ask for {:?}", info.shape, spec.shape)));
        }
    }
    Ok(config)
}

/// Values of `general.architecture` that are read.
const ARCHITECTURES: [&str; 4] = ["llama", "bitnet", "bitnet-25", "bitnet-b1.58"];

fn declared(file: &GgufFile) -> Result<ModelConfig> {
    let architecture = file.text("general.architecture")?.unwrap_or_default();
    if !ARCHITECTURES.contains(&architecture) {
        return Err(file.wrong_field("general.architecture", format!("`{architecture}` is not built in")).help(format!(
            "architectures that are read: {}; convert the model, or serve it and use `teacher.http`",
            ARCHITECTURES.join(", ")
        )));
    }
    refuse_extras(file, architecture)?;
    let key = |name: &str| format!("{architecture}.{name}");
    let must = |name: &str| file.whole(&key(name))?.ok_or_else(|| file.missing_field(&key(name)));
    let vocab = match file.whole(&key("vocab_size"))? {
        Some(n) => n,
        None => file.raw("token_embd.weight")?.0.shape.first().copied().unwrap_or(0),
    };
    // Every block has tensors: a damaged count must not make a list of billions.
    let layers = must("block_count")?;
    if layers > file.tensors.len() {
        return Err(file.wrong_field(&key("block_count"), format!("{layers} blocks in a file of {} tensors", file.tensors.len())));
    }
    let (dim, heads) = (must("embedding_length")?, must("attention.head_count")?);
    let head_dim = file.whole(&key("attention.key_length"))?.unwrap_or(dim / heads.max(1));
    if let Some(rotated) = file.whole(&key("rope.dimension_count"))?.filter(|n| *n != head_dim) {
        let why = format!("{rotated} of {head_dim} dimensions of a head are rotated");
        return Err(file.wrong_field(&key("rope.dimension_count"), why));
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
        // bitnet.cpp's graphs of the published models have ReLU² where llama.cpp's `bitnet` has SiLU.
        activation: if matches!(architecture, "bitnet-25" | "bitnet-b1.58") { Activation::Relu2 } else { Activation::Silu },
        weights: Rule::Float,
        sub_norm: architecture != "llama",
        tied: !file.tensors.iter().any(|t| t.name == "output.weight"),
        a4: A4::default(),
    })
}

/// Variants of the architecture that the kernels do not compute.
fn refuse_extras(file: &GgufFile, architecture: &str) -> Result<()> {
    let refuse = |e: Error| Err(e.help("serve the model and use `teacher.http`, or choose another one"));
    let scaling = file.text(&format!("{architecture}.rope.scaling.type"))?.unwrap_or("none");
    let factor = file.number(&format!("{architecture}.rope.scaling.factor"))?.unwrap_or(1.0);
    if !(scaling == "none" || scaling == "linear" && factor == 1.0) {
        let why = format!("`{scaling}` by {factor} is not supported");
        return refuse(file.wrong_field(&format!("{architecture}.rope.scaling.type"), why));
    }
    if file.whole(&format!("{architecture}.expert_count"))?.unwrap_or(0) > 0 {
        return refuse(file.wrong_field(&format!("{architecture}.expert_count"), "mixtures of experts are not supported"));
    }
    let extra = |t: &str| t == "rope_freqs.weight" || t.ends_with(".bias") || t.ends_with(".scale");
    if let Some(t) = file.tensors.iter().find(|t| extra(&t.name)) {
        return refuse(file.unsupported(format!("tensor `{}`: RoPE factors, biases and separate scales are not supported", t.name)));
    }
    Ok(())
}

/// Tensors of a mapped file, found and checked: their values can be made at any time.
struct InFile {
    file: GgufFile,
    places: BTreeMap<String, Place>,
    head_dim: usize,
}

/// Where a tensor lies in the file.
struct Place {
    ty: TensorType,
    bytes: Range<usize>,
    /// Columns, where the rows are in llama.cpp's order.
    rotated: Option<usize>,
    /// Columns and the one scale of a ternary linear.
    ternary: Option<(usize, f32)>,
}

impl TensorSource for InFile {
    fn tensor(&self, name: &str) -> Cow<'_, [f32]> {
        let place = &self.places[name];
        let values = dequantise(place.ty, self.file.bytes(place.bytes.clone()));
        Cow::Owned(match (place.rotated, place.ternary) {
            (Some(cols), _) => rotate_half(self.head_dim, cols, &values),
            (_, Some((_, scale))) => masters_of(&values, scale),
            _ => values,
        })
    }

    /// Straight from its blocks.
    fn packed(&self, name: &str) -> Option<(Vec<u32>, f32)> {
        let place = &self.places[name];
        let (cols, scale) = place.ternary?;
        let rows = packed::rows(place.ty, self.file.bytes(place.bytes.clone()), cols);
        self.file.forget(place.bytes.clone());
        Some((rows, scale))
    }

    fn is_half(&self, name: &str) -> bool {
        self.places.get(name).is_some_and(|p| p.ty == TensorType::F16)
    }

    fn halves(&self, name: &str) -> Vec<u32> {
        let place = self.places[name].bytes.clone();
        let pairs = self.file.bytes(place.clone()).chunks_exact(4);
        let all = pairs.map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect();
        self.file.forget(place);
        all
    }
}

impl std::fmt::Debug for InFile {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} tensors of {}", self.places.len(), self.file.path().display())
    }
}

/// Opens a model.
pub fn load(file: GgufFile) -> Result<(ModelConfig, Tensors)> {
    let mut config = config(&file)?;
    let mut places = BTreeMap::new();
    for spec in config.tensors() {
        let (_, ty, bytes) = file.place(&gguf_name(&spec.name))?;
        let rotated = !config.sub_norm && (spec.name.ends_with(".q") || spec.name.ends_with(".k"));
        let linear = config.sub_norm && spec.role == Role::Linear;
        let scale = if linear { shared_scale(ty, file.bytes(bytes.clone())) } else { None };
        if linear {
            file.forget(bytes.clone());
        }
        let cols = spec.shape.last().copied().unwrap_or(1);
        let place = Place { ty, bytes, rotated: rotated.then_some(cols), ternary: scale.map(|s| (cols, s)) };
        places.insert(spec.name, place);
    }
    let packed = config.tensors().iter().filter(|t| t.role == Role::Linear).all(|t| places[&t.name].ternary.is_some());
    if config.sub_norm && packed {
        config.weights = Rule::Absmean;
    } else if config.sub_norm {
        let read = |spec: &TensorSpec| file.floats(&gguf_name(&spec.name)).map(|values| (spec.name.clone(), values));
        let mut tensors = config.tensors().iter().map(read).collect::<Result<BTreeMap<_, _>, _>>()?;
        if ternarise(&config, &mut tensors) {
            config.weights = Rule::Absmean;
        }
        return Ok((config, tensors.into()));
    }
    let head_dim = config.head_dim;
    Ok((config, Tensors::Mapped(Arc::new(InFile { file, places, head_dim }) as MappedTensors)))
}

/// Undoes llama.cpp's order of the rows of q and k in architecture `llama`: within a head, rows 2i and 2i + 1 rotate
/// together there, rows i and i + head_dim/2 here.
fn rotate_half(head: usize, cols: usize, values: &[f32]) -> Vec<f32> {
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
fn ternarise(config: &ModelConfig, tensors: &mut BTreeMap<String, Vec<f32>>) -> bool {
    let linears: Vec<String> = config.tensors().into_iter().filter(|t| t.role == Role::Linear).map(|t| t.name).collect();
    let scale_of = |values: &[f32]| {
        let scale = values.iter().fold(0f32, |m, v| m.max(v.abs()));
        (scale > 0.0 && values.iter().all(|v| *v == 0.0 || v.abs() == scale)).then_some(scale)
    };
    let Some(scales) = linears.iter().map(|n| scale_of(&tensors[n])).collect::<Option<Vec<f32>>>() else { return false };
    for (name, scale) in linears.into_iter().zip(scales) {
        if let Some(values) = tensors.get_mut(&name) {
            *values = masters_of(values, scale);
        }
    }
    true
}

fn masters_of(values: &[f32], scale: f32) -> Vec<f32> {
    let codes: Vec<i8> = values.iter().map(|v| (v / scale) as i8).collect();
    masters(&codes, scale)
}
