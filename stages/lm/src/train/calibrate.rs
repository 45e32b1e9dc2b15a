//! Temperatures of their own for the tensors of a soft schedule: by how curved the loss is along each of them.
//!
//! Of a tensor with trace of the Hessian `t`, `n` weights and mean scale `s`, `c = t·s²/n` is the mean curvature along weights
//! measured in their scale. Its temperature is multiplied by `(c / geometric mean of all)^¼`, between ½ and 2: what the loss
//! feels most stays soft longest (the tensor-wise temperatures of Hestia, arXiv 2601.20745, by the same trace). Traces are
//! Hutchinson's: `E[vᵀHv]` over signs `v`, with `Hv` a difference of two gradients; one direction is drawn for all tensors, whose
//! cross terms vanish in the mean.

use super::batch::MicroBatch;
use super::trainer::{Hyper, Trainer};
use crate::error::Result;
use crate::rng::Rng;

/// Directions.
const PROBES: usize = 4;
/// Step along a direction, in root mean squares of a tensor.
const STEP: f32 = 0.01;

/// What the temperatures of [`Trainer::softened`] are multiplied by, of the parameters that it holds; they stay as they are.
/// `hyper` must be of masters, without pressure.
pub(super) fn temperatures(trainer: &mut Trainer, micros: &[MicroBatch], hyper: &Hyper, seed: u64) -> Result<Vec<f32>> {
    let start = trainer.tensors()?;
    let names: Vec<String> = trainer.softened().map(|t| t.name.clone()).collect();
    let sizes: Vec<f32> = names.iter().map(|n| root_mean_square(&start[n])).collect();
    let mut traces = vec![0f64; names.len()];
    for probe in 0..PROBES {
        let signs = |name: &str| {
            let mut rng = Rng::new(seed, &format!("curvature {probe} {name}"));
            move || if rng.below(2) == 0 { 1f32 } else { -1.0 }
        };
        let mut gradients_at = |side: f32| {
            trainer.load_with(|t| match names.iter().position(|name| *name == t.name) {
                None => start[&t.name].clone(),
                Some(i) => {
                    let mut sign = signs(&t.name);
                    start[&t.name].iter().map(|w| (side * STEP * sizes[i]).mul_add(sign(), *w)).collect()
                }
            })?;
            trainer.accumulate(micros, hyper, true)?;
            trainer.gradients()
        };
        let (up, down) = (gradients_at(1.0)?, gradients_at(-1.0)?);
        for ((name, size), trace) in names.iter().zip(&sizes).zip(&mut traces) {
            let mut sign = signs(name);
            let along: f64 = up[name].iter().zip(&down[name]).map(|(a, b)| f64::from(sign()) * f64::from(a - b)).sum();
            *trace += along / (2.0 * f64::from(STEP * size.max(f32::MIN_POSITIVE))) / PROBES as f64;
        }
    }
    trainer.load(&start)?;
    let curvature: Vec<f64> = names
        .iter()
        .zip(&traces)
        .map(|(name, trace)| {
            let w = &start[name];
            let scale = w.iter().map(|w| f64::from(w.abs())).sum::<f64>() / w.len() as f64;
            trace * scale * scale / w.len() as f64
        })
        .collect();
    Ok(factors(&curvature))
}

/// Factors of temperatures from mean curvatures; one that is not above 0 has no place in the mean, and the smallest factor.
fn factors(curvature: &[f64]) -> Vec<f32> {
    let logs: Vec<f64> = curvature.iter().filter(|c| **c > 0.0).map(|c| libm::log(*c)).collect();
    let mean = logs.iter().sum::<f64>() / logs.len().max(1) as f64;
    let of = |c: &f64| if *c > 0.0 { libm::exp(0.25 * (libm::log(*c) - mean)).clamp(0.5, 2.0) } else { 0.5 };
    if logs.is_empty() { vec![1.0; curvature.len()] } else { curvature.iter().map(|c| of(c) as f32).collect() }
}

fn root_mean_square(w: &[f32]) -> f32 {
    libm::sqrt(w.iter().map(|w| f64::from(*w) * f64::from(*w)).sum::<f64>() / w.len().max(1) as f64) as f32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_more_curved_stays_soft_longer() {
        assert_eq!(factors(&[1.0, 1.0]), [1.0, 1.0]);
        let f = factors(&[16.0, 1.0, 1.0 / 16.0]);
        assert!((f[0] - 2.0).abs() < 1e-6 && (f[1] - 1.0).abs() < 1e-6 && (f[2] - 0.5).abs() < 1e-6, "{f:?}");
        assert_eq!(factors(&[1e9, 1.0, -1.0])[1..], [0.5, 0.5]);
        assert_eq!(factors(&[-1.0, 0.0]), [1.0, 1.0]);
    }
}
