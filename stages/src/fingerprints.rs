//! Which kernels a kind's results depend on: their fingerprints are part of its action key.

use std::sync::OnceLock;

use flow_shaders::fingerprint::fingerprints;
use flow_shaders::kernel::Kernel;

use crate::model::config::{Preset, Weights};
use crate::model::inference::kernels as inference_kernels;
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

/// Kernels of scoring and decoding, whatever the model's linears and tables.
pub fn inference() -> Prints {
    static ALL: OnceLock<Prints> = OnceLock::new();
    ALL.get_or_init(|| {
        let models = [Weights::Float, Weights::Absmean].into_iter().flat_map(|w| [false, true].map(|half| (tiny(w), half)));
        let mut all: Vec<&Kernel> = models.flat_map(|(config, half)| inference_kernels(config, half)).collect();
        all.sort_by_key(|k| k.name);
        all.dedup_by_key(|k| k.name);
        fingerprints(&all)
    })
    .clone()
}
