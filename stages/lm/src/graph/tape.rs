//! What passes through a model: the inputs of a pass, its cache, and what it leaves for the backward pass. Every buffer is
//! row-major.

use flow_shaders::kernels::attention::Cached;
use flow_shaders::program::BufferId;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// How activations and gradients are kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Storage {
    /// 32-bit floats.
    #[default]
    Float32,
    /// 16-bit floats, with a dynamic loss scale.
    Float16,
}

/// The input of a linear: values, or codes where the linears are ternary.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Act {
    /// `[rows, cols]`.
    Values(BufferId),
    /// Rows in blocks of 64, each as those that take it need it.
    Blocks {
        /// Packed bytes `[rows, 4 · ceil(cols / 16)]` and steps `[rows, ceil(cols / 64)]`, for ternary matrices.
        codes: Option<(BufferId, BufferId)>,
        /// The same as values `[rows, cols]`, for others.
        values: Option<BufferId>,
    },
    /// Quantised rows.
    Codes {
        /// Packed bytes, four in a word `[rows, 4 · ceil(cols / 16)]`.
        q: BufferId,
        /// Step and sum of each row's codes `[rows, 2]`.
        scales: BufferId,
    },
}

/// Inputs of a forward pass over `sequences · q_len` rows.
#[derive(Clone, Copy, Debug)]
pub struct Batch {
    /// Sequences.
    pub sequences: usize,
    /// Rows of each.
    pub q_len: usize,
    /// Token ids `[rows]`.
    pub ids: BufferId,
    /// Positions `[rows]`.
    pub pos: BufferId,
    /// 1 for real keys `[sequences, kv_len]`.
    pub mask: BufferId,
}

impl Batch {
    /// Rows of the batch.
    pub fn rows(&self) -> usize {
        self.sequences * self.q_len
    }
}

/// Keys and values of earlier positions, per layer `[sequences, kv_len, kv_heads, head_dim]`.
#[derive(Clone, Debug)]
pub struct Cache {
    /// How they are held.
    pub form: Cached,
    /// Positions that fit.
    pub kv_len: usize,
    /// (keys, values) of each layer.
    pub layers: Vec<(BufferId, BufferId)>,
}

/// What the norms of the heads of q and k take, and 1 / root mean square of each head of each row.
#[derive(Clone, Copy)]
pub(crate) struct HeadNorms {
    /// `[rows, heads · head_dim]` and `[rows · heads]`.
    pub q: (BufferId, BufferId),
    /// `[rows, kv_heads · head_dim]` and `[rows · kv_heads]`.
    pub k: (BufferId, BufferId),
}

/// What a block's backward pass needs of its forward pass. `rows` are those of the batch.
#[derive(Clone)]
pub(crate) struct BlockTape {
    /// Residual stream before the block `[rows, dim]`.
    pub x_in: BufferId,
    /// 1 / root mean square of each row of it `[rows]`.
    pub rstd_attn: BufferId,
    /// What q, k and v take `[rows, dim]`.
    pub h_attn: Act,
    /// Queries and keys before the norm of their heads, where they have one.
    pub heads: Option<HeadNorms>,
    /// Rotated queries `[rows, heads · head_dim]`.
    pub q: BufferId,
    /// Rotated keys `[rows, kv_heads · head_dim]`.
    pub k: BufferId,
    /// Values `[rows, kv_heads · head_dim]`.
    pub v: BufferId,
    /// What attention gives `[rows, heads · head_dim]`.
    pub o: BufferId,
    /// Largest score and sum of each softmax `[rows, heads, 2]`.
    pub stats: BufferId,
    /// rstd of the SubLN before `o` `[rows]`.
    pub sub_attn: Option<BufferId>,
    /// What `o` takes `[rows, heads · head_dim]`.
    pub o_in: Act,
    /// Residual stream after attention `[rows, dim]`.
    pub x_mid: BufferId,
    /// 1 / root mean square of each row of it `[rows]`.
    pub rstd_mlp: BufferId,
    /// What `gate` and `up` take `[rows, dim]`.
    pub h_mlp: Act,
    /// `[rows, mlp]`.
    pub gate: BufferId,
    /// `[rows, mlp]`.
    pub up: BufferId,
    /// Gated activation `[rows, mlp]`.
    pub act: BufferId,
    /// rstd of the SubLN before `down` `[rows]`.
    pub sub_mlp: Option<BufferId>,
    /// What `down` takes `[rows, mlp]`.
    pub down_in: Act,
}

/// What the whole backward pass needs.
pub(crate) struct Tape {
    /// Of each block.
    pub blocks: Vec<KeptBlock>,
    /// Residual stream after the last block `[rows, dim]`.
    pub x_last: BufferId,
    /// 1 / root mean square of each row of it `[rows]`.
    pub rstd: BufferId,
    /// What the head takes `[rows, dim]`.
    pub normed: BufferId,
    /// `[rows, vocab]`; after the loss, its gradient.
    pub logits: BufferId,
}

/// What a forward pass keeps for the backward pass.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Keep {
    pub storage: Storage,
    /// Only the input of each block: the rest is made again.
    pub inputs_only: bool,
}

impl Keep {
    /// Everything, as it was computed.
    pub const FLOATS: Keep = Keep { storage: Storage::Float32, inputs_only: false };
}

/// What a forward pass kept of a block.
pub(crate) struct KeptBlock {
    pub tape: BlockTape,
    /// Values of each activation that was put away, in the order of [`BlockTape::activations`].
    pub floats: Vec<usize>,
}

impl BlockTape {
    /// The buffers of floats that are as large as activations.
    pub fn activations(&mut self, inputs_only: bool) -> Vec<&mut BufferId> {
        if inputs_only {
            return vec![&mut self.x_in];
        }
        let Self { x_in, q, k, v, o, x_mid, gate, up, act, h_attn, o_in, h_mlp, down_in, heads, .. } = self;
        let values = [h_attn, o_in, h_mlp, down_in].into_iter().filter_map(|a| match a {
            Act::Values(buffer) => Some(buffer),
            Act::Codes { .. } | Act::Blocks { .. } => None,
        });
        let heads = heads.iter_mut().flat_map(|h| [&mut h.q.0, &mut h.k.0]);
        [x_in, q, k, v, o, x_mid, gate, up, act].into_iter().chain(values).chain(heads).collect()
    }
}

/// Gradient buffers and the row order of the embedding's scatter.
pub(crate) struct Gradients {
    /// One buffer per tensor of the graph, in its order.
    pub grads: Vec<BufferId>,
    /// Which of them are float16.
    pub half: Vec<bool>,
    /// First entry of each token id in `order`, `[vocab + 1]`.
    pub starts: BufferId,
    /// Rows sorted by token id, `[rows]`.
    pub order: BufferId,
}
