//! What the gate and the report read: measurements of other stages, every field optional.
#![allow(missing_docs, reason = "field names are those of the JSON artifacts, described in docs/formats.md")]

use std::path::Path;

use flow_engine::plugin::StageError;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use flow_lm::tokenizer::Fidelity;
use flow_lm::train::skipped;

/// `TrainLog` of a training stage.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct TrainLog {
    pub preset: Option<String>,
    pub config: Value,
    pub parameters: Option<f64>,
    pub optimizer: Option<String>,
    pub tau: Option<f64>,
    pub kd_scale: Option<String>,
    pub kd_weight: Option<f64>,
    pub exact_tail_share: Option<f64>,
    pub budget_tokens: Option<f64>,
    pub seen_tokens: Option<f64>,
    pub steps: Option<f64>,
    pub flip: Option<Flip>,
    pub skipped_steps: Option<f64>,
    pub nan_steps: Option<f64>,
    pub overflow_steps: Option<f64>,
    pub trace_tokens: Option<f64>,
    pub validation: ValidationLog,
    pub ternary_schedule: Option<Value>,
    pub teacher_in_loop: Option<TeacherInLoop>,
    pub init: Option<Value>,
    pub text_fidelity: Option<Fidelity>,
    pub curve: Vec<Point>,
}

/// A teacher that read every batch.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct TeacherInLoop {
    pub parameters: Option<f64>,
    pub token_weight: Option<String>,
}

/// What a training was evaluated on while it ran.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct ValidationLog {
    pub bits_per_byte: Option<f64>,
    pub curve: Vec<ValidationPoint>,
}

/// One evaluation.
#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(default)]
pub struct ValidationPoint {
    pub seen_tokens: Option<f64>,
    pub bits_per_byte: Option<f64>,
    pub soft: Option<SoftPoint>,
}

/// The same with weights that are no codes yet.
#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(default)]
pub struct SoftPoint {
    pub bits_per_byte: Option<f64>,
}

/// Where activations changed their bits.
#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Flip {
    pub step: Option<f64>,
    pub seen_tokens: Option<f64>,
}

/// One logged step.
#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Point {
    pub step: Option<f64>,
    pub seen_tokens: Option<f64>,
    pub loss: Option<f64>,
    pub kl: Option<f64>,
    pub ce: Option<f64>,
    pub format: Option<f64>,
    pub grad_norm: Option<f64>,
    pub grad_norm_clipped: Option<f64>,
    pub lr: Option<f64>,
    pub bits: Option<f64>,
}

impl TrainLog {
    /// Share of the token budget that had been seen at the flip.
    pub fn flip_share(&self) -> Option<f64> {
        let budget = self.budget_tokens.filter(|b| *b > 0.0)?;
        Some(self.flip?.seen_tokens? / budget)
    }
    /// Skipped steps and how many may be, where a share of the attempted ones may: the rule of the training loop.
    pub fn skipped_of(&self, share: f64) -> (Option<f64>, f64) {
        let attempted = self.steps.unwrap_or(0.0) - self.overflow_steps.unwrap_or(0.0);
        (self.skipped_steps.filter(|_| self.steps.is_some()), skipped::allowed(attempted as u64, share))
    }
    /// Largest gradient norm after clipping.
    pub fn largest_clipped_norm(&self) -> Option<f64> {
        self.curve.iter().filter_map(|p| p.grad_norm_clipped).reduce(f64::max)
    }
}

/// `Baseline` of a teacher.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Baseline {
    pub teacher: Value,
    pub template: Option<String>,
    pub prompts_digest: Option<String>,
    pub teacher_digest: Option<String>,
    pub decode_tokens_per_second: Option<f64>,
    pub prefill_tokens_per_second: Option<f64>,
    pub memory_bytes: Option<f64>,
    pub parameters: Option<f64>,
    pub results: Vec<BaselineResult>,
    pub json_validity: Option<f64>,
}

/// One answer of a teacher.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct BaselineResult {
    pub id: Value,
    pub prompt: String,
    pub text: String,
}

/// `EvalReport` of a student.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct EvalReport {
    pub timestamp: Value,
    pub device: Option<String>,
    pub dtype: Option<String>,
    pub tokenizer: Value,
    pub model_meta: Value,
    pub eval_config: Value,
    pub qei_metrics: QeiMetrics,
    pub bits_per_byte: BitsPerByte,
    pub compressors: Vec<Compressor>,
    pub kl: Option<f64>,
    pub top1_agreement: Option<f64>,
    pub perplexity: Perplexity,
    pub json_validity: Pair,
    /// Where both are held to the prompts' schemas.
    pub json_validity_constrained: Pair,
    /// How the held-out text came back from each side's tokens.
    pub text_fidelity: Fidelities,
    /// Why figures are missing.
    pub notes: Vec<String>,
    pub results: Vec<EvalResult>,
}

/// See [`EvalReport::text_fidelity`].
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Fidelities {
    pub student: Option<Fidelity>,
    pub teacher: Option<Fidelity>,
}

impl Fidelities {
    /// Each side's name with what does not come back, where that is not nothing.
    pub fn inexact(&self) -> impl Iterator<Item = (&'static str, &Fidelity)> {
        let sides = [("student", &self.student), ("teacher", &self.teacher)];
        sides.into_iter().filter_map(|(side, found)| Some((side, found.as_ref().filter(|f| !f.is_exact())?)))
    }
}

/// Perplexity of tokens of both sides; the teacher's where it has the student's tokenizer.
#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Perplexity {
    pub student: Option<f64>,
    pub teacher: Option<f64>,
    pub ratio: Option<f64>,
}

/// `TextReport` of a model.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct TextReport {
    pub bits_per_byte: Option<f64>,
    pub activation_bits: Option<u32>,
    pub weights: Option<String>,
}

/// Quality, memory and speed of both sides.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct QeiMetrics {
    pub student_tokens_per_second: Option<f64>,
    pub teacher_tokens_per_second: Option<f64>,
    pub student_memory_bytes: Option<f64>,
    pub teacher_memory_bytes: Option<f64>,
    pub student_quality: Option<f64>,
    pub teacher_quality: Option<f64>,
    pub quality_metric: Option<String>,
    pub qei: Option<f64>,
    pub qei_speed: Option<f64>,
}

impl QeiMetrics {
    /// Student's quality over the teacher's.
    pub fn quality_ratio(&self) -> Option<f64> {
        Some(self.student_quality? / self.teacher_quality.filter(|q| *q > 0.0)?)
    }
}

/// Held-out bits per byte.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct BitsPerByte {
    pub student: Option<f64>,
    pub student_a8: Option<f64>,
    pub teacher: Option<f64>,
    pub student_sliding: Option<f64>,
    pub teacher_sliding: Option<f64>,
}

/// A general compressor on the same text.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Compressor {
    pub name: String,
    pub bits_per_byte: Option<f64>,
    pub primed: bool,
}

/// A figure of both sides.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Pair {
    pub student: Option<f64>,
    pub teacher: Option<f64>,
}

/// Both answers to a prompt.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct EvalResult {
    pub id: Value,
    pub prompt: String,
    pub student: String,
    pub teacher: String,
}

/// `Verdict` of a gate.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Verdict {
    pub accepted: bool,
    pub warnings: Vec<String>,
    pub criteria: Vec<super::criteria::Criterion>,
}

/// `DryRun` of a shape.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct DryRun {
    pub preset: Option<String>,
    pub parameters: Option<f64>,
    pub planned_bytes: Option<f64>,
    pub measured_bytes: Option<f64>,
    pub ratio: Option<f64>,
    pub training: DryRunTraining,
    pub training_in_loop: DryRunTraining,
    pub ran: bool,
    pub why_not: Option<String>,
    pub runs: Vec<DryRunAt>,
    pub max_logit_difference: Option<f64>,
    pub mean_logit_difference: Option<f64>,
}

/// Planned bytes of a training step.
#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(default)]
pub struct DryRunTraining {
    pub float32: Option<f64>,
    pub all_three: Option<f64>,
}

/// One activation width of a dry-run.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct DryRunAt {
    pub bits: Option<f64>,
    pub tokens_per_second: Option<f64>,
    pub peak_bytes: Option<f64>,
    pub steady_bytes: Option<f64>,
}

/// Reads a JSON artifact, naming what does not fit.
pub fn read<T: DeserializeOwned>(path: &Path, ty: &str) -> Result<T, StageError> {
    let bytes = std::fs::read(path).map_err(|e| StageError::io("cannot read", path, &e))?;
    serde_json::from_slice(&bytes).map_err(|e| {
        StageError::new(format!("{}: not a {ty}: {e}", path.display())).help("run the stage that makes it again, or wire another one")
    })
}
