//! Drawn values.

use crate::config::{ModelConfig, Role, TensorSpec};
use crate::rng::Rng;

/// Initial weights: linears normal with variance 1/in, a hundredth of it where they write to the residual stream (so that
/// the embedding is heard from the first step), embeddings and head normal with deviation 0.02, norms 1.
pub fn initial_values(config: &ModelConfig, t: &TensorSpec, seed: u64) -> Vec<f32> {
    let mut rng = Rng::new(seed, &format!("init {}", t.name));
    match t.role {
        Role::Norm => vec![1.0; t.len()],
        Role::Scale => vec![1.0 / (config.dim as f32).sqrt(); t.len()],
        Role::Bias => vec![0.0; t.len()],
        Role::Embedding | Role::Head => (0..t.len()).map(|_| 0.02 * rng.normal()).collect(),
        Role::Linear => {
            let writes_stream = t.name.ends_with(".o") || t.name.ends_with(".down");
            let deviation = if writes_stream { 0.1 } else { 1.0 } / (t.shape[1] as f32).sqrt();
            (0..t.len()).map(|_| deviation * rng.normal()).collect()
        }
    }
}
