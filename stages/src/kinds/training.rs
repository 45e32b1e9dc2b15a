//! What the two kinds that train share: their `eval`, and what their logs say.

use flow_engine::plugin::{ParamError, StageError, TaskContext};
use flow_lm::config::{ModelConfig, Refused};
use flow_lm::tokenizer::{Fidelity, Tokenizer};
use flow_lm::train::{Evaluate, Evaluation, Recipe, Trained, Validation};
use serde_json::json;

use crate::data::{Lossy, faithful, read_text};
use crate::is_default;
use crate::measurements::{TrainLog, ValidationLog};

/// A refused setting of the parameter `of`.
pub(super) fn wrong(of: &str, e: Refused) -> ParamError {
    ParamError { path: format!("{of}.{}", e.field), message: e.why, help: None }
}

/// Evaluation needs a text.
pub(super) fn validation_is_wired(when: &Evaluate, wired: &[&str]) -> Result<(), StageError> {
    if *when != Evaluate::default() && !wired.contains(&"validation") {
        return Err(StageError::new("`eval` is set and no text is wired to `validation`")
            .help("wire `validation: corpus.validation`, and give `data.text` a share for it"));
    }
    Ok(())
}

/// The text in the input `validation`, for a program of (batch, seq, top_k). Nothing where none is wired.
pub(super) fn validation(
    ctx: &TaskContext,
    (when, lossy): (Evaluate, Lossy),
    tokenizer: &Tokenizer,
    shape: (usize, usize, usize),
) -> Result<Option<Validation>, StageError> {
    let Some(path) = ctx.input_opt("validation") else { return Ok(None) };
    let text = read_text(path).map_err(|e| e.help("give `data.text` a share for it: `validation: 0.05`"))?;
    let (tokens, _) = faithful::encode((tokenizer, WHOSE), &text, lossy, ctx)?;
    Ok(Some(Validation::of((&tokens, text.len()), when, tokenizer.bos(), shape)))
}

/// Whose tokenizer it is, in messages.
pub(super) const WHOSE: &str = "the model's";

/// What the logs of all trainings say: of the shape that a word names, by this recipe for so many targets, over a text that came
/// back like this.
pub(super) fn log(
    (preset, config): (&str, &ModelConfig),
    (recipe, budget_tokens): (&Recipe, u64),
    found: Fidelity,
    trained: &Trained,
) -> TrainLog {
    let p = &trained.progress;
    TrainLog {
        preset: Some(preset.to_owned()),
        config: json!(config),
        parameters: Some(config.parameters() as u64),
        optimizer: Some(recipe.optimizer),
        recipe: json!(recipe),
        budget_tokens: Some(budget_tokens),
        seen_tokens: Some(p.seen_tokens),
        steps: Some(p.step),
        skipped_steps: Some(p.skipped),
        nan_steps: Some(p.nan_steps),
        moments: Some(recipe.moments).filter(|m| !is_default(m)),
        storage: Some(recipe.storage).filter(|s| !is_default(s)),
        overflow_steps: (!is_default(&recipe.storage)).then_some(p.overflows),
        text_fidelity: Some(found).filter(|f| !f.is_exact()),
        validation: evaluated(&p.evaluations, trained.evaluation),
        curve: p.curve.clone(),
        health: p.health.clone(),
        ..TrainLog::default()
    }
}

/// What was evaluated; nothing of trainings without a validation text.
fn evaluated(all: &[Evaluation], chosen: Option<Evaluation>) -> Option<ValidationLog> {
    let of = chosen.or(all.last().copied())?;
    Some(ValidationLog { bits_per_byte: Some(of.bits_per_byte), step: Some(of.step), bits: Some(of.bits), curve: all.to_vec() })
}
