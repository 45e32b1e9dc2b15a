//! Hugging Face directories of the families in [`super::family`].

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use safetensors::tensor::{Dtype, SafeTensors};
use serde_json::Value;

use super::family::Family;
use super::gguf::pack;
use super::gguf::packed::rows_of_hf;
use super::map::Mapped;
use super::safetensors::{floats, parse, wrong_shape};
use super::tensors::{PackedMatrix, PackedTensors, Tensors};
use crate::config::{Activation, ModelConfig, Role, RopeScaling, TensorSpec, Weights};
use crate::error::{Error, FormatError, Result};

/// What a packed linear's `weight_scale` does (facts: read the configuration, never guess).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Scale {
    /// `linear_class: bitlinear`: W = codes / weight_scale.
    Divides,
    /// `linear_class: autobitlinear`: W = codes · weight_scale.
    Multiplies,
}

/// Configuration and tensors of a directory whose `config.json` is `json`.
pub(super) fn read_directory(dir: &Path, path: &Path, json: &Value, weights: Option<Weights>) -> Result<(ModelConfig, Tensors)> {
    let config = config_of(path, json, weights)?;
    let scale = match json["quantization_config"]["linear_class"].as_str() {
        Some("autobitlinear") => Scale::Multiplies,
        _ => Scale::Divides,
    };
    let files: Vec<(PathBuf, Mapped)> =
        weight_files(dir)?.into_iter().map(|f| Mapped::open(&f).map(|b| (f, b))).collect::<Result<_, _>>()?;
    let parsed: Vec<(&Path, SafeTensors<'_>)> =
        files.iter().map(|(f, b)| parse(f, b).map(|s| (f.as_path(), s))).collect::<Result<_, _>>()?;
    let mut tensors = PackedTensors::default();
    for spec in config.tensors() {
        match read(&parsed, dir, &spec, config.weights, scale)? {
            Read::Floats(values) => drop(tensors.floats.insert(spec.name, values)),
            Read::Packed(linear) => drop(tensors.linears.insert(spec.name, linear)),
        }
    }
    Ok((config, tensors.into()))
}

/// Layers that a configuration may say.
const MOST_LAYERS: usize = 1 << 16;

pub(super) fn config_of(path: &Path, json: &Value, weights: Option<Weights>) -> Result<ModelConfig> {
    let wrong = |field: &str, why: String| FormatError::field(path, field, why);
    let whole = |field: &str| -> Result<Option<usize>> {
        match &json[field] {
            Value::Null => Ok(None),
            v => v
                .as_u64()
                // The limit of a GGUF file's keys: products of two sizes stay far below 2^64.
                .filter(|n| *n < 1 << 31)
                .map(|n| Some(n as usize))
                .ok_or_else(|| wrong(field, format!("expected a whole number below 2^31, found {v}"))),
        }
    };
    let must = |field: &str| {
        whole(field)?.ok_or_else(|| Error::from(FormatError::MissingField { file: path.to_owned(), field: field.to_owned() }))
    };
    let family = json["model_type"].as_str().and_then(Family::of_model_type).ok_or_else(|| {
        let found = json["model_type"].as_str().map_or("is missing".into(), |o| format!("`{o}`"));
        FormatError::unsupported(path, format!("model_type {found}: expected one of {}", Family::model_types()))
            .help("other families are not built in; convert the model to one of these shapes")
    })?;
    let biased = if family.qkv_bias { &["mlp_bias"][..] } else { &["attention_bias", "mlp_bias"] };
    if let Some(field) = biased.iter().find(|f| json[**f] == true) {
        return Err(wrong(field, format!("linears of `{}` with a bias are not supported", family.architecture)));
    }
    let activation = match json["hidden_act"].as_str() {
        Some("silu") | None => Activation::Silu,
        Some("relu2") => Activation::Relu2,
        Some(other) => return Err(wrong("hidden_act", format!("`{other}`; expected silu or relu2"))),
    };
    let (dim, heads, layers, seq) =
        (must("hidden_size")?, must("num_attention_heads")?, must("num_hidden_layers")?, must("max_position_embeddings")?);
    // No model has so many, and a list of them is made before a tensor is looked for.
    if layers > MOST_LAYERS {
        return Err(wrong("num_hidden_layers", format!("{layers} layers, at most {MOST_LAYERS} are read")));
    }
    refuse_storage(path, json)?;
    // Packed codes, or masters that are rounded when they are used: other families than BitNet's own have such linears too.
    let bitnet = json["quantization_config"]["quant_method"] == "bitnet";
    let values = json["flow"]["weights"] == "float";
    let default_weights = if (family.sub_norm || bitnet) && !values { Weights::Absmean } else { Weights::Float };
    let head_dim = whole("head_dim")?.unwrap_or(dim / heads.max(1));
    refuse_fields(path, json, family, head_dim)?;
    let config = ModelConfig {
        vocab: must("vocab_size")?,
        dim,
        layers,
        heads,
        kv_heads: whole("num_key_value_heads")?.unwrap_or(heads),
        head_dim,
        mlp: must("intermediate_size")?,
        seq,
        rope_theta: json["rope_parameters"]["rope_theta"].as_f64().or(json["rope_theta"].as_f64()).unwrap_or(10_000.0),
        norm_eps: json["rms_norm_eps"].as_f64().unwrap_or(1e-6) as f32,
        activation,
        weights: weights.unwrap_or(default_weights),
        sub_norm: family.sub_norm,
        tied: json["tie_word_embeddings"].as_bool().unwrap_or(family.tied),
        qkv_bias: family.qkv_bias,
        head_norm: family.head_norm,
        no_rope: no_rope(path, json, family, layers)?,
        rope_scaling: scaling(path, json, seq)?,
        window: window(path, json, family)?.filter(|w| (1..seq).contains(w)),
        ..ModelConfig::plain()
    };
    match config.problem() {
        Some((field, why)) => Err(FormatError::unsupported(path, format!("{field}: {why}"))),
        None => Ok(config),
    }
}

/// Layers without RoPE, by a list of 0 and 1 or by an interval.
fn no_rope(path: &Path, json: &Value, family: &Family, layers: usize) -> Result<Vec<usize>> {
    if family.no_rope_every == 0 {
        return Ok(Vec::new());
    }
    let Some(list) = json["no_rope_layers"].as_array() else {
        let every = json["no_rope_layer_interval"].as_u64().map_or(family.no_rope_every, |n| n as usize);
        return Ok((0..layers).filter(|l| every > 0 && (l + 1) % every == 0).collect());
    };
    let flags: Vec<u64> = list.iter().filter_map(Value::as_u64).filter(|f| *f < 2).collect();
    if flags.len() != layers || list.len() != layers {
        return Err(FormatError::field(path, "no_rope_layers", format!("expected 0 or 1 for each of {layers} layers")));
    }
    Ok((0..layers).filter(|l| flags[*l] == 0).collect())
}

/// The window of attention, where one is used; one of some layers only is refused.
fn window(path: &Path, json: &Value, family: &Family) -> Result<Option<usize>> {
    let Some(window) = json["sliding_window"].as_u64().map(|w| w as usize) else { return Ok(None) };
    let types: Vec<&str> = json["layer_types"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    let sliding = types.iter().filter(|t| **t == "sliding_attention").count();
    if let Some(other) = types.iter().find(|t| !["sliding_attention", "full_attention"].contains(t)) {
        return Err(FormatError::field(path, "layer_types", format!("`{other}` is not supported")));
    }
    if sliding != 0 && sliding != types.len() {
        let why = format!("{sliding} of {} layers have a window; all or none is supported", types.len());
        return Err(FormatError::field(path, "layer_types", why));
    }
    let used = if types.is_empty() { json["use_sliding_window"].as_bool().unwrap_or(family.windowed) } else { sliding > 0 };
    // Qwen's first layers are without where no list says which.
    let first = json["max_window_layers"].as_u64().unwrap_or(0);
    let layers = json["num_hidden_layers"].as_u64().unwrap_or(0);
    match used && types.is_empty() && first > 0 {
        true if first >= layers => Ok(None),
        true => {
            let why = format!("{first} of {layers} layers have no window; all or none is supported");
            Err(FormatError::field(path, "max_window_layers", why))
        }
        false => Ok(Some(window).filter(|_| used)),
    }
}

/// Fields that change what a model computes and that no family here has, with the number that changes nothing.
const NEUTRAL: [(&str, f64); 14] = [
    ("logit_scale", 1.0),
    ("logits_scaling", 1.0),
    ("embedding_multiplier", 1.0),
    ("residual_multiplier", 1.0),
    ("lm_head_multiplier", 1.0),
    ("mup_width_multiplier", 1.0),
    ("scale_emb", 1.0),
    ("attn_logit_softcapping", 0.0),
    ("final_logit_softcapping", 0.0),
    ("clip_qkv", 0.0),
    ("num_local_experts", 0.0),
    ("num_experts", 0.0),
    ("n_routed_experts", 0.0),
    ("num_nextn_predict_layers", 0.0),
];

/// Flags of the same kind, with the value that changes nothing.
const NEUTRAL_FLAGS: [(&str, bool); 7] = [
    ("is_causal", true),
    ("use_bidirectional_attention", false),
    ("alibi", false),
    ("parallel_attn", false),
    ("add_cross_attention", false),
    ("is_encoder_decoder", false),
    ("attention_out_bias", false),
];

fn refuse_fields(path: &Path, json: &Value, family: &Family, head_dim: usize) -> Result<()> {
    let refuse = |field: &str, found: String, neutral: String| {
        Err(FormatError::field(path, field, format!("{found} is not supported; {neutral} is"))
            .help("serve the model and use `teacher.http`, or choose another one"))
    };
    let scale = 1.0 / (head_dim.max(1) as f64).sqrt();
    for (field, neutral) in NEUTRAL.into_iter().chain([("attention_multiplier", scale), ("query_pre_attn_scalar", head_dim as f64)]) {
        match &json[field] {
            Value::Null => {}
            v if v.as_f64().is_some_and(|v| (v - neutral).abs() <= 1e-6 * neutral) => {}
            v => return refuse(field, v.to_string(), neutral.to_string()),
        }
    }
    let norms = [("use_qk_norm", family.head_norm), ("qk_layernorm", family.head_norm)];
    for (field, neutral) in NEUTRAL_FLAGS.into_iter().chain(norms) {
        if json[field].as_bool().is_some_and(|v| v != neutral) {
            return refuse(field, (!neutral).to_string(), neutral.to_string());
        }
    }
    Ok(())
}

/// Weights that are no floats and no packed ternary codes, by the name of what made them.
fn refuse_storage(path: &Path, json: &Value) -> Result<()> {
    let how = &json["quantization_config"];
    let bits = |n: u32| how[format!("load_in_{n}bit")] == true || how[format!("_load_in_{n}bit")] == true;
    let name = match how["quant_method"].as_str() {
        Some("bitnet") => return Ok(()),
        Some("bitsandbytes") => "bitsandbytes",
        Some("gptq") => "GPTQ",
        Some("awq") => "AWQ",
        Some("fp8" | "fbgemm_fp8") => "FP8",
        Some(other) => other,
        None if bits(4) || bits(8) => "bitsandbytes",
        None => return Ok(()),
    };
    Err(FormatError::field(path, "quantization_config", format!("its weights are quantised by {name}, which is not read"))
        .help("give the checkpoint in floats that it was made from, or a GGUF file of it; or serve it and use `teacher.http`"))
}

/// Scaling of RoPE, in either of the two places where configurations have it.
fn scaling(path: &Path, json: &Value, seq: usize) -> Result<Option<RopeScaling>> {
    let shares =
        [&json["partial_rotary_factor"], &json["rope_scaling"]["partial_rotary_factor"], &json["rope_parameters"]["partial_rotary_factor"]];
    if let Some(share) = shares.iter().filter_map(|s| s.as_f64()).find(|s| *s != 1.0) {
        return Err(FormatError::field(
            path,
            "partial_rotary_factor",
            format!("{share}: heads that are rotated in part are not supported"),
        ));
    }
    let places = ["rope_scaling", "rope_parameters"].map(|p| (p, &json[p]));
    let said: Vec<_> = places.into_iter().filter(|(_, v)| v.as_object().is_some_and(|o| !o.is_empty())).collect();
    let scaled = said.iter().find(|(_, v)| !is_plain(v)).or(said.first());
    let Some(&(place, rope)) = scaled else { return Ok(None) };
    let known = ["rope_type", "type", "rope_theta", "partial_rotary_factor", "factor", "original_max_position_embeddings"];
    let of_llama3 = ["low_freq_factor", "high_freq_factor"];
    let of_longrope = ["short_factor", "long_factor", "attention_factor"];
    // 1 changes nothing; transformers writes some of them whatever the type.
    let neutral = |name: &str, v: &Value| v.is_null() || ["attention_factor", "mscale", "mscale_all_dim"].contains(&name) && *v == 1.0;
    let unknown = rope.as_object().into_iter().flatten().find(|(name, v)| {
        let name = name.as_str();
        !(known.contains(&name) || of_llama3.contains(&name) || of_longrope.contains(&name) && is_longrope(rope) || neutral(name, v))
    });
    if let Some((name, v)) = unknown {
        let v: String = v.to_string().chars().take(60).collect();
        return Err(FormatError::field(path, format!("{place}.{name}"), format!("{v} is not supported")));
    }
    let number = |field: &str| {
        let value = rope[field].as_f64();
        value.ok_or_else(|| FormatError::field(path, format!("{place}.{field}"), format!("expected a number, found {}", rope[field])))
    };
    let key = rope_key(rope);
    Ok(match rope[key].as_str().unwrap_or("default") {
        "default" if rope["factor"].is_null() || rope[key] == "default" => None,
        "default" => {
            return Err(FormatError::field(path, format!("{place}.{key}"), format!("is missing beside a factor of {}", rope["factor"])));
        }
        "linear" => Some(RopeScaling::Linear { factor: number("factor")? }),
        "llama3" => Some(RopeScaling::Llama3 {
            factor: number("factor")?,
            low_freq_factor: number("low_freq_factor")?,
            high_freq_factor: number("high_freq_factor")?,
            original_seq: rope["original_max_position_embeddings"].as_f64().unwrap_or(seq as f64),
        }),
        // Factors of a GGUF file, as `export.safetensors` writes them.
        "longrope" if rope["short_factor"] == rope["long_factor"] && rope["attention_factor"] == 1.0 => {
            let divisors = rope["long_factor"].as_array().into_iter().flatten().filter_map(Value::as_f64).map(|d| d as f32);
            Some(RopeScaling::Factors { divisors: divisors.collect() })
        }
        other => {
            return Err(FormatError::field(
                path,
                format!("{place}.{key}"),
                format!("`{other}` is not supported; default, linear and llama3 are"),
            ));
        }
    })
}

/// The name under which a scaling has its type: older configurations have the second.
fn rope_key(rope: &Value) -> &'static str {
    if rope["rope_type"].is_null() { "type" } else { "rope_type" }
}

/// Whether positions stay as they are. A factor without a type is none: it would be lost.
fn is_plain(rope: &Value) -> bool {
    matches!(rope[rope_key(rope)].as_str(), Some("default")) || rope[rope_key(rope)].is_null() && rope["factor"].is_null()
}

fn is_longrope(rope: &Value) -> bool {
    rope[rope_key(rope)] == "longrope"
}

/// The file that names the shards of a model.
pub const INDEX: &str = "model.safetensors.index.json";

/// `model.safetensors`, or the files that [`INDEX`] names.
pub fn weight_files(dir: &Path) -> Result<Vec<PathBuf>> {
    let index = dir.join(INDEX);
    if !index.is_file() {
        return Ok(vec![dir.join("model.safetensors")]);
    }
    let text = std::fs::read(&index).map_err(|e| Error::io("cannot read", &index, e))?;
    let json: Value = serde_json::from_slice(&text).map_err(|e| FormatError::not_json(&index, &e))?;
    let names: BTreeSet<&str> = json["weight_map"].as_object().into_iter().flatten().filter_map(|(_, f)| f.as_str()).collect();
    if names.is_empty() || names.iter().any(|n| n.contains('/') || n.contains("..")) {
        return Err(FormatError::field(&index, "weight_map", "expected tensor names with file names"));
    }
    Ok(names.into_iter().map(|n| dir.join(n)).collect())
}

/// Name of one of our tensors in a Hugging Face checkpoint.
pub fn hugging_face_name(ours: &str) -> String {
    let fixed = match ours {
        "embed" => Some("model.embed_tokens.weight"),
        "norm" => Some("model.norm.weight"),
        "head" => Some("lm_head.weight"),
        _ => None,
    };
    if let Some(fixed) = fixed {
        return fixed.into();
    }
    let Some((layer, name)) = ours.strip_prefix("layers.").and_then(|r| r.split_once('.')) else { return ours.into() };
    let place = match name {
        "attn_norm" => "input_layernorm",
        "mlp_norm" => "post_attention_layernorm",
        "attn_sub_norm" => "self_attn.attn_sub_norm",
        "mlp_sub_norm" => "mlp.ffn_sub_norm",
        "q_bias" => return format!("model.layers.{layer}.self_attn.q_proj.bias"),
        "k_bias" => return format!("model.layers.{layer}.self_attn.k_proj.bias"),
        "v_bias" => return format!("model.layers.{layer}.self_attn.v_proj.bias"),
        "q_norm" => "self_attn.q_norm",
        "k_norm" => "self_attn.k_norm",
        "q" => "self_attn.q_proj",
        "k" => "self_attn.k_proj",
        "v" => "self_attn.v_proj",
        "o" => "self_attn.o_proj",
        "gate" => "mlp.gate_proj",
        "up" => "mlp.up_proj",
        "down" => "mlp.down_proj",
        other => other,
    };
    format!("model.layers.{layer}.{place}.weight")
}

/// A tensor as the model takes it.
enum Read {
    Floats(Vec<f32>),
    Packed(PackedMatrix),
}

fn read(files: &[(&Path, SafeTensors<'_>)], dir: &Path, spec: &TensorSpec, weights: Weights, scale: Scale) -> Result<Read> {
    let name = &hugging_face_name(&spec.name);
    let found = files.iter().find_map(|(path, s)| s.tensor(name).ok().map(|view| (*path, view)));
    let Some((path, view)) = found else {
        return Err(Error::from(FormatError::MissingTensor { file: dir.to_owned(), tensor: name.clone(), beside: String::new() })
            .help("config.json asks for it; the directory is not complete"));
    };
    let packed = view.dtype() == Dtype::U8 && spec.role == Role::Linear;
    if !packed {
        if view.shape() != spec.shape {
            return Err(wrong_shape(path, name, view.shape(), &spec.shape));
        }
        return floats(path, name, &view).map(Read::Floats);
    }
    let (rows, cols) = (spec.shape[0], spec.shape[1]);
    if view.shape() != [rows.div_ceil(4), cols] || rows % 4 != 0 {
        return Err(wrong_shape(path, name, view.shape(), &[rows / 4, cols]));
    }
    let scale_name = format!("{name}_scale");
    let stored = files.iter().find_map(|(path, s)| s.tensor(&scale_name).ok().map(|view| (*path, view)));
    let Some((scale_path, stored)) = stored else {
        let beside = format!(" beside the packed `{name}`");
        return Err(FormatError::MissingTensor { file: dir.to_owned(), tensor: scale_name, beside }.into());
    };
    let value = floats(scale_path, &scale_name, &stored)?.first().copied().unwrap_or(0.0);
    let value = match scale {
        Scale::Divides => 1.0 / value,
        Scale::Multiplies => value,
    };
    if !value.is_finite() || value <= 0.0 {
        return Err(FormatError::tensor(scale_path, &scale_name, format!("gives the scale {value}")));
    }
    if weights == Weights::Absmean && pack::is_ternary(view.data()) {
        return Ok(Read::Packed(PackedMatrix::of_tensor(rows_of_hf(view.data(), rows, cols), value, cols)));
    }
    let codes = pack::unpack_hf(view.data(), rows, cols)
        .ok_or_else(|| FormatError::tensor(path, name, "holds a code beyond 2; it is not packed ternary"))?;
    Ok(Read::Floats(codes.iter().map(|c| f32::from(*c) * value).collect()))
}
