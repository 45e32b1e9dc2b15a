//! `TextReport`, `DryRun` and `Verdict`.

use flow_lm::config::Weights;
use flow_lm::tokenizer::Fidelity;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::TokenizerOf;
use crate::report::criteria::Criterion;

/// `TextReport` of a model.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct TextReport {
    /// Every byte scored once, in windows of the model's length.
    pub bits_per_byte: Option<f64>,
    /// In windows that overlap by half.
    pub bits_per_byte_sliding: Option<f64>,
    /// Of the text.
    pub bytes: u64,
    /// Null for full precision.
    pub activation_bits: Option<u32>,
    /// Of the block linears.
    pub weights: Option<Weights>,
    /// Of the model.
    pub parameters: Option<u64>,
    /// Its shape, as in `config.json`.
    pub config: Value,
    /// Its tokenizer.
    pub tokenizer: TokenizerOf,
    /// How the text came back.
    pub text_fidelity: Fidelity,
    /// Whether it did without a loss.
    pub comparable: bool,
}

/// `Verdict` of a gate.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Verdict {
    /// Whether all criteria hold.
    pub accepted: bool,
    /// Those that do not, in words.
    pub reasons: Vec<String>,
    /// What is worth a look and refuses nothing.
    pub warnings: Vec<String>,
    /// Figures against thresholds.
    pub criteria: Vec<Criterion>,
    /// Thresholds whose input was not wired.
    pub not_checked: Vec<String>,
    /// The baseline.
    pub baseline: ComparedWith,
}

/// The baseline of a verdict.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct ComparedWith {
    /// Of the teacher.
    pub teacher_digest: String,
    /// Of the prompts.
    pub prompts_digest: String,
    /// How these were put.
    pub template: String,
}

/// `DryRun` of a shape.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct DryRun {
    /// Word of the shape.
    pub preset: Option<String>,
    /// Of the shape.
    pub parameters: Option<f64>,
    /// Bytes that a forward pass is planned to take.
    pub planned_bytes: Option<f64>,
    /// Bytes that it took.
    pub measured_bytes: Option<f64>,
    /// Measured over planned.
    pub ratio: Option<f64>,
    /// Planned bytes of a training step.
    pub training: DryRunTraining,
    /// The same with a teacher in the loop.
    pub training_in_loop: DryRunTraining,
    /// Whether it ran.
    pub ran: bool,
    /// Why it did not.
    pub why_not: Option<String>,
    /// By activation bits.
    pub runs: Vec<DryRunAt>,
    /// Between these.
    pub max_logit_difference: Option<f64>,
    /// Between these.
    pub mean_logit_difference: Option<f64>,
}

/// Planned bytes of a training step.
#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(default)]
pub struct DryRunTraining {
    /// As it is.
    pub float32: Option<f64>,
    /// With all three settings that save memory.
    pub all_three: Option<f64>,
}

/// One activation width of a dry-run.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct DryRunAt {
    /// Activation bits.
    pub bits: Option<f64>,
    /// Of the pass.
    pub tokens_per_second: Option<f64>,
    /// At most.
    pub peak_bytes: Option<f64>,
    /// At its end.
    pub steady_bytes: Option<f64>,
}
