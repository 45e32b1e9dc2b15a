//! How weights and activations of linears are rounded.

use flow_shaders::kernels::ternary::groups::GROUP;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// How the linears of the blocks hold their weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Weights {
    /// Full precision (teachers).
    Float,
    /// BitNet b1.58: absmean scales, of a tensor or of what `group` says.
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

/// What of a ternary matrix shares an absmean scale.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(try_from = "GroupName", into = "GroupName")]
#[schemars(with = "GroupName")]
pub enum Group {
    /// All of it.
    #[default]
    Tensor,
    /// A row.
    Row,
    /// So many neighbours in a row: 64, 128 or 256.
    Of(usize),
}

/// A group as it is written.
#[derive(Serialize, Deserialize, JsonSchema)]
#[serde(untagged)]
enum GroupName {
    /// `tensor` or `row`.
    Name(GroupWord),
    /// 64, 128 or 256.
    Weights(usize),
}

#[derive(Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
enum GroupWord {
    Tensor,
    Row,
}

impl TryFrom<GroupName> for Group {
    type Error = String;
    fn try_from(name: GroupName) -> Result<Self, String> {
        match name {
            GroupName::Name(GroupWord::Tensor) => Ok(Group::Tensor),
            GroupName::Name(GroupWord::Row) => Ok(Group::Row),
            GroupName::Weights(n) if Group::SIZES.contains(&n) => Ok(Group::Of(n)),
            GroupName::Weights(n) => Err(format!("{n} weights: expected tensor, row, 64, 128 or 256")),
        }
    }
}

impl From<Group> for GroupName {
    fn from(group: Group) -> Self {
        match group {
            Group::Tensor => GroupName::Name(GroupWord::Tensor),
            Group::Row => GroupName::Name(GroupWord::Row),
            Group::Of(n) => GroupName::Weights(n),
        }
    }
}

impl Group {
    /// Sizes of groups within a row.
    pub const SIZES: [usize; 3] = [64, 128, 256];

    /// Scales of a row of `cols` weights as kernels hold them (see `flow_shaders::kernels::ternary::groups`).
    pub fn stored(self, cols: usize) -> usize {
        match self {
            Group::Tensor | Group::Row => 1,
            Group::Of(_) => cols / GROUP,
        }
    }
}

/// How a scale of a ternary matrix is rounded. Those of rows and groups are always float16.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum ScaleType {
    /// Not at all.
    #[default]
    F32,
    /// To float16, as files hold it: in training too.
    F16,
}

/// What ternary linears take.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Activations {
    /// Codes of 8 or 4 bits with a step for each token (BitNet).
    #[default]
    Quantised,
    /// Floats.
    Float,
}
