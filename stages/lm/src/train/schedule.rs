//! The learning rate over a training.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Shape of the learning rate over the token budget, after warm-up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Schedule {
    /// Half a cosine down to `lr_min`.
    Cosine,
    /// A straight line down to `lr_min`.
    Linear,
    /// Constant, then from half of the budget a fifth of it falling to `lr_min`, without weight decay (BitNet's tips).
    TwoStage,
}

impl Schedule {
    /// Share of the peak rate after `progress` of the budget, and whether weight decay still applies. The rates rise over the
    /// share `warmup` of the budget and end at the share `low` of their peak; `linear` falls over the last `cooldown` of it.
    pub fn rate(self, progress: f64, warmup: f64, low: f64, cooldown: f64) -> (f64, bool) {
        if progress < warmup {
            return ((progress / warmup).max(0.01), true);
        }
        let t = ((progress - warmup) / (1.0 - warmup).max(1e-9)).clamp(0.0, 1.0);
        match self {
            Schedule::Cosine => (low + (1.0 - low) * 0.5 * (1.0 + libm::cos(std::f64::consts::PI * t)), true),
            Schedule::Linear => {
                let left = ((1.0 - t) / cooldown.max(1e-9)).min(1.0);
                (low + (1.0 - low) * left, true)
            }
            Schedule::TwoStage if progress < 0.5 => (1.0, true),
            Schedule::TwoStage => (low + (0.2 - low).max(0.0) * (1.0 - (progress - 0.5) * 2.0).max(0.0), false),
        }
    }
}
