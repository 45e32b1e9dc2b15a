//! `EvalReport` of a student.

use flow_lm::infer::KvCache;
use flow_lm::tokenizer::Fidelity;
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// A student against its teacher.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct EvalReport {
    /// Seconds since 1970.
    pub timestamp: u64,
    /// Where it was measured.
    pub device: Option<String>,
    /// The student's weights and activations in words.
    pub dtype: Option<String>,
    /// The student's.
    pub tokenizer: TokenizerOf,
    /// Shapes and sizes.
    pub model_meta: ModelMeta,
    /// What was asked for.
    pub eval_config: EvalConfig,
    /// What was compared with what.
    pub compared: Sides,
    /// Quality, memory, speed.
    pub qei_metrics: QeiMetrics,
    /// Of the held-out text.
    pub bits_per_byte: BitsPerByte,
    /// What general compressors make of it.
    pub compressors: Vec<Compressor>,
    /// KL from a teacher that runs here, nats a token.
    pub kl: Option<f64>,
    /// Share of tokens where both find the same one most likely.
    pub top1_agreement: Option<f64>,
    /// Tokens whose distributions were compared.
    pub agreement_tokens: u64,
    /// Of a token.
    pub perplexity: Perplexity,
    /// Share of the JSON prompts that are answered by their schemas.
    pub json_validity: Pair,
    /// Where both are held to the prompts' schemas.
    pub json_validity_constrained: Pair,
    /// How the held-out text came back from each side's tokens.
    pub text_fidelity: Fidelities,
    /// Whether it did without a loss on both.
    pub comparable: bool,
    /// Why figures are missing.
    pub notes: Vec<String>,
    /// Answers side by side.
    pub results: Vec<EvalResult>,
}

/// A tokenizer.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct TokenizerOf {
    /// Of its file.
    pub digest: String,
    /// Tokens.
    pub vocab: usize,
}

/// Shapes and sizes of both sides.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct ModelMeta {
    /// The student's, as in `config.json`.
    pub config: Value,
    /// The student's.
    pub parameters: Option<u64>,
    /// Word of the student's shape.
    pub preset: Value,
    /// The teacher's; of a hosted one what is asked where.
    pub teacher_config: Value,
    /// The teacher's.
    pub teacher_parameters: Option<u64>,
}

/// What was asked for.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct EvalConfig {
    /// Activation bits of the student.
    pub bits: u32,
    /// Candidates of the teacher's distributions.
    pub top_k: usize,
    /// Bytes whose distributions were compared.
    pub agreement_bytes: usize,
    /// How keys and values are held where a side decodes.
    pub kv_cache: KvCache,
    /// Bytes of the held-out text.
    pub holdout_bytes: usize,
}

/// Both sides as they were compared.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Sides {
    /// The student.
    pub student: Side,
    /// A teacher that runs here.
    pub teacher: Option<Side>,
}

/// One side of a comparison, from its configuration and its files.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Side {
    /// Weights in words: what is ternary and by which scales, or the types of its files.
    pub weights: String,
    /// Of ternary linears; null where they take floats.
    pub activation_bits: Option<u32>,
    /// Tokens of a window.
    pub window: usize,
    /// Tokens between the beginnings of two windows.
    pub stride: usize,
    /// Its tokenizer.
    pub tokenizer: TokenizerOf,
    /// Bytes of its weights as they would be run: as its files hold them, or packed, whichever is less.
    pub weights_bytes: u64,
    /// Planned bytes where it decodes one sequence of a window: these weights, keys and values, activations.
    pub memory_planned_bytes: u64,
    /// Planned bytes of the session that was measured, which reads windows too and holds weights as `flow` does.
    pub session_planned_bytes: u64,
    /// Bytes that this process took for it, where the system or the adapter counts them.
    pub session_measured_bytes: Option<u64>,
}

/// Perplexity of tokens of both sides; the teacher's where it has the student's tokenizer.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Perplexity {
    /// The student's.
    pub student: Option<f64>,
    /// The teacher's.
    pub teacher: Option<f64>,
    /// Student over teacher.
    pub ratio: Option<f64>,
}

/// Quality, memory and speed of both sides.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct QeiMetrics {
    /// Decoding.
    pub student_tokens_per_second: Option<f64>,
    /// Decoding.
    pub teacher_tokens_per_second: Option<f64>,
    /// Reading.
    pub student_prefill_tokens_per_second: Option<f64>,
    /// Reading.
    pub teacher_prefill_tokens_per_second: Option<f64>,
    /// How the student's speeds were measured.
    pub student_speed_measured: Option<String>,
    /// How the teacher's were.
    pub teacher_speed_measured: Option<String>,
    /// See [`Side::memory_planned_bytes`].
    #[serde(alias = "student_memory_bytes")]
    pub student_memory_planned_bytes: Option<u64>,
    /// See [`Side::memory_planned_bytes`].
    #[serde(alias = "teacher_memory_bytes")]
    pub teacher_memory_planned_bytes: Option<u64>,
    /// Bytes of a hosted teacher, as a person says.
    pub teacher_memory_given_bytes: Option<u64>,
    /// The student's.
    pub student_quality: Option<f64>,
    /// The teacher's.
    pub teacher_quality: Option<f64>,
    /// What quality is.
    pub quality_metric: Option<String>,
    /// (Qs / Qt) / (Ms / Mt).
    pub qei: Option<f64>,
    /// QEI · student's over teacher's tokens per second.
    pub qei_speed: Option<f64>,
}

impl QeiMetrics {
    /// Student's quality over the teacher's.
    pub fn quality_ratio(&self) -> Option<f64> {
        Some(self.student_quality? / self.teacher_quality.filter(|q| *q > 0.0)?)
    }

    /// The teacher's bytes: planned, or of a hosted one given.
    pub fn teacher_memory(&self) -> Option<u64> {
        self.teacher_memory_planned_bytes.or(self.teacher_memory_given_bytes)
    }

    /// Fills in both indices from what is there; what one needs and nobody measured leaves it out.
    #[must_use]
    pub fn indexed(mut self) -> Self {
        let ratio = |a: Option<f64>, b: Option<f64>| Some(a.filter(|a| *a > 0.0)? / b.filter(|b| *b > 0.0)?);
        let memory = ratio(super::figure(self.student_memory_planned_bytes), super::figure(self.teacher_memory()));
        self.qei = ratio(self.quality_ratio(), memory);
        let speed = ratio(self.student_tokens_per_second, self.teacher_tokens_per_second);
        self.qei_speed = self.qei.zip(speed).map(|(qei, speed)| qei * speed);
        self
    }
}

/// Held-out bits per byte, in windows of each side's own length that do not overlap.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct BitsPerByte {
    /// At its final activation bits.
    pub student: Option<f64>,
    /// At 8 bits.
    pub student_a8: Option<f64>,
    /// The teacher's.
    pub teacher: Option<f64>,
    /// In windows that overlap by half.
    pub student_sliding: Option<f64>,
    /// The same of the teacher.
    pub teacher_sliding: Option<f64>,
    /// With the same bytes before every byte on both sides.
    pub equal_context: Option<EqualContext>,
}

/// Bits per byte in windows of the same bytes on both sides: each as long as both have room for in tokens.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct EqualContext {
    /// The student's.
    pub student: f64,
    /// The teacher's.
    pub teacher: f64,
    /// Windows.
    pub windows: usize,
    /// Bytes of a window, in the mean.
    pub mean_bytes: f64,
}

/// A general compressor on the same text.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Compressor {
    /// Program and level.
    pub name: String,
    /// Compressed bits per byte of the held-out text.
    pub bits_per_byte: Option<f64>,
    /// Whether it had read the training text before.
    pub primed: bool,
}

/// A figure of both sides.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Pair {
    /// The student's.
    pub student: Option<f64>,
    /// The teacher's.
    pub teacher: Option<f64>,
}

/// See [`EvalReport::text_fidelity`].
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Fidelities {
    /// The student's.
    pub student: Option<Fidelity>,
    /// The teacher's.
    pub teacher: Option<Fidelity>,
}

impl Fidelities {
    /// Each side's name with what does not come back, where that is not nothing.
    pub fn inexact(&self) -> impl Iterator<Item = (&'static str, &Fidelity)> {
        let sides = [("student", &self.student), ("teacher", &self.teacher)];
        sides.into_iter().filter_map(|(side, found)| Some((side, found.as_ref().filter(|f| !f.is_exact())?)))
    }

    /// Whether nothing is lost on either side.
    pub fn are_lossless(&self) -> bool {
        [&self.student, &self.teacher].into_iter().flatten().all(Fidelity::is_lossless)
    }
}

/// Both answers to a prompt.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct EvalResult {
    /// Of the prompt.
    pub id: i64,
    /// Of the prompt.
    pub kind: String,
    /// What was asked.
    pub prompt: String,
    /// The student's answer.
    pub student: String,
    /// The teacher's.
    pub teacher: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn indices_by_hand() {
        let measured = QeiMetrics {
            // (1/2) / (1/1.6) = 0.8 of the quality, in a fifth of the memory, three times as fast.
            student_quality: Some(1.0 / 2.0),
            teacher_quality: Some(1.0 / 1.6),
            student_memory_planned_bytes: Some(20_000_000),
            teacher_memory_planned_bytes: Some(100_000_000),
            student_tokens_per_second: Some(150.0),
            teacher_tokens_per_second: Some(50.0),
            ..QeiMetrics::default()
        };
        let (qei, speed) = (measured.clone().indexed().qei.expect("all is there"), measured.clone().indexed().qei_speed.expect("too"));
        assert!((qei - 4.0).abs() < 1e-12 && (speed - 12.0).abs() < 1e-12, "{qei} {speed}");
        let given = QeiMetrics { teacher_memory_planned_bytes: None, teacher_memory_given_bytes: Some(40_000_000), ..measured.clone() };
        assert!((given.indexed().qei.expect("a person said it") - 1.6).abs() < 1e-12);
        let unknown = QeiMetrics { teacher_memory_planned_bytes: None, ..measured.clone() }.indexed();
        assert_eq!((unknown.qei, unknown.qei_speed), (None, None));
        let still = QeiMetrics { teacher_tokens_per_second: Some(0.0), ..measured }.indexed();
        assert!(still.qei.is_some() && still.qei_speed.is_none());
    }
}
