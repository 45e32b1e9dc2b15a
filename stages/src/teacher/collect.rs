//! `kd.collect`: the teacher's Top-K + Other on given text, and on its own sampled continuations of prompts.

use flow_engine::plugin::{InputPort, OutputPort, ParamError, Stage, StageError, TaskContext};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::method::Method;
use super::{MAX_REFUSED, POC_TEMPLATE, check_share, template};
use crate::traces::Sampling;
use flow_lm::infer::KvCache;

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
    #[serde(skip_serializing_if = "crate::is_default")]
    pub kv_cache: KvCache,
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

/// `kd.collect`.
pub struct CollectStage;

impl Stage for CollectStage {
    type Params = CollectParams;
    const KIND: &'static str = "kd.collect";
    const REVISION: u32 = 6;
    const SUMMARY: &'static str = "Collects a teacher's Top-K + Other on text and on its own continuations.";
    const HEAVY: bool = true;
    const NEEDS_SECRETS: bool = true;

    fn inputs(&self) -> Vec<InputPort> {
        vec![
            InputPort::required("teacher", &["Teacher", "Model"], "Who answers; a student may teach too, at 8-bit activations."),
            InputPort::optional("text", &["Text"], "Text to score."),
            InputPort::optional("prompts", &["Prompts"], "Prompts to continue."),
            InputPort::optional("student", &["Model"], "Who continues the prompts in the teacher's place; the teacher scores."),
        ]
    }
    fn outputs(&self) -> Vec<OutputPort> {
        vec![OutputPort::pure("traces", "Traces", "Parquet: sequences and rows.")]
    }
    fn fingerprints(&self) -> Vec<(String, String)> {
        crate::fingerprints::inference()
    }
    fn check(&self, p: &CollectParams) -> Result<Vec<String>, ParamError> {
        let wrong = |path: &str, message: String| Err(ParamError { path: path.into(), message, help: None });
        if p.top_k == 0 {
            return wrong("top_k", "0 is not above 0".into());
        }
        if p.draws == 0 || p.draws > 1024 {
            return wrong("draws", format!("{} is not between 1 and 1024", p.draws));
        }
        if p.taus.len() > 3 || p.taus.iter().any(|t| !(t.is_finite() && *t > 0.0)) {
            return wrong("taus", "at most three temperatures above 0".into());
        }
        if !(p.temperature.is_finite() && p.temperature > 0.0) {
            return wrong("temperature", format!("{} is not above 0", p.temperature));
        }
        if !(p.top_p > 0.0 && p.top_p <= 1.0) {
            return wrong("top_p", format!("{} is not in (0, 1]", p.top_p));
        }
        template::check(&p.template)?;
        if p.samples == 0 || p.max_tokens == 0 || p.batch == 0 {
            return wrong("samples", "samples, max_tokens and batch must be above 0".into());
        }
        check_share("max_failed", p.max_failed)?;
        check_share("max_refused", p.max_refused)?;
        Ok(Vec::new())
    }
    fn wiring(&self, _: &CollectParams, wired: &[&str]) -> Result<(), StageError> {
        if !wired.contains(&"text") && !wired.contains(&"prompts") {
            return Err(StageError::new("neither `text` nor `prompts` is wired: there is nothing to ask the teacher")
                .help("wire `text` to `data.text`, or `prompts` to `data.prompts`"));
        }
        if wired.contains(&"student") && !wired.contains(&"prompts") {
            return Err(StageError::new("a student is wired and no prompts are: it has nothing to continue").help("wire `prompts`"));
        }
        Ok(())
    }
    fn run(&self, p: CollectParams, ctx: &TaskContext) -> Result<(), StageError> {
        if let Some(asker) = super::hosted::open(ctx)? {
            return super::hosted::collect::collect(&p, ctx, &asker);
        }
        super::local::collect(&p, ctx)
    }
}
