//! `eval.student`: the student against its teacher on held-out text and prompts, and QEI from measured figures.

use flow_engine::plugin::{InputPort, OutputPort, ParamError, Stage, StageError, TaskContext};
use flow_lm::infer::KvCache;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::data::Lossy;
use crate::eval::student::{Asked, evaluate};
use crate::{is_default, measurements};

/// Parameters of `eval.student`.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct EvalParams {
    /// Bytes of the held-out text to compare distributions on, spread over it; the bits per byte take all of it.
    pub agreement_bytes: usize,
    /// Candidates of the teacher's distributions.
    pub top_k: usize,
    /// Activation bits: those at which training ended where null.
    pub bits: Option<u32>,
    /// How keys and values are held while a model decodes: `float16`, `int8` (a quarter of float32) or `float32`.
    #[serde(skip_serializing_if = "is_default")]
    pub kv_cache: KvCache,
    /// Where a tokenizer does not give the held-out text back: `refuse`, or `accept`, which marks the figures as not comparable.
    #[serde(skip_serializing_if = "is_default")]
    pub lossy: Lossy,
}

impl Default for EvalParams {
    fn default() -> Self {
        Self { agreement_bytes: 40_000, top_k: 20, bits: None, kv_cache: KvCache::default(), lossy: Lossy::default() }
    }
}

/// `eval.student`.
pub struct EvalStage;

impl Stage for EvalStage {
    type Params = EvalParams;
    const KIND: &'static str = "eval.student";
    const REVISION: u32 = 8;
    const SUMMARY: &'static str = "Measures a student against its teacher: bits per byte, KL, JSON validity, speed, memory, QEI.";
    const HEAVY: bool = true;

    fn inputs(&self) -> Vec<InputPort> {
        vec![
            InputPort::required("student", &["Model"], "The student."),
            InputPort::required("teacher", &["Teacher"], "Its teacher."),
            InputPort::required("baseline", &["Baseline"], "The teacher's greedy answers."),
            InputPort::required("text", &["Text"], "Held-out text."),
            InputPort::optional("train", &["Text"], "Training text, to prime the compressors with."),
        ]
    }
    fn outputs(&self) -> Vec<OutputPort> {
        vec![OutputPort::measured("report", "EvalReport", "All figures and samples (JSON).")]
    }
    fn fingerprints(&self, _: &Self::Params, _: &[&str]) -> Vec<(String, String)> {
        crate::fingerprints::inference()
    }
    fn check(&self, p: &EvalParams) -> Result<Vec<String>, ParamError> {
        if p.top_k == 0 {
            return Err(ParamError { path: "top_k".into(), message: "0 is not above 0".into(), help: None });
        }
        if !matches!(p.bits, None | Some(4 | 8)) {
            return Err(ParamError { path: "bits".into(), message: "is 4, 8 or null".into(), help: None });
        }
        Ok(Vec::new())
    }
    fn run(&self, p: EvalParams, ctx: &TaskContext) -> Result<(), StageError> {
        let EvalParams { agreement_bytes, top_k, bits, kv_cache, lossy } = p;
        measurements::write(ctx.output("report")?, &evaluate(Asked { agreement_bytes, top_k, bits, kv_cache, lossy }, ctx)?)
    }
}
