//! Which kernels a kind's results depend on: their fingerprints are part of its action key.

use std::sync::OnceLock;

use flow_shaders::fingerprint::fingerprints;
use flow_shaders::kernel::Kernel;
use flow_shaders::kernels::adamw::{ADAMW, ADAMW_INT8};
use flow_shaders::kernels::attention::Cached;

use flow_lm::config::{Preset, Weights};
use flow_lm::graph::Storage;
use flow_lm::graph::{Moments, NewtonSchulz, Optimizer};
use flow_lm::infer::program::kernels as inference_kernels;
use flow_lm::train::TrainShape;
use flow_lm::train::trainer::kernels as training_kernels;

type Prints = Vec<(String, String)>;

fn tiny(weights: Weights) -> flow_lm::config::ModelConfig {
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
        let mut all = training_kernels(tiny(weights), shape, Optimizer::Muon);
        // The choices of a recipe do not show in the tiny model, whose tensors are too small for them.
        all.extend([&ADAMW, &ADAMW_INT8]);
        all.sort_by_key(|k| k.name);
        all.dedup_by_key(|k| k.name);
        fingerprints(&all)
    })
    .clone()
}

/// Kernels of scoring and decoding, whatever the model's linears, tables and cache.
pub fn inference() -> Prints {
    static ALL: OnceLock<Prints> = OnceLock::new();
    ALL.get_or_init(|| {
        let models = [Weights::Float, Weights::Absmean].map(tiny);
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
