//! What can be said of a student whose teacher is behind an API: no distributions of its own on given text, only the
//! steps that it drew.

use flow_engine::plugin::StageError;
use serde_json::{Value, json};

use super::quality::Agreement;
use crate::measurements::Baseline;
use crate::teacher::http::spec::Spec;
use flow_lm::infer::Session;
use flow_lm::infer::{Window, score_batch, windows_together};
use flow_lm::tokenizer::{TokenId, Tokenizer};

/// Share of the student's tokens of the teacher's greedy answers that the student finds most likely there.
pub fn agreement(lm: &mut Session, tokenizer: &Tokenizer, baseline: &Baseline) -> Result<Agreement, StageError> {
    let (seq, batch) = (lm.config().seq, windows_together(lm.config()));
    let windows: Vec<(Vec<TokenId>, usize)> = baseline
        .results
        .iter()
        .map(|a| {
            let mut tokens = tokenizer.encode(&a.rendered(&baseline.template));
            let before = tokens.len();
            tokens.extend(tokenizer.encode(&a.text));
            tokens.truncate(seq);
            (tokens, before)
        })
        .collect();
    let mut total = Agreement::default();
    for group in windows.chunks(batch) {
        let views: Vec<Window<'_>> = group.iter().map(|w| Window { first: tokenizer.bos(), targets: &w.0 }).collect();
        let b = score_batch(&views, batch, seq);
        lm.nll(&b.ids, &b.mask, &b.labels)?;
        let best = lm.best()?;
        for (i, (tokens, before)) in group.iter().enumerate() {
            let answer = i * seq + (*before).min(tokens.len())..i * seq + tokens.len();
            for (label, best) in b.labels[answer.clone()].iter().zip(&best[answer]) {
                total.top1 += f64::from(u8::from(*label == best.signed()));
                total.tokens += 1;
            }
        }
    }
    total.top1 /= total.tokens.max(1) as f64;
    Ok(total)
}

/// Why figures are missing.
pub fn notes(spec: &Spec) -> Vec<String> {
    let mut notes = vec![
        format!("the teacher is hosted ({}): KL and its bits per byte are not available, nor the QEI made of them", spec.named()),
        "agreement is with the teacher's greedy answers of the baseline, over the student's tokens of them".into(),
        "the teacher's speed is that of the baseline, over the network".into(),
    ];
    notes.push(match spec.memory_bytes {
        Some(_) => "the teacher's memory is given by a person (`memory_bytes`), not measured".into(),
        None => "the teacher's memory is not known: give `memory_bytes` to teacher.http".into(),
    });
    notes
}

/// The hosted side in `model_meta`.
pub fn meta(spec: &Spec) -> Value {
    json!({"provider": spec.preset().name, "model": spec.model, "base_url": spec.base_url})
}
