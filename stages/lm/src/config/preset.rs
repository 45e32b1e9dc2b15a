//! Named shapes.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Activation, ModelConfig, Weights};

/// A named shape.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Preset {
    /// 256 × 4 layers, MLP 768, vocab 4,096, sequence 128.
    #[serde(rename = "poc")]
    Poc,
    /// The full-precision teacher of the PoC: 256 × 6 layers, vocab 8,192.
    #[serde(rename = "poc-teacher")]
    PocTeacher,
    /// 768 × 12 layers, MLP 3,072, vocab 32,000, sequence 256.
    #[serde(rename = "mini")]
    Mini,
    /// BitNet b1.58 2B4T.
    #[serde(rename = "2b4t")]
    B2,
    /// 4,096 × 32 layers, MLP 16,384 (8.6 B parameters).
    #[serde(rename = "7b")]
    B7,
}

impl Preset {
    /// All of them.
    pub const ALL: [Preset; 5] = [Preset::Poc, Preset::PocTeacher, Preset::Mini, Preset::B2, Preset::B7];

    /// Name in pipelines.
    pub fn name(self) -> &'static str {
        match self {
            Preset::Poc => "poc",
            Preset::PocTeacher => "poc-teacher",
            Preset::Mini => "mini",
            Preset::B2 => "2b4t",
            Preset::B7 => "7b",
        }
    }
    /// The shape.
    pub fn config(self) -> ModelConfig {
        let (dim, layers, heads, kv_heads, mlp, vocab, seq) = match self {
            Preset::Poc => (256, 4, 4, 2, 768, 4_096, 128),
            Preset::PocTeacher => (256, 6, 4, 2, 768, 8_192, 128),
            Preset::Mini => (768, 12, 12, 12, 3_072, 32_000, 256),
            Preset::B2 => (2_560, 30, 20, 5, 6_912, 128_256, 4_096),
            Preset::B7 => (4_096, 32, 32, 32, 16_384, 32_000, 64),
        };
        let two_b = self == Preset::B2;
        ModelConfig {
            vocab,
            dim,
            layers,
            heads,
            kv_heads,
            head_dim: dim / heads,
            mlp,
            seq,
            rope_theta: if two_b { 500_000.0 } else { 10_000.0 },
            norm_eps: 1e-5,
            activation: if two_b { Activation::Relu2 } else { Activation::Silu },
            weights: if self == Preset::PocTeacher { Weights::Float } else { Weights::Absmean },
            sub_norm: self != Preset::PocTeacher,
            tied: true,
            ..ModelConfig::plain()
        }
    }
}
