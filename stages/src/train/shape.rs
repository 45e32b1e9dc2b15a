//! Sizes of a model where others than its preset's are wanted.

use flow_engine::plugin::ParamError;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::model::config::{Activation, ModelConfig};

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
    /// MLP activation.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub activation: Option<Activation>,
    /// RMSNorm before `o` and `down` (SubLN).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sub_norm: Option<bool>,
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
        config.activation = self.activation.unwrap_or(config.activation);
        config.sub_norm = self.sub_norm.unwrap_or(config.sub_norm);
    }

    /// What is wrong with a preset's shape after the change.
    pub fn check(&self, mut config: ModelConfig) -> Result<(), ParamError> {
        self.apply(&mut config);
        let wrong = |field: &str, message: String| Err(ParamError { path: format!("shape.{field}"), message, help: None });
        if let Some((field, message)) = config.problem() {
            return wrong(field, message);
        }
        if config.heads * config.head_dim != config.dim {
            return wrong("heads", format!("{} heads do not divide dim = {}", config.heads, config.dim));
        }
        Ok(())
    }
}
