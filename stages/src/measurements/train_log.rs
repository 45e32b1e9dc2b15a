//! `TrainLog` of a training stage.

use flow_lm::graph::{Moments, Optimizer, Storage};
use flow_lm::tokenizer::Fidelity;
use flow_lm::train::state::{Flip, Health, Point};
use flow_lm::train::{Evaluation, TernarySchedule, TokenWeight, skipped};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::figure;
use crate::distil::KdScale;

/// How a training went. The order of its fields is that of the file, which is a pure output.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct TrainLog {
    /// Word of its shape.
    pub preset: Option<String>,
    /// Its shape, as in `config.json`.
    pub config: Value,
    /// Of the model.
    pub parameters: Option<u64>,
    /// Of the block linears.
    pub optimizer: Option<Optimizer>,
    /// Temperature of a student's KL.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tau: Option<f32>,
    /// What the KL is multiplied by.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kd_scale: Option<KdScale>,
    /// Weight of the KL.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kd_weight: Option<f32>,
    /// Weight of the cross-entropy.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ce_weight: Option<f32>,
    /// Weight of the cross-entropy on structural tokens.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub format_weight: Option<f32>,
    /// Rows with KL.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kd_rows: Option<u64>,
    /// Of these, with their exact tail at τ.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub exact_tail_share: Option<f64>,
    /// Targets to see.
    pub budget_tokens: Option<u64>,
    /// Targets of the text of a teacher.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub text_tokens: Option<u64>,
    /// Targets of the steps that updated the parameters.
    pub seen_tokens: Option<u64>,
    /// Attempted steps.
    pub steps: Option<u64>,
    /// Where a student's activations changed their bits; null where they did not.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub flip: Option<Option<Flip>>,
    /// Share of the budget at which they were to; null: never.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub flip_fraction: Option<Option<f64>>,
    /// Attempted steps without an update, for a gradient that is not finite.
    pub skipped_steps: Option<u64>,
    /// Attempted steps with a loss that is not finite.
    pub nan_steps: Option<u64>,
    /// Targets in all windows of a student.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub trace_tokens: Option<u64>,
    /// Tokens in none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub left_out_tokens: Option<u64>,
    /// As it was asked for.
    pub recipe: Value,
    /// Means between points.
    pub curve: Vec<Point>,
    /// Records beside checkpoints.
    pub health: Vec<Health>,
    /// How moments are held, where they are not float32.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub moments: Option<Moments>,
    /// How activations are held, where they are not float32.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub storage: Option<Storage>,
    /// Attempted steps that passed what float16 holds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub overflow_steps: Option<u64>,
    /// How the text came back from its tokens, where it did not byte for byte.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub text_fidelity: Option<Fidelity>,
    /// How its weights became ternary, where not by codes from the first step on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ternary_schedule: Option<TernarySchedule>,
    /// A teacher that read every batch.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub teacher_in_loop: Option<TeacherInLoop>,
    /// The model that it began as.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub init: Option<Value>,
    /// Evaluations while it ran.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub validation: Option<ValidationLog>,
}

/// A teacher that read every batch.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct TeacherInLoop {
    /// Of the teacher.
    pub parameters: Option<u64>,
    /// What of it was learned.
    pub targets: String,
    /// What weighed the KL of a token.
    pub token_weight: TokenWeight,
}

/// What a training was evaluated on while it ran.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct ValidationLog {
    /// Of the parameters that were given.
    pub bits_per_byte: Option<f64>,
    /// When these were.
    pub step: Option<u64>,
    /// Activation bits of that evaluation; 0 for full precision.
    pub bits: Option<u32>,
    /// All evaluations.
    pub curve: Vec<Evaluation>,
}

impl TrainLog {
    /// Where activations changed their bits.
    pub fn flip(&self) -> Option<Flip> {
        self.flip.flatten()
    }
    /// Share of the token budget that had been seen at the flip.
    pub fn flip_share(&self) -> Option<f64> {
        let budget = self.budget_tokens.filter(|b| *b > 0)?;
        Some(self.flip()?.seen_tokens as f64 / budget as f64)
    }
    /// Skipped steps and how many may be, where a share of the attempted ones may: the rule of the training loop.
    pub fn skipped_of(&self, share: f64) -> (Option<f64>, f64) {
        let attempted = self.steps.unwrap_or(0).saturating_sub(self.overflow_steps.unwrap_or(0));
        (figure(self.skipped_steps.filter(|_| self.steps.is_some())), skipped::allowed(attempted, share))
    }
    /// Largest gradient norm after clipping.
    pub fn largest_clipped_norm(&self) -> Option<f64> {
        self.curve.iter().map(|p| p.grad_norm_clipped).filter(|n| !n.is_nan()).reduce(f64::max)
    }
}
