//! `config.json` of a model in Hugging Face's layout.

use serde_json::{Map, Value, json};

use super::family::Family;
use crate::config::{Activation, Group, ModelConfig, RopeScaling, Weights};
use crate::error::{Error, Result, ShapeError};

/// What is written of a model's tokens.
#[derive(Clone, Debug)]
pub struct Tokens {
    /// Begins a text.
    pub bos: u32,
    /// End an answer.
    pub ends: Vec<u32>,
}

impl Tokens {
    /// One id or a list.
    pub fn eos(&self) -> Value {
        if let [one] = self.ends[..] { json!(one) } else { json!(self.ends) }
    }
}

/// The family that a directory of the model names; what no family has is refused.
pub fn family(c: &ModelConfig) -> Result<&'static Family> {
    let refuse = |why: String| {
        let help = "choose the options of one family, or keep the model's own directory";
        Err(Error::from(ShapeError::Export { to: "a Hugging Face directory", why }).help(help))
    };
    let family = match Family::of(c) {
        Ok(family) => family,
        Err(why) => return refuse(why),
    };
    match (c.window, family.class) {
        (None, _) => Ok(family),
        // The same computation with a window.
        (Some(_), "LlamaForCausalLM") => Ok(Family::of_model_type("mistral").unwrap_or(family)),
        (Some(_), "Qwen2ForCausalLM" | "Qwen3ForCausalLM") => Ok(family),
        (Some(w), class) => refuse(format!("transformers' {class} has no attention with a window of {w} in every layer")),
    }
}

/// Whether transformers rounds this model's weights and activations as its training does: its BitNet linears have one scale
/// for a matrix, of absmean, and 8 bits a token.
pub fn rounds(c: &ModelConfig) -> bool {
    c.quantises() && c.weights == Weights::Absmean && c.group == Group::Tensor
}

/// The configuration; `dtype` as torch calls it.
pub fn config(c: &ModelConfig, family: &Family, dtype: &str, tokens: &Tokens) -> Value {
    let mut json = json!({
        "architectures": [family.class], "model_type": family.model_type, "dtype": dtype,
        "vocab_size": c.vocab, "hidden_size": c.dim, "intermediate_size": c.mlp, "num_hidden_layers": c.layers,
        "num_attention_heads": c.heads, "num_key_value_heads": c.kv_heads, "head_dim": c.head_dim,
        "hidden_act": if c.activation == Activation::Relu2 { "relu2" } else { "silu" },
        "max_position_embeddings": c.seq, "rms_norm_eps": shortest(c.norm_eps), "tie_word_embeddings": c.tied,
        "attention_dropout": 0.0, "initializer_range": 0.02, "use_cache": true,
        "bos_token_id": tokens.bos, "eos_token_id": tokens.eos(), "pad_token_id": null,
        // Older versions read the first two, newer ones the third.
        "rope_theta": c.rope_theta, "rope_scaling": null,
        "rope_parameters": {"rope_type": "default", "rope_theta": c.rope_theta},
    });
    // What BitNet's class would round by itself: these are the values, and are read as such again.
    if family.sub_norm && !rounds(c) {
        json["flow"] = json!({"weights": "float"});
    }
    // Qwen 2's biases are those of its class.
    if !family.qkv_bias {
        json["attention_bias"] = false.into();
    }
    if let Some(scaling) = &c.rope_scaling {
        let scaling = rope(scaling, c);
        json["rope_scaling"] = Value::Object(scaling.clone());
        let mut parameters = scaling;
        parameters.insert("rope_theta".into(), json!(c.rope_theta));
        json["rope_parameters"] = Value::Object(parameters);
    }
    if family.no_rope_every > 0 {
        json["no_rope_layers"] = (0..c.layers).map(|l| u32::from(!c.no_rope.contains(&l))).collect();
        json["no_rope_layer_interval"] = family.no_rope_every.into();
    }
    match (c.window, family.windowed) {
        (Some(window), true) => json["sliding_window"] = window.into(),
        (Some(window), false) => {
            json["sliding_window"] = window.into();
            json["use_sliding_window"] = true.into();
            json["max_window_layers"] = 0.into();
            json["layer_types"] = vec!["sliding_attention"; c.layers].into();
        }
        (None, _) => {}
    }
    if rounds(c) {
        json["quantization_config"] = json!({"quant_method": "bitnet", "linear_class": "autobitlinear", "quantization_mode": "online", "modules_to_not_convert": ["lm_head"]});
    }
    json
}

/// The decimal number that a float32 is written as: 1e-5, not 0.000009999999747378752.
fn shortest(x: f32) -> Value {
    x.to_string().parse::<f64>().map_or(Value::Null, Value::from)
}

fn rope(scaling: &RopeScaling, c: &ModelConfig) -> Map<String, Value> {
    let json = match scaling {
        RopeScaling::Linear { factor } => json!({"rope_type": "linear", "factor": factor}),
        RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_seq } => json!({
            "rope_type": "llama3", "factor": factor, "low_freq_factor": low_freq_factor, "high_freq_factor": high_freq_factor,
            "original_max_position_embeddings": *original_seq as u64,
        }),
        RopeScaling::Factors { divisors } => match llama3(divisors, c) {
            Some(named) => return rope(&named, c),
            // The one form that takes a factor for each frequency; 1 is what it scales attention by.
            None => json!({
                "rope_type": "longrope", "short_factor": divisors, "long_factor": divisors, "factor": 1.0, "attention_factor": 1.0,
                "original_max_position_embeddings": c.seq,
            }),
        },
    };
    json.as_object().cloned().unwrap_or_default()
}

/// Llama 3's scaling that a GGUF file's factors come from, if it is that.
fn llama3(divisors: &[f32], c: &ModelConfig) -> Option<RopeScaling> {
    let factor = f64::from(divisors.iter().copied().fold(1.0, f32::max)).round();
    let (low_freq_factor, high_freq_factor) = (1.0, 4.0);
    let (i, between) = divisors.iter().enumerate().find(|(_, d)| **d > 1.0 && f64::from(**d) < factor)?;
    let wavelength = 2.0 * std::f64::consts::PI / libm::pow(c.rope_theta, -(i as f64) / divisors.len() as f64);
    let smooth = (1.0 / f64::from(*between) - 1.0 / factor) / (1.0 - 1.0 / factor);
    let original_seq = (wavelength * (low_freq_factor + smooth * (high_freq_factor - low_freq_factor))).round();
    let found = RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_seq };
    let near = |(a, b): (&f32, &f32)| (a - b).abs() <= 1e-5 * b.abs();
    found.divisors(c.rope_theta, c.head_dim).iter().zip(divisors).all(near).then_some(found)
}
