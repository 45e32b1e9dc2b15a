//! Scaling of RoPE's frequencies.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// How the frequencies of RoPE differ from θ^(−2i/d).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "type", rename_all = "lowercase", deny_unknown_fields)]
pub enum RopeScaling {
    /// All are divided by a factor.
    Linear {
        /// The factor.
        factor: f64,
    },
    /// Llama 3.1: long wavelengths are divided by a factor, those between two bounds by less.
    Llama3 {
        /// Of wavelengths above `original_seq / low_freq_factor`.
        factor: f64,
        /// See `factor`.
        low_freq_factor: f64,
        /// Wavelengths below `original_seq / high_freq_factor` stay.
        high_freq_factor: f64,
        /// Sequence that the model was first trained for.
        original_seq: f64,
    },
    /// What each is divided by `[head_dim / 2]`, as GGUF files say it.
    Factors {
        /// The divisors.
        divisors: Vec<f32>,
    },
}

impl RopeScaling {
    /// What frequency `f` (radians a position), the `i`-th, is divided by.
    pub fn divisor(&self, i: usize, f: f64) -> f64 {
        match self {
            RopeScaling::Linear { factor } => *factor,
            RopeScaling::Factors { divisors } => f64::from(divisors[i]),
            RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_seq } => {
                let wavelength = 2.0 * std::f64::consts::PI / f;
                let (low, high) = (original_seq / low_freq_factor, original_seq / high_freq_factor);
                if wavelength > low {
                    *factor
                } else if wavelength < high {
                    1.0
                } else {
                    let smooth = (original_seq / wavelength - low_freq_factor) / (high_freq_factor - low_freq_factor);
                    1.0 / ((1.0 - smooth) / factor + smooth)
                }
            }
        }
    }

    /// What the frequencies of a head of `head_dim` are divided by, as GGUF files hold it.
    pub fn divisors(&self, theta: f64, head_dim: usize) -> Vec<f32> {
        let frequency = |i: usize| libm::pow(theta, -(i as f64) / (head_dim / 2) as f64);
        (0..head_dim / 2).map(|i| self.divisor(i, frequency(i)) as f32).collect()
    }

    /// What is wrong with it, if anything.
    pub(super) fn problem(&self, head_dim: usize) -> Option<String> {
        let sound = |x: f64| x.is_finite() && x > 0.0;
        match self {
            RopeScaling::Linear { factor } if sound(*factor) => None,
            RopeScaling::Linear { factor } => Some(format!("a factor of {factor}")),
            RopeScaling::Factors { divisors } if divisors.len() != head_dim / 2 => {
                Some(format!("{} factors for a head of {head_dim}", divisors.len()))
            }
            RopeScaling::Factors { divisors } => divisors.iter().find(|d| !sound(f64::from(**d))).map(|d| format!("a factor of {d}")),
            RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_seq } => {
                let all = [*factor, *low_freq_factor, *high_freq_factor, *original_seq];
                let fits = all.iter().all(|x| sound(*x)) && high_freq_factor > low_freq_factor;
                (!fits).then(|| format!("factor, low and high frequency factor and original length of {all:?}"))
            }
        }
    }
}
