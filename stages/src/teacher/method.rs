//! What a row keeps of a teacher's distribution, and how that becomes the target of the one loss.
//!
//! - `top_k`: the K most likely tokens and the mass of the rest. Biased: a student learns nothing of the rest's shape.
//! - `sampled`: `draws` tokens drawn from the whole distribution p with replacement; a token that was drawn c times has
//!   the weight c / n. E[c / n] = p, so the gradient of the loss, −Σ c/n · ∇ log q, is in expectation that of the full
//!   distribution (Sparse Logit Sampling, arXiv 2503.16870, with the proposal p itself, whose importance weights are 1).
//!   Only at τ = 1.
//! - `full`: every token, for small vocabularies.
//!
//! All three are rows of candidates and Other, and the same KL: where the candidates hold all mass, Other is its floor
//! of 1e-6 ([`crate::traces::settle`]), which moves the gradient by no more than that.

use std::sync::Arc;

use flow_engine::plugin::StageError;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::traces::{CandidateBytes, OTHER_FLOOR, RawRow, TokenTable};
use flow_lm::rng::Rng;
use flow_lm::tokenizer::TokenId;

/// What a row keeps.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Method {
    /// The most likely tokens and the mass of the rest.
    #[default]
    TopK,
    /// Tokens drawn from the whole distribution: unbiased, at temperature 1.
    Sampled,
    /// Every token of a small vocabulary.
    Full,
}

/// Largest vocabulary whose distributions are kept whole.
const FULL_VOCAB: usize = 16_384;
/// Bytes of a candidate before compression: its id and its logprob.
const CANDIDATE_BYTES: u64 = 8;
/// Log-sum-exp of a tail that holds nothing.
const NO_TAIL: f32 = -60.0;

impl Method {
    /// Name in the metadata of traces.
    pub fn name(self) -> &'static str {
        match self {
            Method::TopK => "top_k",
            Method::Sampled => "sampled",
            Method::Full => "full",
        }
    }
}

/// Refuses whole distributions over a vocabulary that is not small, with the disk that up to `rows` rows of them take.
pub fn check_full(vocab: usize, rows: u64) -> Result<(), StageError> {
    if vocab <= FULL_VOCAB {
        return Ok(());
    }
    let gib = (rows * vocab as u64 * CANDIDATE_BYTES) as f64 / f64::from(1 << 30);
    Err(StageError::new(format!(
        "`method: full` keeps {vocab} candidates a row: up to {rows} rows of them take {gib:.1} GiB on the disk before compression, and \
         as much again once they are projected; it is for vocabularies up to {FULL_VOCAB}"
    ))
    .help("`method: sampled` is unbiased too, and stores a dozen; `top_k` takes any number"))
}

/// The probabilities of a row of logits, in f64: the sums of a large vocabulary lose digits in f32.
pub fn softmax(logits: &[f32]) -> Vec<f64> {
    let max = f64::from(logits.iter().copied().fold(f32::NEG_INFINITY, f32::max));
    let mut p: Vec<f64> = logits.iter().map(|l| libm::exp(f64::from(*l) - max)).collect();
    let sum: f64 = p.iter().sum();
    p.iter_mut().for_each(|x| *x /= sum);
    p
}

/// Ids and log-weights of `draws` draws, the heaviest first.
pub fn sampled(p: &[f64], draws: usize, rng: &mut Rng) -> Vec<(TokenId, f32)> {
    // Sorted draws need one walk over the distribution.
    let mut at: Vec<f64> = (0..draws).map(|_| (rng.bits() >> 11) as f64 / 9_007_199_254_740_992.0).collect();
    at.sort_by(f64::total_cmp);
    let mut counts: Vec<(TokenId, u32)> = Vec::with_capacity(draws);
    let (mut id, mut sum) = (0, p[0]);
    for u in at {
        while sum <= u && id + 1 < p.len() {
            id += 1;
            sum += p[id];
        }
        match counts.last_mut() {
            Some((last, n)) if last.index() == id => *n += 1,
            _ => counts.push((TokenId(id as u32), 1)),
        }
    }
    counts.sort_by_key(|(id, n)| (std::cmp::Reverse(*n), *id));
    counts.into_iter().map(|(id, n)| (id, (f64::from(n) / draws as f64).ln() as f32)).collect()
}

/// Ids and logprobs of every token, the most likely first.
pub fn full(p: &[f64]) -> Vec<(TokenId, f32)> {
    let mut all: Vec<(TokenId, f32)> = p.iter().enumerate().map(|(i, p)| (TokenId(i as u32), p.max(1e-30).ln() as f32)).collect();
    all.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
    all
}

/// A row whose candidates hold all mass.
pub fn whole_row(candidates: &[(TokenId, f32)], drawn: TokenId, taus: usize, tokens: &Arc<TokenTable>) -> RawRow {
    RawRow {
        sample_id: drawn.signed(),
        sample_bytes: tokens.get(drawn.signed()).unwrap_or_default().to_vec(),
        topk_ids: candidates.iter().map(|c| c.0.signed()).collect(),
        topk_bytes: CandidateBytes::Table(tokens.clone()),
        topk_logprobs: candidates.iter().map(|c| c.1.min(0.0)).collect(),
        other_logprob: OTHER_FLOOR.ln() as f32,
        other_lse: (taus > 0).then(|| vec![NO_TAIL; taus]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn draws_are_unbiased() {
        let p = softmax(&[2.0, 0.0, 1.0, -3.0, 0.5]);
        let mut rng = Rng::new(5, "draws");
        let mut mean = [0.0; 5];
        let rows = 20_000;
        for _ in 0..rows {
            let row = sampled(&p, 12, &mut rng);
            assert!((row.iter().map(|c| f64::from(c.1).exp()).sum::<f64>() - 1.0).abs() < 1e-6);
            assert!(row.windows(2).all(|w| w[0].1 >= w[1].1));
            row.iter().for_each(|(id, l)| mean[id.index()] += f64::from(*l).exp() / f64::from(rows));
        }
        for (m, p) in mean.iter().zip(&p) {
            // Four standard deviations of the mean of 240,000 draws.
            assert!((m - p).abs() < 4.0 * (p * (1.0 - p) / 240_000.0).sqrt() + 1e-9, "{m} {p}");
        }
    }

    #[test]
    fn whole_rows_of_a_large_vocabulary_are_refused_with_their_disk() {
        assert!(check_full(16_384, u64::from(u32::MAX)).is_ok());
        let error = check_full(32_000, 410_000).expect_err("too large");
        assert!(error.message.contains("410000 rows") && error.message.contains("97.8 GiB"), "{error}");
        assert!(error.help.expect("help").contains("sampled"));
    }

    #[test]
    fn a_full_row_is_the_distribution() {
        let p = softmax(&[0.1, 3.0, -1.0]);
        let row = full(&p);
        assert_eq!(row.iter().map(|c| c.0).collect::<Vec<_>>(), [1, 0, 2].map(TokenId));
        assert!(row.iter().all(|(id, l)| (f64::from(*l).exp() - p[id.index()]).abs() < 1e-7));
    }
}
