//! The temperature of a distillation: the one place where what a teacher said is divided by it.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::traces::ProjectedRow;

/// What the KL is multiplied by beside its weight. The gradient of a KL at τ is 1/τ² of that at 1 where distributions are
/// flat (Hinton et al., arXiv 1503.02531, section 2.1): without the factor a higher τ gives the cross-entropy more say.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum KdScale {
    /// τ²: `tau` does not change the balance between KL and cross-entropy.
    #[default]
    Tau2,
    /// 1, the proof of concept's rule.
    None,
}

impl KdScale {
    /// The factor at a temperature.
    pub fn factor(self, tau: f32) -> f32 {
        match self {
            KdScale::Tau2 => tau * tau,
            KdScale::None => 1.0,
        }
    }
}

/// A temperature, and where rows keep their tail at it.
///
/// Candidates are multiplied by 1/τ and Other is divided by τ, as the kernel and the host did before there was one place for
/// both: a training that an earlier version began goes on to the same bits.
#[derive(Clone, Copy, Debug)]
pub struct Distillation {
    tau: f32,
    /// Place of τ among the temperatures whose tails the rows hold.
    tail: Option<usize>,
}

/// What is known of a row's mass outside its candidates, tempered.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Tail {
    /// Its log-sum-exp at τ.
    pub lse: f32,
    /// Whether that is exact; else Other was tempered as if it were one token, which is too sharp.
    pub exact: bool,
}

impl Distillation {
    /// Distillation at `tau` of rows that hold tails at `taus`.
    pub fn new(tau: f32, taus: &[f32]) -> Self {
        Self { tau, tail: taus.iter().position(|t| (*t - tau).abs() < 1e-6) }
    }

    /// The temperature.
    pub fn tau(&self) -> f32 {
        self.tau
    }

    /// Whether rows may hold their tail at this temperature: at 1 it is Other.
    pub fn has_tail(&self) -> bool {
        self.tau == 1.0 || self.tail.is_some()
    }

    /// A row's candidates at τ.
    pub fn candidates<'a>(&self, row: &'a ProjectedRow) -> impl Iterator<Item = f32> + use<'a> {
        let inv_tau = 1.0 / self.tau;
        row.topk_logprobs.iter().map(move |l| l * inv_tau)
    }

    /// A row's tail at τ.
    pub fn tail(&self, row: &ProjectedRow) -> Tail {
        match (self.tail, &row.other_lse) {
            (Some(at), Some(stored)) => Tail { lse: stored[at], exact: true },
            _ => Tail { lse: row.other_logprob / self.tau, exact: self.tau == 1.0 },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn candidates_and_other_are_tempered_alike_and_a_stored_tail_is_taken() {
        let row = ProjectedRow {
            topk_ids: vec![4, 9],
            topk_logprobs: vec![-0.5, -2.0],
            other_logprob: -1.5,
            other_lse: Some(vec![-0.8, 0.3]),
            ..ProjectedRow::default()
        };
        let at = |tau: f32, taus: &[f32]| {
            let d = Distillation::new(tau, taus);
            (d.candidates(&row).collect::<Vec<f32>>(), d.tail(&row), d.has_tail())
        };
        assert_eq!(at(1.0, &[1.3, 2.0]), (vec![-0.5, -2.0], Tail { lse: -1.5, exact: true }, true));
        assert_eq!(at(2.0, &[1.3, 2.0]), (vec![-0.25, -1.0], Tail { lse: 0.3, exact: true }, true));
        assert_eq!(at(4.0, &[1.3, 2.0]), (vec![-0.125, -0.5], Tail { lse: -0.375, exact: false }, false));
        assert_eq!((KdScale::Tau2.factor(2.0), KdScale::None.factor(2.0)), (4.0, 1.0));
    }
}
