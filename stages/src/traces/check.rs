//! What makes a row's distribution valid, and the one rule for its mass.

/// Mass of Other after renormalisation.
pub const OTHER_FLOOR: f64 = 1e-6;

/// Other below this is rounding, not a tail: the row is renormalised.
pub const OTHER_LEAST: f64 = 1e-9;

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
    if ids.iter().enumerate().any(|(i, id)| *id >= 0 && ids[..i].contains(id)) {
        return Err(Invalid::Duplicate);
    }
    let mut probs: Vec<f64> = logprobs.iter().map(|l| f64::from(*l).exp()).collect();
    let sum: f64 = probs.iter().sum();
    if sum > 1.0 + 1e-3 {
        return Err(Invalid::Mass);
    }
    if 1.0 - sum >= OTHER_LEAST {
        return Ok(Settled { probs, other: 1.0 - sum, renormalised: false });
    }
    let scale = (1.0 - OTHER_FLOOR) / sum;
    probs.iter_mut().for_each(|p| *p *= scale);
    Ok(Settled { probs, other: OTHER_FLOOR, renormalised: true })
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
