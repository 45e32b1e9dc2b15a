//! Which kernels a kind's results depend on: their fingerprints are part of its action key.

use std::sync::OnceLock;

use flow_shaders::fingerprint::fingerprints;
use flow_shaders::kernel::Kernel;

use crate::model::config::{Preset, Weights};
use crate::model::optimizer::Optimizer;
use crate::model::trainer::{TrainShape, kernels as training_kernels};

type Prints = Vec<(String, String)>;

fn tiny(weights: Weights) -> crate::model::config::ModelConfig {
    let mut config = Preset::Poc.config();
    (config.vocab, config.dim, config.layers, config.mlp, config.heads, config.kv_heads, config.head_dim) = (16, 16, 1, 16, 1, 1, 16);
    config.weights = weights;
    config
}

/// Kernels of a training step with these linears.
pub fn training(weights: Weights) -> Prints {
    static FLOAT: OnceLock<Prints> = OnceLock::new();
    static TERNARY: OnceLock<Prints> = OnceLock::new();
    let cell = if weights == Weights::Float { &FLOAT } else { &TERNARY };
    cell.get_or_init(|| {
        let shape = TrainShape { batch: 1, seq: 4, top_k: 2, ns_steps: 2, recompute: false };
        fingerprints(&training_kernels(tiny(weights), shape, Optimizer::Muon))
    })
    .clone()
}

/// Kernels of scoring and decoding.
pub fn inference() -> Prints {
    use flow_shaders::kernels::{
        act_quant, attention, elementwise, embed, gated, gemm, kd_loss, kv_store, rmsnorm, rope, sample, ternary_gemm, topk,
    };
    static ALL: OnceLock<Prints> = OnceLock::new();
    const KERNELS: [&Kernel; 14] = [
        &act_quant::ACT_QUANT,
        &sample::ARGMAX,
        &attention::ATTENTION,
        &elementwise::COPY,
        &embed::EMBED,
        &gated::GATED,
        &gemm::GEMM_NT,
        &kd_loss::KD_LOSS,
        &kv_store::KV_STORE,
        &rmsnorm::RMSNORM,
        &rope::ROPE,
        &sample::SAMPLE,
        &ternary_gemm::TERNARY_GEMM,
        &topk::TOPK,
    ];
    ALL.get_or_init(|| fingerprints(&KERNELS)).clone()
}
