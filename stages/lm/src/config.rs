//! The shape of a model: one declaration from which the program, the checkpoint layout and every size derive.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Activation of the gated MLP.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Activation {
    /// SwiGLU.
    Silu,
    /// ReLU² (the 2B4T family).
    Relu2,
}

/// How the linears of the blocks hold their weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Weights {
    /// Full precision (teachers).
    Float,
    /// BitNet b1.58: one absmean scale per tensor.
    Absmean,
    /// 0.7·mean|W| with a learned scale per output.
    Threshold,
}

/// What goes to 4 bits with the flip.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum A4 {
    /// What every linear of the blocks takes.
    #[default]
    All,
    /// What enters attention and MLP; `o` and `down` take 8 bits, as in BitNet a4.8 (arXiv 2411.04965).
    Hybrid,
}

/// Bits of the activations that ternary linears take.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Bits {
    /// Codes of ±7.
    Four,
    /// Codes of ±127.
    #[default]
    Eight,
}

impl Bits {
    /// The largest code.
    pub fn qmax(self) -> f32 {
        match self {
            Bits::Four => 7.0,
            Bits::Eight => 127.0,
        }
    }
    /// 4 or 8.
    pub fn count(self) -> u32 {
        match self {
            Bits::Four => 4,
            Bits::Eight => 8,
        }
    }
    /// By their number.
    pub fn of(count: u32) -> Option<Self> {
        [Bits::Four, Bits::Eight].into_iter().find(|b| b.count() == count)
    }
}

/// Shape and numerics of a decoder.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ModelConfig {
    /// Vocabulary.
    pub vocab: usize,
    /// Hidden size.
    pub dim: usize,
    /// Blocks.
    pub layers: usize,
    /// Query heads.
    pub heads: usize,
    /// KV heads; divides `heads`.
    pub kv_heads: usize,
    /// Size of a head.
    pub head_dim: usize,
    /// MLP size.
    pub mlp: usize,
    /// Longest sequence.
    pub seq: usize,
    /// RoPE base.
    pub rope_theta: f64,
    /// Added inside the root of RMSNorm.
    pub norm_eps: f32,
    /// MLP activation.
    pub activation: Activation,
    /// Weights of the block linears.
    pub weights: Weights,
    /// RMSNorm before `o` and `down` (SubLN).
    pub sub_norm: bool,
    /// Head shares the embedding.
    pub tied: bool,
    /// What goes to 4 bits with the flip.
    #[serde(default, skip_serializing_if = "is_default")]
    pub a4: A4,
}

/// What a tensor is, which decides how it is trained, decayed and stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Token embedding (and head when tied).
    Embedding,
    /// Output head.
    Head,
    /// A block linear `[out, in]`.
    Linear,
    /// RMSNorm weight.
    Norm,
    /// Learned output scale of a threshold linear.
    Scale,
}

/// One tensor of a model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorSpec {
    /// Name in checkpoints, e.g. `layers.3.gate`.
    pub name: String,
    /// `[rows, cols]`, or `[n]` for vectors.
    pub shape: Vec<usize>,
    /// Role.
    pub role: Role,
}

impl TensorSpec {
    /// Number of elements.
    pub fn len(&self) -> usize {
        self.shape.iter().product()
    }
    /// Whether it has no elements.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

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
            a4: A4::All,
        }
    }
}

impl ModelConfig {
    /// Every tensor, in checkpoint order.
    pub fn tensors(&self) -> Vec<TensorSpec> {
        let mut all = Vec::new();
        let mut add = |name: String, shape: &[usize], role| all.push(TensorSpec { name, shape: shape.to_vec(), role });
        let (q, kv) = (self.heads * self.head_dim, self.kv_heads * self.head_dim);
        add("embed".into(), &[self.vocab, self.dim], Role::Embedding);
        for l in 0..self.layers {
            let linears: [(&str, usize, usize); 7] = [
                ("q", q, self.dim),
                ("k", kv, self.dim),
                ("v", kv, self.dim),
                ("o", self.dim, q),
                ("gate", self.mlp, self.dim),
                ("up", self.mlp, self.dim),
                ("down", self.dim, self.mlp),
            ];
            add(format!("layers.{l}.attn_norm"), &[self.dim], Role::Norm);
            if self.sub_norm {
                add(format!("layers.{l}.attn_sub_norm"), &[q], Role::Norm);
            }
            add(format!("layers.{l}.mlp_norm"), &[self.dim], Role::Norm);
            if self.sub_norm {
                add(format!("layers.{l}.mlp_sub_norm"), &[self.mlp], Role::Norm);
            }
            for (name, out, input) in linears {
                add(format!("layers.{l}.{name}"), &[out, input], Role::Linear);
                if self.weights == Weights::Threshold {
                    add(format!("layers.{l}.{name}_scale"), &[out], Role::Scale);
                }
            }
        }
        add("norm".into(), &[self.dim], Role::Norm);
        if !self.tied {
            add("head".into(), &[self.vocab, self.dim], Role::Head);
        }
        all
    }

    /// Number of parameters.
    pub fn parameters(&self) -> usize {
        self.tensors().iter().map(TensorSpec::len).sum()
    }

    /// What is wrong with the shape, if anything: (field, message).
    pub fn problem(&self) -> Option<(&'static str, String)> {
        if self.vocab == 0 || self.dim == 0 || self.layers == 0 || self.heads == 0 || self.mlp == 0 || self.seq == 0 {
            return Some(("dim", "sizes must be above 0".into()));
        }
        if self.kv_heads == 0 || !self.heads.is_multiple_of(self.kv_heads) {
            return Some(("kv_heads", format!("{} does not divide heads = {}", self.kv_heads, self.heads)));
        }
        if self.head_dim == 0 || !self.head_dim.is_multiple_of(2) || self.head_dim > 256 {
            return Some(("head_dim", format!("{} must be even and at most 256 (RoPE rotates pairs)", self.head_dim)));
        }
        None
    }
}

/// What is the case without a word is not written: keys and files outlive its introduction.
pub(crate) fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

/// A setting that cannot be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused {
    /// Which.
    pub field: String,
    /// What is wrong with it, with the value.
    pub why: String,
}
