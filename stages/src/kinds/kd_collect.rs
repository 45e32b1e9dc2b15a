//! `kd.collect`: the teacher's Top-K + Other on given text, and on its own sampled continuations of prompts.

use flow_engine::plugin::{InputPort, OutputPort, ParamError, Stage, StageError, TaskContext};

use crate::teacher::collection::CollectParams;
use crate::teacher::http::preset::Provider;
use crate::teacher::{check_share, hosted, local, served, template};

/// `kd.collect`.
pub struct CollectStage;

impl Stage for CollectStage {
    type Params = CollectParams;
    const KIND: &'static str = "kd.collect";
    const REVISION: u32 = 7;
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
    fn fingerprints(&self, _: &Self::Params, _: &[&str]) -> Vec<(String, String)> {
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
        if let Some(asker) = hosted::open(ctx)? {
            // Without logprobs a served model is asked as any other.
            let tells = asker.spec().provider == Provider::Flow && asker.spec().ask_top_k > 0;
            return if tells { served::collect(&p, ctx, &asker) } else { hosted::collect::collect(&p, ctx, &asker) };
        }
        local::collect(&p, ctx)
    }
}
