//! Sizes and options of a model where others than its preset's are wanted.

use flow_engine::plugin::ParamError;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use flow_lm::config::{A4, ModelConfig, RopeScaling, Weights};

/// What of a preset's shape is changed; what is null stays. Without a word `head_dim` is `dim / heads`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Shape {
    /// Hidden size.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dim: Option<usize>,
    /// Query heads.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub heads: Option<usize>,
    /// KV heads; divides `heads`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kv_heads: Option<usize>,
    /// MLP size.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mlp: Option<usize>,
    /// RMSNorm before `o` and `down` (SubLN).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sub_norm: Option<bool>,
    /// What goes to 4 bits with the flip.
    #[serde(skip_serializing_if = "is_all")]
    pub a4: Option<A4>,
    /// Size of a head.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub head_dim: Option<usize>,
    /// Head shares the embedding.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tied: Option<bool>,
    /// Biases on q, k and v, as Qwen 2 has them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub qkv_bias: Option<bool>,
    /// RMSNorm over each head of q and of k before RoPE, as Qwen 3 has them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub head_norm: Option<bool>,
    /// RoPE base.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rope_theta: Option<f64>,
    /// How the frequencies of RoPE are scaled.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rope_scaling: Option<RopeScaling>,
    /// Layers without RoPE, from 0 on (SmolLM3: every fourth, 3, 7, …).
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub no_rope: Vec<usize>,
}

/// What is the case without a word is not part of a key.
fn is_all(a4: &Option<A4>) -> bool {
    a4.is_none_or(|a| a == A4::All)
}

impl Shape {
    /// Changes a preset's shape.
    pub fn apply(&self, config: &mut ModelConfig) {
        let fields = [
            (&mut config.dim, self.dim),
            (&mut config.heads, self.heads),
            (&mut config.kv_heads, self.kv_heads),
            (&mut config.mlp, self.mlp),
        ];
        for (field, wanted) in fields {
            *field = wanted.unwrap_or(*field);
        }
        if self.dim.is_some() || self.heads.is_some() {
            config.head_dim = config.dim / config.heads.max(1);
        }
        config.head_dim = self.head_dim.unwrap_or(config.head_dim);
        let flags = [
            (&mut config.sub_norm, self.sub_norm),
            (&mut config.tied, self.tied),
            (&mut config.qkv_bias, self.qkv_bias),
            (&mut config.head_norm, self.head_norm),
        ];
        for (flag, wanted) in flags {
            *flag = wanted.unwrap_or(*flag);
        }
        config.a4 = self.a4.unwrap_or(config.a4);
        config.rope_theta = self.rope_theta.unwrap_or(config.rope_theta);
        config.rope_scaling = self.rope_scaling.clone().or(config.rope_scaling.take());
        if !self.no_rope.is_empty() {
            config.no_rope.clone_from(&self.no_rope);
        }
    }

    /// What is wrong with a preset's shape after the change.
    pub fn check(&self, mut config: ModelConfig) -> Result<(), ParamError> {
        self.apply(&mut config);
        let wrong = |field: &str, message: String| Err(ParamError { path: format!("shape.{field}"), message, help: None });
        if config.a4 == A4::Hybrid && !config.quantises() {
            let what = if config.weights == Weights::Float { "full-precision linears" } else { "linears that take floats" };
            return wrong("a4", format!("{what} have no activation bits"));
        }
        if self.rope_theta.is_some_and(|t| !(t.is_finite() && t > 1.0)) {
            return wrong("rope_theta", format!("{} is not above 1", config.rope_theta));
        }
        let sizes = [("dim", config.dim), ("heads", config.heads), ("kv_heads", config.kv_heads), ("mlp", config.mlp)];
        if let Some((field, _)) = sizes.iter().find(|(_, n)| *n == 0) {
            return wrong(field, "must be above 0".into());
        }
        if self.head_dim.is_none() && config.heads * config.head_dim != config.dim {
            return wrong("heads", format!("{} heads do not divide dim = {}", config.heads, config.dim));
        }
        match config.problem() {
            // The size of a head follows from these two.
            Some(("head_dim", message)) if self.head_dim.is_none() => {
                return wrong("heads", format!("a head of {} / {}: {message}", config.dim, config.heads));
            }
            // Parameters of the stage itself.
            Some((field @ ("group" | "scale" | "ternary_embedding" | "ternary_head"), message)) => {
                return Err(ParamError { path: field.into(), message, help: None });
            }
            Some((field, message)) => return wrong(field, message),
            None => {}
        }
        Ok(())
    }
}
