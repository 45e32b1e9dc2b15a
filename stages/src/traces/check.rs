//! What makes a row's distribution valid, and the one rule for its mass.

use super::meta::TraceMeta;
use super::rows::{CANDIDATES_OF_A_ROW, ProjectedRow};

/// Mass of Other after renormalisation.
pub const OTHER_FLOOR: f64 = 1e-6;

/// Other below this is rounding, not a tail: the row is renormalised.
pub const OTHER_LEAST: f64 = 1e-9;

/// What the candidates' mass may exceed 1 by: roundings of whoever wrote them.
const MASS_SLACK: f64 = 1e-3;

/// What candidates and Other of a projected row may miss 1 by. The loss takes their softmax: roundings do no harm.
const SUM_SLACK: f64 = 0.02;

/// Why a row is quarantined.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Invalid {
    /// No candidate at all.
    Empty,
    /// Lists of unequal length.
    Length,
    /// NaN or infinite logprob.
    NotFinite,
    /// A logprob above 0.
    Positive,
    /// Candidates not by falling logprob.
    Unsorted,
    /// The same id twice.
    Duplicate,
    /// Σp above 1 + 1e-3.
    Mass,
    /// An id that the vocabulary does not have.
    Vocabulary,
}

impl Invalid {
    /// Name in the statistics.
    pub fn name(self) -> &'static str {
        match self {
            Invalid::Empty => "no_candidates",
            Invalid::Length => "unequal_lengths",
            Invalid::NotFinite => "not_finite",
            Invalid::Positive => "positive_logprob",
            Invalid::Unsorted => "unsorted",
            Invalid::Duplicate => "duplicate_id",
            Invalid::Mass => "mass_above_one",
            Invalid::Vocabulary => "id_outside_vocabulary",
        }
    }
}

/// A distribution whose candidates and Other sum to 1.
#[derive(Clone, Debug, PartialEq)]
pub struct Settled {
    /// Probabilities of the candidates.
    pub probs: Vec<f64>,
    /// Mass outside them.
    pub other: f64,
    /// Whether the candidates were scaled so that Other has its floor.
    pub renormalised: bool,
}

/// Checks a row and settles its mass: Σp ≤ 1 + 1e-3 with no tail left is scaled so that Other is 1e-6; above,
/// it is invalid.
/// `ids` below 0 are unknown and never equal.
pub fn settle(ids: &[i32], logprobs: &[f32]) -> Result<Settled, Invalid> {
    if logprobs.is_empty() {
        return Err(Invalid::Empty);
    }
    if ids.len() != logprobs.len() {
        return Err(Invalid::Length);
    }
    if logprobs.iter().any(|l| !l.is_finite()) {
        return Err(Invalid::NotFinite);
    }
    // A certain token may come as +1e-7 from a provider's own rounding; the mass rule below takes care of it.
    if logprobs.iter().any(|l| *l > 1e-3) {
        return Err(Invalid::Positive);
    }
    if logprobs.windows(2).any(|w| w[1] > w[0] + 1e-6) {
        return Err(Invalid::Unsorted);
    }
    if twice(ids).is_some() {
        return Err(Invalid::Duplicate);
    }
    let mut probs: Vec<f64> = logprobs.iter().map(|l| f64::from(*l).exp()).collect();
    let sum: f64 = probs.iter().sum();
    if sum > 1.0 + MASS_SLACK {
        return Err(Invalid::Mass);
    }
    if 1.0 - sum >= OTHER_LEAST {
        return Ok(Settled { probs, other: 1.0 - sum, renormalised: false });
    }
    let scale = (1.0 - OTHER_FLOOR) / sum;
    probs.iter_mut().for_each(|p| *p *= scale);
    Ok(Settled { probs, other: OTHER_FLOOR, renormalised: true })
}

/// An id that stands twice among those that are known.
fn twice(ids: &[i32]) -> Option<i32> {
    if ids.len() <= CANDIDATES_OF_A_ROW {
        // Ids with other last bits than all before them are new without a look at each.
        let mut seen = [0u64; 4];
        for (i, id) in ids.iter().enumerate().filter(|(_, id)| **id >= 0) {
            let (word, bit) = ((id >> 6 & 3) as usize, 1 << (id & 63));
            if seen[word] & bit != 0 && ids[..i].contains(id) {
                return Some(*id);
            }
            seen[word] |= bit;
        }
        return None;
    }
    let mut sorted = ids.to_vec();
    sorted.sort_unstable();
    sorted.windows(2).find(|w| w[0] >= 0 && w[0] == w[1]).map(|w| w[0])
}

/// Whether an id is one of the vocabulary's; of an unknown vocabulary, every id from 0 on.
pub(super) fn is_token(id: i32, meta: &TraceMeta) -> bool {
    id >= 0 && (meta.vocab == 0 || (id as usize) < meta.vocab)
}

pub(super) fn no_token(id: i32, meta: &TraceMeta) -> String {
    format!("{id} is no token of a vocabulary of {}", meta.vocab)
}

/// Checks a stored tail: one finite number for each temperature of the metadata.
pub(super) fn tail(lse: Option<&[f32]>, meta: &TraceMeta) -> Result<(), String> {
    match lse {
        Some(lse) if lse.len() != meta.taus.len() => {
            Err(format!("field `other_lse`: {} values, meta.json names {} temperatures (`taus`)", lse.len(), meta.taus.len()))
        }
        Some(lse) if lse.iter().any(|l| !l.is_finite()) => Err("field `other_lse`: a value is not finite".into()),
        _ => Ok(()),
    }
}

/// Checks everything that training relies on in a projected row: what passes is looked at no more.
pub(super) fn projected(row: &ProjectedRow, meta: &TraceMeta) -> Result<(), String> {
    let (ids, logprobs) = (&row.topk_ids, &row.topk_logprobs);
    if !is_token(row.sample_id, meta) {
        return Err(format!("field `teacher_sample_id`: {}", no_token(row.sample_id, meta)));
    }
    if ids.len() != logprobs.len() {
        return Err(format!("{} `topk_ids` and {} `topk_logprobs`", ids.len(), logprobs.len()));
    }
    if ids.len() > meta.top_k {
        return Err(format!("field `topk_ids`: {} candidates, meta.json says at most {} (`top_k`)", ids.len(), meta.top_k));
    }
    if let Some(id) = ids.iter().find(|id| !is_token(**id, meta)) {
        return Err(format!("field `topk_ids`: {}", no_token(*id, meta)));
    }
    if let Some(id) = twice(ids) {
        return Err(format!("field `topk_ids`: {id} stands twice"));
    }
    if !(row.kd_weight.is_finite() && row.kd_weight >= 0.0) {
        return Err(format!("field `kd_weight`: {} is no weight", row.kd_weight));
    }
    let is_logprob = |l: &f32| l.is_finite() && *l <= MASS_SLACK as f32;
    if let Some(l) = logprobs.iter().find(|l| !is_logprob(l)) {
        return Err(format!("field `topk_logprobs`: {l} is no logprob"));
    }
    if !is_logprob(&row.other_logprob) {
        return Err(format!("field `other_logprob`: {} is no logprob", row.other_logprob));
    }
    if row.kd_weight > 0.0 {
        let (mass, other) = (logprobs.iter().map(|l| f64::from(l.exp())).sum::<f64>(), f64::from(row.other_logprob.exp()));
        if mass > 1.0 + MASS_SLACK || (mass + other - 1.0).abs() > SUM_SLACK {
            return Err(format!("the candidates hold a mass of {mass:.4} and Other {other:.4}, together they must be 1"));
        }
    }
    tail(row.other_lse.as_deref(), meta)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_fault_has_its_name() {
        for (ids, logprobs, wanted) in [
            (&[][..], &[][..], Invalid::Empty),
            (&[1, 2], &[-0.1], Invalid::Length),
            (&[1], &[f32::NAN], Invalid::NotFinite),
            (&[1], &[f32::NEG_INFINITY], Invalid::NotFinite),
            (&[1], &[0.1], Invalid::Positive),
            (&[1, 2], &[-2.0, -1.0], Invalid::Unsorted),
            (&[1, 1], &[-1.0, -2.0], Invalid::Duplicate),
            (&[1, 2], &[-0.1, -1.0], Invalid::Mass),
        ] {
            assert_eq!(settle(ids, logprobs), Err(wanted));
        }
        assert!(settle(&[-1, -1], &[-1.0, -2.0]).is_ok());
    }

    #[test]
    fn certain_rows_are_scaled_and_kept() {
        for top in [0.0f32, -1e-10, 5e-4] {
            let settled = settle(&[3], &[top]).expect("valid");
            assert!(settled.renormalised && settled.other == OTHER_FLOOR);
            assert!((settled.probs[0] + settled.other - 1.0).abs() < 1e-12);
        }
        let settled = settle(&[3], &[-1e-3]).expect("valid");
        assert!(!settled.renormalised && (settled.other - 1e-3).abs() < 1e-6);
    }
}
