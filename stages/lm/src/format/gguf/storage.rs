//! How matrices are stored in a file that is written.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::types::TensorType;

/// How matrices are stored.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Storage {
    /// Ternary, a float16 scale for 64 weights: 2.25 bits a weight.
    #[serde(rename = "q2_0")]
    Q2_0,
    /// Ternary, a float16 scale for 256 weights: 2.0625 bits a weight.
    #[default]
    #[serde(rename = "tq2_0")]
    Tq2_0,
    /// Ternary, a float16 scale for 256 weights: 1.6875 bits a weight, the smallest.
    #[serde(rename = "tq1_0")]
    Tq1_0,
    /// 8 bits, a float16 step for 32 weights.
    #[serde(rename = "q8_0")]
    Q8_0,
    /// float16.
    #[serde(rename = "f16")]
    F16,
    /// float32.
    #[serde(rename = "f32")]
    F32,
}

impl Storage {
    /// All of them.
    pub const ALL: [Storage; 6] = [Storage::Q2_0, Storage::Tq2_0, Storage::Tq1_0, Storage::Q8_0, Storage::F16, Storage::F32];

    /// Name in pipelines and on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Storage::Q2_0 => "q2_0",
            Storage::Tq2_0 => "tq2_0",
            Storage::Tq1_0 => "tq1_0",
            Storage::Q8_0 => "q8_0",
            Storage::F16 => "f16",
            Storage::F32 => "f32",
        }
    }
    /// By its name.
    pub fn of(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|s| s.name() == name)
    }
    /// Whether only ternary matrices can be stored so.
    pub fn is_ternary(self) -> bool {
        matches!(self, Storage::Q2_0 | Storage::Tq2_0 | Storage::Tq1_0)
    }
    /// Type of a tensor.
    pub(super) fn ty(self) -> TensorType {
        match self {
            Storage::Q2_0 => TensorType::Q2_0,
            Storage::Tq2_0 => TensorType::Tq2_0,
            Storage::Tq1_0 => TensorType::Tq1_0,
            Storage::Q8_0 => TensorType::Q8_0,
            Storage::F16 => TensorType::F16,
            Storage::F32 => TensorType::F32,
        }
    }
    /// `general.file_type` of a file whose linears are stored so (`llama_ftype`).
    pub(super) fn file_type(self) -> u32 {
        match self {
            Storage::F32 => 0,
            Storage::F16 => 1,
            Storage::Q8_0 => 7,
            Storage::Tq1_0 => 36,
            Storage::Tq2_0 => 37,
            Storage::Q2_0 => 41,
        }
    }
}
