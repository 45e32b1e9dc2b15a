//! What the two kinds that train share: their `eval`, and what their logs say.

use flow_engine::plugin::{ParamError, StageError, TaskContext};
use flow_lm::config::Refused;
use flow_lm::tokenizer::{Fidelity, Tokenizer};
use flow_lm::train::state::Progress;
use flow_lm::train::{Evaluate, Evaluation, Recipe, Validation};

use crate::data::{Lossy, faithful, read_text};
use crate::is_default;

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

/// Says in a log how the text came back from its tokens, where it did not byte for byte.
pub(super) fn said_of_text(log: &mut serde_json::Value, found: &Fidelity) {
    if !found.is_exact() {
        log["text_fidelity"] = serde_json::json!(found);
    }
}

/// Says in a log what a recipe with smaller storage did; logs of others stay as they are.
pub(super) fn said_of_storage(log: &mut serde_json::Value, r: &Recipe, p: &Progress) {
    if !is_default(&r.moments) {
        log["moments"] = serde_json::json!(r.moments);
    }
    if !is_default(&r.storage) {
        log["storage"] = serde_json::json!(r.storage);
        log["overflow_steps"] = p.overflows.into();
    }
}

/// Says in a log what was evaluated; logs of trainings without a validation text stay as they are.
pub(super) fn said_of_validation(log: &mut serde_json::Value, evaluations: &[Evaluation], chosen: Option<Evaluation>) {
    if let Some(last) = evaluations.last() {
        let of = chosen.unwrap_or(*last);
        log["validation"] = serde_json::json!({"bits_per_byte": of.bits_per_byte, "step": of.step, "bits": of.bits, "curve": evaluations});
    }
}
