//! How the keys and values of earlier tokens are held.

use flow_shaders::kernels::attention::Cached;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// How the keys and values of earlier tokens are held while a model decodes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum KvCache {
    /// 32-bit floats.
    Float32,
    /// 16-bit floats.
    #[default]
    Float16,
    /// Bytes with a step for each position and head: a quarter of the memory, and an error of at most half a step.
    Int8,
}

impl KvCache {
    /// In words.
    pub fn words(self) -> &'static str {
        match self {
            Self::Float32 => "float32 keys and values",
            Self::Float16 => "float16 keys and values",
            Self::Int8 => "int8 keys and values",
        }
    }

    /// The form in a program.
    pub fn form(self) -> Cached {
        match self {
            KvCache::Float32 => Cached::Float,
            KvCache::Float16 => Cached::Half,
            KvCache::Int8 => Cached::Int8,
        }
    }
}
