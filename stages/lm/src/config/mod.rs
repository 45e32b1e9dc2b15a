//! The shape of a model: one declaration from which the program, the checkpoint layout and every size derive.

mod numerics;
mod preset;
mod rope;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub use numerics::{A4, Activations, Bits, Group, ScaleType, Weights};
pub use preset::Preset;
pub use rope::RopeScaling;

/// Activation of the gated MLP.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Activation {
    /// SwiGLU.
    Silu,
    /// ReLU² (the 2B4T family).
    Relu2,
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
    /// What of a ternary matrix shares a scale.
    #[serde(default, skip_serializing_if = "is_default")]
    pub group: Group,
    /// How the scale of a tensor is rounded.
    #[serde(default, skip_serializing_if = "is_default")]
    pub scale: ScaleType,
    /// The embedding is ternary too (and the head, when tied).
    #[serde(default, skip_serializing_if = "is_default")]
    pub ternary_embedding: bool,
    /// The head is ternary too.
    #[serde(default, skip_serializing_if = "is_default")]
    pub ternary_head: bool,
    /// What ternary linears take.
    #[serde(default, skip_serializing_if = "is_default")]
    pub activations: Activations,
    /// Biases on q, k and v (Qwen 2).
    #[serde(default, skip_serializing_if = "is_default")]
    pub qkv_bias: bool,
    /// RMSNorm over each head of q and of k before RoPE (Qwen 3).
    #[serde(default, skip_serializing_if = "is_default")]
    pub head_norm: bool,
    /// How the frequencies of RoPE are scaled.
    #[serde(default, skip_serializing_if = "is_default")]
    pub rope_scaling: Option<RopeScaling>,
    /// Layers without RoPE (SmolLM3), in ascending order.
    #[serde(default, skip_serializing_if = "is_default")]
    pub no_rope: Vec<usize>,
    /// Keys that a position sees, where that is fewer than all: longer sequences are refused.
    #[serde(default, skip_serializing_if = "is_default")]
    pub window: Option<usize>,
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
    /// Bias of a linear.
    Bias,
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

impl ModelConfig {
    /// A full-precision model of no size, without any option: what shapes are filled into.
    pub fn plain() -> Self {
        Self {
            vocab: 0,
            dim: 0,
            layers: 0,
            heads: 0,
            kv_heads: 0,
            head_dim: 0,
            mlp: 0,
            seq: 0,
            rope_theta: 10_000.0,
            norm_eps: 1e-5,
            activation: Activation::Silu,
            weights: Weights::Float,
            sub_norm: false,
            tied: true,
            a4: A4::default(),
            group: Group::default(),
            scale: ScaleType::default(),
            ternary_embedding: false,
            ternary_head: false,
            activations: Activations::default(),
            qkv_bias: false,
            head_norm: false,
            rope_scaling: None,
            no_rope: Vec::new(),
            window: None,
        }
    }

    /// Scales of a row of a tensor of this model as kernels hold them, where it is ternary.
    pub fn ternary_groups(&self, spec: &TensorSpec) -> Option<usize> {
        let ternary = self.weights != Weights::Float
            && match spec.role {
                Role::Linear => true,
                Role::Embedding => self.ternary_embedding,
                Role::Head => self.ternary_head,
                Role::Norm | Role::Scale | Role::Bias => false,
            };
        ternary.then(|| self.group.stored(spec.shape[1]))
    }

    /// Whether linears take codes instead of floats.
    pub fn quantises(&self) -> bool {
        self.weights != Weights::Float && self.activations == Activations::Quantised
    }

    /// Whether the scales of ternary matrices are float16.
    pub fn half_scales(&self) -> bool {
        self.group != Group::Tensor || self.scale == ScaleType::F16
    }

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
            if self.head_norm {
                add(format!("layers.{l}.q_norm"), &[self.head_dim], Role::Norm);
                add(format!("layers.{l}.k_norm"), &[self.head_dim], Role::Norm);
            }
            for (name, out, input) in linears {
                add(format!("layers.{l}.{name}"), &[out, input], Role::Linear);
                if self.qkv_bias && matches!(name, "q" | "k" | "v") {
                    add(format!("layers.{l}.{name}_bias"), &[out], Role::Bias);
                }
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
        if !(self.rope_theta.is_finite() && self.rope_theta > 0.0) {
            return Some(("rope_theta", format!("{} is not above 0", self.rope_theta)));
        }
        if !(self.norm_eps.is_finite() && self.norm_eps >= 0.0) {
            return Some(("norm_eps", format!("{} is below 0", self.norm_eps)));
        }
        if !self.no_rope.is_sorted_by(|a, b| a < b) {
            return Some(("no_rope", format!("{:?}: each layer once, in ascending order", self.no_rope)));
        }
        if let Some(why) = self.rope_scaling.as_ref().and_then(|s| s.problem(self.head_dim)) {
            return Some(("rope_scaling", why));
        }
        if let Some(layer) = self.no_rope.iter().find(|l| **l >= self.layers) {
            return Some(("no_rope", format!("layer {layer} of {}", self.layers)));
        }
        self.ternary_problem()
    }

    /// What is wrong with how matrices are made ternary.
    fn ternary_problem(&self) -> Option<(&'static str, String)> {
        if self.weights != Weights::Absmean {
            let rule = if self.weights == Weights::Float { "float" } else { "threshold" };
            let said = [
                ("group", self.group != Group::Tensor),
                ("scale", self.scale != ScaleType::F32),
                ("ternary_embedding", self.ternary_embedding),
                ("ternary_head", self.ternary_head),
            ];
            if let Some((field, _)) = said.into_iter().find(|(_, said)| *said) {
                return Some((field, format!("is for `weights: absmean`, not for `{rule}`")));
            }
        }
        if self.tied && self.ternary_head {
            return Some(("ternary_head", "the head is the embedding: say `ternary_embedding`".into()));
        }
        if let Group::Of(n) = self.group {
            let of_width =
                |w: usize| (!w.is_multiple_of(n)).then(|| ("group", format!("groups of {n} do not divide a row of {w} weights")));
            return [self.dim, self.heads * self.head_dim, self.mlp].into_iter().find_map(of_width);
        }
        None
    }

    /// Whether a sequence is longer than what every position sees.
    pub fn beyond_window(&self, positions: usize) -> Option<usize> {
        self.window.filter(|w| *w < positions)
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
