//! Sizes of a model where others than its preset's are wanted.

use flow_engine::plugin::ParamError;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use flow_lm::config::{A4, ModelConfig, Weights};

/// What of a preset's shape is changed; what is null stays. `head_dim` is `dim / heads`.
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
        config.sub_norm = self.sub_norm.unwrap_or(config.sub_norm);
        config.a4 = self.a4.unwrap_or(config.a4);
    }

    /// What is wrong with a preset's shape after the change.
    pub fn check(&self, mut config: ModelConfig) -> Result<(), ParamError> {
        self.apply(&mut config);
        let wrong = |field: &str, message: String| Err(ParamError { path: format!("shape.{field}"), message, help: None });
        if config.a4 == A4::Hybrid && config.weights == Weights::Float {
            return wrong("a4", "full-precision linears have no activation bits".into());
        }
        let sizes = [("dim", config.dim), ("heads", config.heads), ("kv_heads", config.kv_heads), ("mlp", config.mlp)];
        if let Some((field, _)) = sizes.iter().find(|(_, n)| *n == 0) {
            return wrong(field, "must be above 0".into());
        }
        if config.heads * config.head_dim != config.dim {
            return wrong("heads", format!("{} heads do not divide dim = {}", config.heads, config.dim));
        }
        match config.problem() {
            // The size of a head follows from these two.
            Some(("head_dim", message)) => return wrong("heads", format!("a head of {} / {}: {message}", config.dim, config.heads)),
            Some((field, message)) => return wrong(field, message),
            None => {}
        }
        Ok(())
    }
}
