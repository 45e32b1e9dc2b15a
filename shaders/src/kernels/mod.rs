//! All kernels, by family. One folder each: `mod.rs` (formula, shapes, bindings), `.wgsl`, `cpu.rs` (the twin).

pub mod act_quant;
pub mod adamw;
pub mod attention;
pub mod bias;
pub mod clip;
pub mod elementwise;
pub mod embed;
pub mod gated;
pub mod gemm;
pub mod halves;
pub mod hyper;
pub mod kd_loss;
pub mod kv_store;
mod lanes;
pub mod muon;
pub mod norm_quant;
pub mod peak;
pub mod relation;
pub mod rmsnorm;
pub mod rope;
pub mod sample;
pub mod ternary;
pub mod ternary_blocks;
pub mod ternary_gemm;
pub mod topk;

use crate::kernel::Kernel;

/// Every kernel, sorted by name.
pub static ALL: &[&Kernel] = &[
    &ternary::ABS_MEAN,
    &act_quant::ACT_QUANT,
    &act_quant::blocks::ACT_QUANT_BLOCKS,
    &act_quant::blocks::ACT_ROUND_BLOCKS,
    &act_quant::values::ACT_VALUES,
    &adamw::ADAMW,
    &adamw::ADAMW_INT8,
    &sample::ARGMAX,
    &attention::ATTENTION,
    &attention::ATTENTION_DELTA,
    &attention::ATTENTION_GRAD_KV,
    &attention::ATTENTION_GRAD_Q,
    &attention::ATTENTION_HALF,
    &attention::ATTENTION_INT8,
    &bias::BIAS,
    &bias::BIAS_GRAD,
    &clip::CLIP_FINISH,
    &elementwise::COPY,
    &embed::EMBED,
    &embed::EMBED_GRAD,
    &embed::EMBED_HALF,
    &embed::EMBED_TERNARY,
    &gated::GATED,
    &gated::GATED_GRAD,
    &norm_quant::GATED_NORM_QUANT,
    &gemm::GEMM_NN,
    &gemm::GEMM_NN_GROUPS,
    &gemm::GEMM_NN_TERNARY,
    &gemm::GEMM_NT,
    &gemm::GEMM_NT_HALF,
    &gemm::GEMM_NT_TERNARY,
    &gemm::GEMM_TN,
    &gemm::GEMM_TN_Q8,
    &gemm::GEMV_NT,
    &gemm::GEMV_NT_HALF,
    &gemm::GEMV_NT_TERNARY,
    &kd_loss::full::KD_FULL,
    &kd_loss::KD_LOSS,
    &kv_store::KV_STORE,
    &kv_store::KV_STORE_HALF,
    &kv_store::KV_STORE_INT8,
    &kd_loss::LOSS_SUM,
    &muon::MUON_MOMENTUM,
    &muon::MUON_NORMALISE,
    &muon::MUON_POLY,
    &muon::MUON_SCALE,
    &norm_quant::NORM_QUANT,
    &halves::PACK_HALF,
    &peak::PEAK_DOT,
    &peak::PEAK_FMA,
    &relation::RELATION,
    &relation::RELATION_GRAD,
    &rmsnorm::RMSNORM,
    &rmsnorm::RMSNORM_GRAD_G,
    &rmsnorm::RMSNORM_GRAD_X,
    &rope::ROPE,
    &ternary::ROW_ABS_SUM,
    &sample::SAMPLE,
    &ternary::soften::SOFTEN,
    &ternary::soften::SOFTEN_GRAD,
    &clip::SUM_SQ,
    &ternary::TERNARISE,
    &ternary::groups::TERNARISE_GROUPS,
    &ternary_blocks::TERNARY_BLOCKS_GEMM,
    &ternary_blocks::TERNARY_BLOCKS_GEMV,
    &ternary_gemm::TERNARY_GEMM,
    &ternary_gemm::TERNARY_GEMV,
    &ternary::THRESHOLD_GRAD,
    &topk::TOPK,
    &halves::UNPACK_HALF,
    &elementwise::ZERO,
];
