//! What a collection is asked for, of whatever teacher.

use flow_lm::infer::KvCache;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::method::Method;
use super::{MAX_REFUSED, POC_TEMPLATE};
use crate::data::Lossy;
use crate::is_default;
use crate::traces::Sampling;

/// How exactly logprobs are kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Precision {
    /// As the teacher gives them: float32.
    #[default]
    #[serde(rename = "full")]
    Full,
    /// Rounded to ten bits of mantissa (an error of at most 0.05 %): fewer bytes on the disk.
    #[serde(rename = "10bit")]
    Bits10,
}

/// Parameters of `kd.collect`.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct CollectParams {
    /// What a row keeps of the distribution.
    pub method: Method,
    /// Candidates kept per row (`top_k`).
    pub top_k: usize,
    /// Draws per row (`sampled`).
    pub draws: usize,
    /// Precision of the logprobs on the disk.
    pub logprob_precision: Precision,
    /// Temperatures at which the tail's log-sum-exp is stored, at most three; at 1 it is Other's logprob.
    pub taus: Vec<f32>,
    /// Tokens of the text to score, in the teacher's tokens, in windows spread over the whole text by `seed`; all where null.
    pub text_tokens: Option<u64>,
    /// How a prompt is put to the teacher: a text with `{prompt}`, or `chat` for the teacher's own chat template.
    pub template: String,
    /// Prompts to continue, spread over the file by `seed`; all where null.
    pub max_prompts: Option<usize>,
    /// Continuations of each prompt.
    pub samples: usize,
    /// Temperature of the continuations.
    pub temperature: f32,
    /// Nucleus of the continuations.
    pub top_p: f32,
    /// Tokens of a continuation, at most; the teacher's window also limits it.
    pub max_tokens: usize,
    /// Seed of the continuations, and of what is taken of text and prompts.
    pub seed: u64,
    /// Texts that end a continuation; of hosted teachers only.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub stop: Vec<String>,
    /// Share of prompts that may fail before the stage does; of hosted teachers only.
    #[schemars(extend("x-key" = false))]
    pub max_failed: f64,
    /// Share of answers that may be refused (filtered, empty after reasoning, not readable) before the stage fails; of hosted teachers only.
    #[schemars(extend("x-key" = false))]
    pub max_refused: f64,
    /// How keys and values are held while a model that runs here decodes: `float16`, `int8` (a quarter of float32) or `float32`.
    #[serde(skip_serializing_if = "is_default")]
    pub kv_cache: KvCache,
    /// Where the teacher's tokenizer does not give a text back: `refuse`, or `accept`. Hosted teachers say the bytes themselves.
    #[serde(skip_serializing_if = "is_default")]
    pub lossy: Lossy,
    /// Sequences decoded together; changes nothing but speed.
    #[schemars(extend("x-key" = false))]
    pub batch: usize,
}

impl Default for CollectParams {
    fn default() -> Self {
        Self {
            method: Method::TopK,
            top_k: 20,
            draws: 12,
            logprob_precision: Precision::Full,
            taus: vec![1.3, 2.0],
            text_tokens: None,
            template: POC_TEMPLATE.into(),
            max_prompts: None,
            samples: 1,
            temperature: 0.8,
            top_p: 0.95,
            max_tokens: 512,
            seed: 1234,
            stop: Vec::new(),
            max_failed: 0.02,
            max_refused: MAX_REFUSED,
            kv_cache: KvCache::default(),
            lossy: Lossy::default(),
            batch: 64,
        }
    }
}

impl CollectParams {
    /// How continuations are drawn, for the metadata of traces.
    pub fn sampling(&self) -> Sampling {
        Sampling {
            temperature: f64::from(self.temperature),
            top_p: f64::from(self.top_p),
            max_tokens: self.max_tokens,
            samples: self.samples,
            seed: self.seed,
        }
    }
}
