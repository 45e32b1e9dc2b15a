//! How a model is trained: optimizer, schedule, flip, clipping.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::schedule::Schedule;
use super::skipped::MAX_SKIPPED_SHARE;
use super::softening::TernarySchedule;
use super::trainer::Hyper;
use crate::config::{Bits, Refused, is_default};
use crate::graph::{Moments, NewtonSchulz, Optimizer, Storage};

/// Parameters that `teacher.train` and `train.bitnet` share; the defaults are what the main job was found to learn best with
/// (`docs/recipe.md`).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Recipe {
    /// Optimizer of the block linears.
    pub optimizer: Optimizer,
    /// Peak learning rate of AdamW: of everything with `adamw`, of embedding, head and norms with `muon`. Null: 0.03 beside
    /// Muon, 0.002 without it.
    pub lr: Option<f32>,
    /// Learning rate at the end, as a share of the peak.
    pub lr_min: f32,
    /// Peak learning rate of Muon.
    pub muon_lr: f32,
    /// Momentum of Muon.
    pub muon_momentum: f32,
    /// Newton–Schulz steps of Muon.
    pub ns_steps: usize,
    /// Coefficients of each step are the best ones for singular values from this share of the largest one on ("The Polar
    /// Express", arXiv 2505.16932): two or three such steps do what five do; null: the one quintic (3.4445, −4.7750, 2.0315).
    pub ns_low: Option<f32>,
    /// Schedule of both learning rates.
    pub schedule: Schedule,
    /// Share of the budget, at its end, over which `linear` falls; before it the rates stay at their peak.
    #[serde(skip_serializing_if = "is_one")]
    pub cooldown: f32,
    /// Share of the budget over which the rates rise from 0.
    pub warmup: f32,
    /// AdamW β1.
    pub beta1: f32,
    /// AdamW β2.
    pub beta2: f32,
    /// AdamW eps.
    pub eps: f32,
    /// Decoupled weight decay (none on norms, scales and embeddings).
    pub weight_decay: f32,
    /// Largest global gradient norm.
    pub clip: f32,
    /// Sequences of a micro-batch.
    pub batch: usize,
    /// Micro-batches whose gradients make one step.
    pub accumulate: usize,
    /// AdamW's moments: `float32`, or `int8` in a quarter of the memory.
    #[serde(skip_serializing_if = "is_default")]
    pub moments: Moments,
    /// What a step keeps (activations, gradients): `float32`, or `float16` in half the memory, with a dynamic loss scale.
    #[serde(skip_serializing_if = "is_default")]
    pub storage: Storage,
    /// Compute a block's activations again in the backward pass: the same result in less memory, a fourth slower.
    #[schemars(extend("x-key" = false))]
    pub recompute: bool,
    /// Seed of initial weights and order.
    pub seed: u64,
    /// Steps between points of the loss curve.
    pub log_every: u64,
    /// Steps between checkpoints.
    pub checkpoint_every: u64,
    /// Share of the attempted steps that may be skipped for a gradient that is not finite: judged from step 20 on and at the
    /// end; a shorter run may skip one.
    #[schemars(extend("x-was" = "max_skipped"))]
    pub max_skipped_share: f64,
}

/// Whether a factor was left alone: it is then not part of a key.
fn is_one(x: &f32) -> bool {
    *x == 1.0
}

impl Default for Recipe {
    fn default() -> Self {
        Self {
            optimizer: Optimizer::Muon,
            lr: None,
            lr_min: 0.05,
            muon_lr: 0.02,
            muon_momentum: 0.9,
            ns_steps: 2,
            ns_low: Some(0.02),
            schedule: Schedule::Linear,
            cooldown: 1.0,
            warmup: 0.02,
            beta1: 0.9,
            beta2: 0.95,
            eps: 1e-8,
            weight_decay: 0.0,
            clip: 1.0,
            batch: 8,
            accumulate: 1,
            moments: Moments::default(),
            storage: Storage::default(),
            recompute: false,
            seed: 1234,
            log_every: 10,
            checkpoint_every: 200,
            max_skipped_share: MAX_SKIPPED_SHARE,
        }
    }
}

impl Recipe {
    /// Ranges that the schema cannot say.
    pub fn check(&self) -> Result<(), Refused> {
        let wrong = |field: &str, why: String| Err(Refused { field: field.into(), why });
        let positive = [("lr", self.peak()), ("muon_lr", self.muon_lr), ("clip", self.clip), ("eps", self.eps)];
        if let Some((name, v)) = positive.iter().find(|(_, v)| !(v.is_finite() && *v > 0.0)) {
            return wrong(name, format!("{v} is not above 0"));
        }
        let shares = [("lr_min", self.lr_min), ("warmup", self.warmup), ("cooldown", self.cooldown)];
        if let Some((name, v)) = shares.iter().find(|(_, v)| !(0.0..=1.0).contains(v)) {
            return wrong(name, format!("{v} is not a share between 0 and 1"));
        }
        let below_one = [("beta1", self.beta1), ("beta2", self.beta2), ("muon_momentum", self.muon_momentum)];
        if let Some((name, v)) = below_one.iter().find(|(_, v)| !(0.0..1.0).contains(v)) {
            return wrong(name, format!("{v} is not in [0, 1)"));
        }
        if self.weight_decay < 0.0 {
            return wrong("weight_decay", format!("{} is below 0", self.weight_decay));
        }
        let counts = [("batch", self.batch as u64), ("accumulate", self.accumulate as u64), ("log_every", self.log_every)];
        if let Some((name, _)) = counts.iter().find(|(_, v)| *v == 0) {
            return wrong(name, "0 is not above 0".into());
        }
        if self.checkpoint_every == 0 {
            return wrong("checkpoint_every", "0 is not above 0".into());
        }
        if self.ns_steps == 0 || self.ns_steps > 10 {
            return wrong("ns_steps", format!("{} is not between 1 and 10", self.ns_steps));
        }
        if let Some(low) = self.ns_low.filter(|l| !(*l > 0.0 && *l < 1.0)) {
            return wrong("ns_low", format!("{low} is not a share between 0 and 1"));
        }
        // A run that skips every step sees no token, and would never end.
        if !(0.0..1.0).contains(&self.max_skipped_share) {
            return wrong("max_skipped_share", format!("{} is not a share from 0 to below 1", self.max_skipped_share));
        }
        Ok(())
    }

    /// Peak learning rate of AdamW.
    pub fn peak(&self) -> f32 {
        self.lr.unwrap_or(if self.optimizer == Optimizer::Muon { 0.03 } else { 2e-3 })
    }

    /// How Muon makes updates orthogonal.
    pub fn newton_schulz(&self) -> NewtonSchulz {
        NewtonSchulz { steps: self.ns_steps, low: self.ns_low }
    }

    /// Share of the peak rate after `progress` of the budget, and whether weight decay still applies.
    pub fn rate(&self, progress: f64) -> (f64, bool) {
        self.schedule.rate(progress, f64::from(self.warmup), f64::from(self.lr_min), f64::from(self.cooldown))
    }

    /// Scalars of a step: AdamW's t, the share of the budget seen before it, what its weights and activations become.
    pub fn hyper(&self, step: u64, progress: f64, tau: f32, bits: Bits, ternary: &TernarySchedule) -> Hyper {
        let (rate, decays) = self.rate(progress);
        let rate = rate * ternary.rate(progress);
        let decay = if decays { self.weight_decay } else { 0.0 };
        Hyper {
            step,
            lr: (f64::from(self.peak()) * rate) as f32,
            muon_lr: (f64::from(self.muon_lr) * rate) as f32,
            betas: (self.beta1, self.beta2, self.eps),
            weight_decay: decay,
            muon: (self.muon_momentum, decay),
            clip: self.clip,
            tau,
            bits,
            softness: ternary.at(progress),
            relation: 0.0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn schedules_warm_up_and_end_low() {
        for schedule in [Schedule::Cosine, Schedule::Linear, Schedule::TwoStage] {
            let r = Recipe { schedule, lr_min: 0.05, ..Recipe::default() };
            assert!(r.rate(0.001).0 < 0.1);
            assert!(r.rate(0.021).0 > 0.99);
            assert!((r.rate(1.0).0 - 0.05).abs() < 1e-6, "{schedule:?}");
        }
    }
}
