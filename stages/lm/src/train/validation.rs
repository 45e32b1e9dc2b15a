//! Evaluation during training: bits per byte of a text that is not trained on, and the best checkpoint by it.

use std::path::{Path, PathBuf};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::batch::{LossWeights, MicroBatch};
use super::softening::Softness;
use super::trainer::Trainer;
use super::windows::Windows;
use crate::config::{Bits, Refused, is_default};
use crate::error::Result;
use crate::tokenizer::TokenId;

/// When a training is evaluated on the text in its input `validation`: at the end, and where these say so.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Evaluate {
    /// Steps between evaluations; null: at the end only.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub every: Option<u64>,
    /// Give the parameters of the best evaluation at the final activation bits, instead of the last ones.
    #[serde(skip_serializing_if = "is_default")]
    pub best: bool,
}

impl Evaluate {
    /// Ranges that the schema cannot say.
    pub fn check(&self) -> Result<(), Refused> {
        let wrong = |field: &str, why: &str| Err(Refused { field: field.into(), why: why.into() });
        match (self.every, self.best) {
            (Some(0), _) => wrong("every", "0 is not above 0"),
            (None, true) => wrong("best", "there is nothing to choose from without `every`"),
            _ => Ok(()),
        }
    }
}

/// One evaluation.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Evaluation {
    /// Optimizer step after which it was made.
    pub step: u64,
    /// Targets seen.
    pub seen_tokens: u64,
    /// Activation bits; 0 for full precision.
    pub bits: u32,
    /// Bits per byte of the validation text: every byte scored once, in windows of the training's length. Of hard codes
    /// where weights are ternary, whatever the training computes with meanwhile.
    pub bits_per_byte: f64,
    /// The same with the weights that the training computes with, while they are no codes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub soft: Option<Softened>,
}

/// A figure of weights that are on their way to codes.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Softened {
    /// Bits per byte.
    pub bits_per_byte: f64,
    /// 0: masters, 1: what they are assigned to.
    pub pressure: f64,
    /// Of the assignment; 0: hard.
    pub temperature: f64,
}

/// A text that a training is evaluated on.
pub struct Validation {
    micros: Vec<MicroBatch>,
    bytes: usize,
    /// When.
    pub when: Evaluate,
}

impl Validation {
    /// A text of `bytes` in windows of `seq` tokens, `batch` of them at a time, for a program of `top_k` buckets.
    pub fn of((tokens, bytes): (&[TokenId], usize), when: Evaluate, bos: TokenId, (batch, seq, top_k): (usize, usize, usize)) -> Self {
        let windows = Windows::of_text(tokens, seq, bos);
        let weights = LossWeights { kd: 0.0, ce: 1.0, format: 0.0 };
        let micro = |first: usize| {
            let mut m = MicroBatch::default();
            // What fills the last batch is a window without targets.
            (first..first + batch).for_each(|i| windows.append(i.min(windows.len() - 1), &mut m));
            weights.weigh(std::slice::from_mut(&mut m));
            let real = (windows.len() - first).min(batch) * seq;
            m.labels[real..].fill(-1);
            m.topk_ids = vec![-1; batch * seq * top_k];
            m.targets = vec![0.0; batch * seq * top_k];
            m
        };
        let micros = (0..windows.len()).step_by(batch).map(micro).collect();
        Self { micros, bytes, when }
    }

    /// Bits per byte with the trainer's parameters, at these activation bits, with weights that are so ternary.
    pub fn bits_per_byte(&self, trainer: &mut Trainer, bits: Bits, softness: Softness) -> Result<f64> {
        let losses = trainer.evaluate_at(&self.micros, 1.0, bits, softness)?;
        // Batch by batch, so that the sum does not depend on how many are scored in one call.
        let of = |batch: &[(f32, f32)]| batch.iter().map(|(_, ce)| f64::from(*ce)).sum::<f64>();
        let nats = losses.chunks((losses.len() / self.micros.len().max(1)).max(1)).map(of).sum::<f64>();
        // Six decimals: short enough that JSON gives the same number back when a task resumes.
        Ok((nats / std::f64::consts::LN_2 / self.bytes as f64 * 1e6).round() / 1e6)
    }
}

/// File of the best parameters, beside the checkpoint: its name says of which evaluation they are.
pub fn best_file(dir: &Path, of: &Evaluation) -> PathBuf {
    dir.join(format!("best-{}-{}.safetensors", of.step, of.bits))
}
