//! Which kernels a kind's results depend on: their fingerprints are part of its action key.

use std::sync::OnceLock;

use flow_shaders::fingerprint::fingerprints;
use flow_shaders::kernel::Kernel;
use flow_shaders::kernels::act_quant::values::ACT_VALUES;
use flow_shaders::kernels::adamw::{ADAMW, ADAMW_INT8};
use flow_shaders::kernels::attention::Cached;
use flow_shaders::kernels::gemm::{GEMM_NN, GEMM_NT, GEMM_NT_HALF, GEMM_TN};
use flow_shaders::kernels::kd_loss::full::KD_FULL;
use flow_shaders::kernels::relation::{RELATION, RELATION_GRAD};
use flow_shaders::kernels::ternary::soften::{SOFTEN, SOFTEN_GRAD};

use flow_lm::config::{Activations, Group, ModelConfig, Preset, Weights};
use flow_lm::graph::Storage;
use flow_lm::graph::{Moments, NewtonSchulz, Optimizer};
use flow_lm::infer::program::kernels as inference_kernels;
use flow_lm::train::program::kernels as training_kernels;
use flow_lm::train::{Beside, TrainShape};

type Prints = Vec<(String, String)>;

fn tiny(weights: Weights) -> ModelConfig {
    let mut config = Preset::Poc.config();
    (config.vocab, config.dim, config.layers, config.mlp, config.heads, config.kv_heads, config.head_dim) = (16, 16, 1, 16, 1, 1, 16);
    config.weights = weights;
    config
}

/// Kernels of a training step with these linears, whatever the recipe, and those that the options of a shape ask for beside
/// them: a shape without any has the key that it had before there were options.
pub fn training(weights: Weights, shape: &ModelConfig) -> Prints {
    static FLOAT: OnceLock<Prints> = OnceLock::new();
    static TERNARY: OnceLock<Prints> = OnceLock::new();
    let cell = if weights == Weights::Float { &FLOAT } else { &TERNARY };
    let mut all = cell.get_or_init(|| fingerprints(&of_training(tiny(weights)))).clone();
    let small = with_options_of(shape);
    if small != tiny(shape.weights) {
        all.extend(fingerprints(&of_training(small)));
        all.sort();
        all.dedup();
    }
    all
}

/// Kernels of weights that are softened.
pub fn softening() -> Prints {
    fingerprints(&[&SOFTEN, &SOFTEN_GRAD, &ACT_VALUES, &GEMM_NT, &GEMM_NN, &GEMM_TN])
}

/// Kernels of a teacher in the loop.
pub fn in_loop() -> Prints {
    fingerprints(&[&KD_FULL, &RELATION, &RELATION_GRAD, &GEMM_NT_HALF])
}

fn of_training(config: ModelConfig) -> Vec<&'static Kernel> {
    let shape = TrainShape {
        batch: 2,
        seq: 4,
        top_k: 2,
        ns: NewtonSchulz::quintic(2),
        recompute: false,
        moments: Moments::Int8,
        storage: Storage::Float16,
        evaluates: false,
    };
    let mut all = training_kernels(config, shape, Optimizer::Muon, &Beside::default());
    // The choices of a recipe do not show in the tiny model, whose tensors are too small for them.
    all.extend([&ADAMW, &ADAMW_INT8]);
    all.sort_by_key(|k| k.name);
    all.dedup_by_key(|k| k.name);
    all
}

/// A small model with the options of a shape.
fn with_options_of(shape: &ModelConfig) -> ModelConfig {
    let mut small = ModelConfig {
        group: shape.group,
        scale: shape.scale,
        ternary_embedding: shape.ternary_embedding,
        ternary_head: shape.ternary_head,
        activations: shape.activations,
        qkv_bias: shape.qkv_bias,
        head_norm: shape.head_norm,
        sub_norm: shape.sub_norm,
        ..tiny(shape.weights)
    };
    if let Group::Of(n) = shape.group {
        // At least two groups a row: one is held like a row's scale.
        (small.dim, small.mlp, small.heads, small.kv_heads, small.head_dim) = (2 * n, 2 * n, n / 8, n / 8, 16);
    }
    if small.ternary_head {
        small.tied = false;
    }
    small
}

/// Kernels of scoring and decoding, whatever the model's linears, tables and cache.
pub fn inference() -> Prints {
    static ALL: OnceLock<Prints> = OnceLock::new();
    ALL.get_or_init(|| {
        let float = tiny(Weights::Float);
        let families = [
            ModelConfig { qkv_bias: true, head_norm: true, ..float.clone() },
            ModelConfig { sub_norm: false, ..tiny(Weights::Absmean) },
            with_options_of(&ModelConfig {
                weights: Weights::Absmean,
                group: Group::Of(64),
                activations: Activations::Float,
                ternary_embedding: true,
                ..float.clone()
            }),
            with_options_of(&ModelConfig { weights: Weights::Absmean, group: Group::Of(64), ..float.clone() }),
        ];
        let models: Vec<ModelConfig> = [float, tiny(Weights::Absmean)].into_iter().chain(families).collect();
        let caches = [Cached::Float, Cached::Half, Cached::Int8];
        let mut all: Vec<&Kernel> = Vec::new();
        for (config, half, cache) in models.iter().flat_map(|c| [false, true].map(|half| caches.map(|k| (c, half, k)))).flatten() {
            all.extend(inference_kernels(config.clone(), half, cache));
        }
        all.sort_by_key(|k| k.name);
        all.dedup_by_key(|k| k.name);
        fingerprints(&all)
    })
    .clone()
}
