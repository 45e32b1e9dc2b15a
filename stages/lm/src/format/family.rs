//! The families of models that are read and written, in one table: what each has, and how its files name and order things.

use crate::config::{Activation, ModelConfig};

/// A family, as one name in files says it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Family {
    /// `model_type` of a Hugging Face directory; none where only GGUF files say it.
    pub model_type: Option<&'static str>,
    /// Class there.
    pub class: &'static str,
    /// `general.architecture` of a GGUF file.
    pub architecture: &'static str,
    /// Whether the rows of q and k stand in llama.cpp's order in GGUF files: rows 2i and 2i + 1 of a head rotate together there,
    /// rows i and i + head_dim/2 here.
    pub interleaved: bool,
    /// SubLN before `o` and `down`.
    pub sub_norm: bool,
    /// Biases on q, k and v.
    pub qkv_bias: bool,
    /// RMSNorm over each head of q and k.
    pub head_norm: bool,
    /// Layers i with (i + 1) a multiple of this have no RoPE; 0: all have it.
    pub no_rope_every: usize,
    /// Activation, where the files do not say.
    pub activation: Activation,
    /// Whether the head is the embedding where `config.json` does not say.
    pub tied: bool,
    /// Whether a window that `config.json` names is used without a word.
    pub windowed: bool,
}

const LLAMA: Family = Family {
    model_type: Some("llama"),
    class: "LlamaForCausalLM",
    architecture: "llama",
    interleaved: true,
    sub_norm: false,
    qkv_bias: false,
    head_norm: false,
    no_rope_every: 0,
    activation: Activation::Silu,
    tied: false,
    windowed: false,
};

const BITNET: Family =
    Family { model_type: Some("bitnet"), class: "BitNetForCausalLM", architecture: "bitnet", interleaved: false, sub_norm: true, ..LLAMA };

/// All of them; of those that compute the same, the first is written.
pub const FAMILIES: [Family; 8] = [
    LLAMA,
    Family { model_type: Some("mistral"), class: "MistralForCausalLM", windowed: true, ..LLAMA },
    Family { model_type: Some("smollm3"), class: "SmolLM3ForCausalLM", architecture: "smollm3", no_rope_every: 4, tied: true, ..LLAMA },
    Family { model_type: Some("qwen2"), class: "Qwen2ForCausalLM", architecture: "qwen2", interleaved: false, qkv_bias: true, ..LLAMA },
    Family { model_type: Some("qwen3"), class: "Qwen3ForCausalLM", architecture: "qwen3", interleaved: false, head_norm: true, ..LLAMA },
    BITNET,
    // bitnet.cpp's graphs of the published models have ReLU² where llama.cpp's `bitnet` has SiLU.
    Family { model_type: None, architecture: "bitnet-25", activation: Activation::Relu2, ..BITNET },
    Family { model_type: None, architecture: "bitnet-b1.58", activation: Activation::Relu2, ..BITNET },
];

impl Family {
    /// By `general.architecture`.
    pub fn of_architecture(name: &str) -> Option<&'static Family> {
        FAMILIES.iter().find(|f| f.architecture == name)
    }

    /// By `model_type`.
    pub fn of_model_type(name: &str) -> Option<&'static Family> {
        FAMILIES.iter().find(|f| f.model_type == Some(name))
    }

    /// The names of all architectures, for messages.
    pub fn architectures() -> String {
        let mut names: Vec<&str> = FAMILIES.iter().map(|f| f.architecture).collect();
        names.dedup();
        names.join(", ")
    }

    /// The names of all model types, for messages.
    pub fn model_types() -> String {
        FAMILIES.iter().filter_map(|f| f.model_type).collect::<Vec<_>>().join(", ")
    }

    /// Layers without RoPE of a model of so many.
    pub fn no_rope(&self, layers: usize) -> Vec<usize> {
        (0..layers).filter(|l| self.no_rope_every > 0 && (l + 1) % self.no_rope_every == 0).collect()
    }

    /// The family whose options a model has; what no family has together, in words.
    pub fn of(config: &ModelConfig) -> Result<&'static Family, String> {
        let fits = |f: &&Family| {
            (f.sub_norm, f.qkv_bias, f.head_norm) == (config.sub_norm, config.qkv_bias, config.head_norm)
                && (f.no_rope_every > 0) != config.no_rope.is_empty()
        };
        let family = FAMILIES.iter().find(fits).ok_or_else(|| {
            let has = [
                (config.sub_norm, "SubLN"),
                (config.qkv_bias, "biases on q, k and v"),
                (config.head_norm, "norms of heads"),
                (!config.no_rope.is_empty(), "layers without RoPE"),
            ];
            let has: Vec<&str> = has.into_iter().filter(|(has, _)| *has).map(|(_, name)| name).collect();
            format!("no family has {} together", has.join(", "))
        })?;
        Ok(family)
    }
}
