//! The shape of a model, out of the metadata keys of a GGUF file.

use super::names::ROPE_FACTORS;
use super::read::GgufFile;
use crate::config::{ModelConfig, RopeScaling};
use crate::error::{Error, FormatError, Result};
use crate::format::family::Family;

/// What the keys say, not yet checked against the tensors.
pub(super) fn declared(file: &GgufFile) -> Result<ModelConfig> {
    let architecture = file.text("general.architecture")?.unwrap_or_default();
    let family = Family::of_architecture(architecture).ok_or_else(|| {
        file.wrong_field("general.architecture", format!("`{architecture}` is not built in")).help(format!(
            "architectures that are read: {}; convert the model, or serve it and use `teacher.http`",
            Family::architectures()
        ))
    })?;
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
    for (name, what) in [("rope.dimension_count", "are rotated"), ("attention.value_length", "are those of values")] {
        if let Some(other) = file.whole(&key(name))?.filter(|n| *n != head_dim) {
            return Err(file.wrong_field(&key(name), format!("{other} of {head_dim} dimensions of a head {what}")));
        }
    }
    refuse_extras(file, family)?;
    refuse_keys(file, architecture, head_dim)?;
    let seq = must("context_length")?;
    Ok(ModelConfig {
        vocab,
        dim,
        layers,
        heads,
        kv_heads: file.whole(&key("attention.head_count_kv"))?.unwrap_or(heads),
        head_dim,
        mlp: must("feed_forward_length")?,
        seq,
        // The file holds a float32; 10,000 and its like are exact in it.
        rope_theta: file.number(&key("rope.freq_base"))?.map_or(10_000.0, f64::from),
        norm_eps: file.number(&key("attention.layer_norm_rms_epsilon"))?.unwrap_or(1e-5),
        activation: family.activation,
        sub_norm: family.sub_norm,
        tied: !file.tensors.iter().any(|t| t.name == "output.weight"),
        qkv_bias: family.qkv_bias,
        head_norm: family.head_norm,
        no_rope: family.no_rope(layers),
        rope_scaling: scaling(file, &key)?,
        window: file.whole(&key("attention.sliding_window"))?.filter(|w| (1..seq).contains(w)),
        ..ModelConfig::plain()
    })
}

/// More than the halves of any head: a damaged file is not to be read in whole for its factors.
const MOST_FACTORS: u64 = 1 << 16;

/// Scaling of RoPE: a factor by a key, or factors by a tensor that no key names.
fn scaling(file: &GgufFile, key: &impl Fn(&str) -> String) -> Result<Option<RopeScaling>> {
    let help = "serve the model and use `teacher.http`, or choose another one";
    let kind = file.text(&key("rope.scaling.type"))?;
    if let Some(other) = kind.filter(|k| !["none", "linear"].contains(k)) {
        let why = format!("`{other}` is not supported; none and linear are");
        return Err(file.wrong_field(&key("rope.scaling.type"), why).help(help));
    }
    // Older files say the factor by a key of its own, and without a type it is linear, as in llama.cpp.
    let factor = match file.number(&key("rope.scaling.factor"))? {
        Some(factor) => Some(factor),
        None => file.number(&key("rope.scale_linear"))?,
    };
    // llama.cpp takes 0 for no scaling.
    let factor = factor.filter(|f| kind != Some("none") && *f != 1.0 && *f != 0.0);
    let factors = file.tensors.iter().any(|t| t.name == ROPE_FACTORS);
    match (factor, factors) {
        (Some(_), true) => Err(file.unsupported(format!("both `{}` and tensor `{ROPE_FACTORS}`", key("rope.scaling.factor"))).help(help)),
        (Some(factor), false) => Ok(Some(RopeScaling::Linear { factor: f64::from(factor) })),
        (None, true) => {
            let (factors, ..) = file.place(ROPE_FACTORS)?;
            if factors.values() > MOST_FACTORS {
                return Err(FormatError::tensor(file.path(), ROPE_FACTORS, format!("has {} values", factors.values())));
            }
            let divisors = file.floats(ROPE_FACTORS)?;
            Ok((divisors.iter().any(|d| *d != 1.0)).then_some(RopeScaling::Factors { divisors }))
        }
        (None, false) => Ok(None),
    }
}

/// Keys that change what a model computes and that no family here has, with the value that changes nothing.
const NEUTRAL: [(&str, f32); 13] = [
    ("logit_scale", 1.0),
    ("residual_scale", 1.0),
    ("embedding_scale", 1.0),
    ("attn_logit_softcapping", 0.0),
    ("final_logit_softcapping", 0.0),
    ("attention.clamp_kqv", 0.0),
    ("attention.max_alibi_bias", 0.0),
    ("attention.temperature_scale", 0.0),
    ("attention.sliding_window_pattern", 0.0),
    ("attention.shared_kv_layers", 0.0),
    ("rope.scaling.attn_factor", 1.0),
    ("rope.scaling.yarn_ext_factor", 0.0),
    ("nextn_predict_layers", 0.0),
];

/// Refuses what [`NEUTRAL`] names, another scale of attention, and attention that sees what comes after.
fn refuse_keys(file: &GgufFile, architecture: &str, head_dim: usize) -> Result<()> {
    let key = |name: &str| format!("{architecture}.{name}");
    let refuse = |name: &str, why: String| {
        Err(file.wrong_field(&key(name), why).help("serve the model and use `teacher.http`, or choose another one"))
    };
    let scale = 1.0 / (head_dim.max(1) as f32).sqrt();
    for (name, neutral) in NEUTRAL.into_iter().chain([("attention.scale", scale)]) {
        if !file.keys.contains_key(&key(name)) {
            continue;
        }
        // llama.cpp takes 0 for what is not said.
        match file.number(&key(name))? {
            Some(v) if v != 0.0 && (v - neutral).abs() > 1e-6 * neutral.abs() => {
                return refuse(name, format!("{v} is not supported; {neutral} is"));
            }
            _ => {}
        }
    }
    if file.flag(&key("attention.causal"))? == Some(false) {
        return refuse("attention.causal", "attention that sees what comes after is not supported".into());
    }
    Ok(())
}

/// Variants of an architecture that the kernels do not compute.
fn refuse_extras(file: &GgufFile, family: &Family) -> Result<()> {
    let refuse = |e: Error| Err(e.help("serve the model and use `teacher.http`, or choose another one"));
    let experts = format!("{}.expert_count", family.architecture);
    if file.whole(&experts)?.unwrap_or(0) > 0 {
        return refuse(file.wrong_field(&experts, "mixtures of experts are not supported"));
    }
    let ours = |t: &str| family.qkv_bias && ["attn_q.bias", "attn_k.bias", "attn_v.bias"].iter().any(|b| t.ends_with(b));
    let norms = |t: &str| (t.ends_with("attn_q_norm.weight") || t.ends_with("attn_k_norm.weight")) && !family.head_norm;
    let extra = |t: &str| t.ends_with(".bias") && !ours(t) || t.ends_with(".scale") || norms(t) || t.starts_with("rope_factors");
    if let Some(t) = file.tensors.iter().find(|t| extra(&t.name)) {
        let why = format!(
            "tensor `{}`: architecture `{}` has none; other biases, norms and separate scales are not supported",
            t.name, family.architecture
        );
        return refuse(file.unsupported(why));
    }
    Ok(())
}
