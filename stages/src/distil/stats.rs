//! What projection kept, moved and refused.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::traces::{Invalid, ProjectedRow};

/// Upper edges of the histogram of Other's mass.
pub const OTHER_EDGES: [f64; 9] = [1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 0.05, 0.1, 0.25, 1.0];

/// Sums over rows; merged in sequence order, so that the result does not depend on threads.
#[derive(Clone, Debug, Default)]
pub struct Tally {
    /// Sequences.
    pub sequences: u64,
    /// Sequences that the student's tokenizer does not reproduce.
    pub not_reproduced: u64,
    /// Teacher rows.
    pub teacher_rows: u64,
    /// Student rows.
    pub rows: u64,
    /// Student rows that train by KL.
    pub kd_rows: u64,
    /// Student rows by source.
    pub by_source: BTreeMap<&'static str, u64>,
    /// Quarantined teacher rows by reason.
    pub invalid: BTreeMap<&'static str, u64>,
    /// Teacher rows scaled to Σp = 1 − 1e-6.
    pub renormalised: u64,
    /// Student rows whose token spans several teacher tokens.
    pub spanning: u64,
    /// Teacher rows whose drawn token is among the candidates.
    pub drawn_in_top_k: u64,
    /// Candidates moved into Other.
    pub moved_candidates: u64,
    /// Structural student rows.
    pub structural: u64,
    /// Rows that train by KL and hold their tail at each temperature.
    pub exact_tails: u64,
    /// Candidates of the widest row.
    pub widest: usize,
    covered: f64,
    lost: f64,
    entropy: f64,
    other: [u64; OTHER_EDGES.len()],
    candidates: u64,
}

impl Tally {
    /// The tally of one sequence before its rows are looked at.
    pub fn of_sequence(teacher_rows: usize) -> Self {
        Self { sequences: 1, teacher_rows: teacher_rows as u64, ..Self::default() }
    }
    /// Counts a refused row.
    pub fn refuse(&mut self, reason: Invalid) {
        *self.invalid.entry(reason.name()).or_default() += 1;
    }
    /// Counts a row that goes out, and the mass that projection moved into its Other.
    pub fn emit(&mut self, row: &ProjectedRow, source: &'static str, lost: f64) {
        self.lost += if row.kd_weight == 0.0 { 0.0 } else { lost };
        self.exact_tails += u64::from(row.kd_weight != 0.0 && row.other_lse.is_some());
        self.count(&row.topk_logprobs, row.other_logprob, row.is_struct, row.kd_weight != 0.0, source);
    }
    /// Counts a row by its candidates; `trains` says whether it does by KL.
    pub fn count(&mut self, logprobs: &[f32], other_logprob: f32, structural: bool, trains: bool, source: &'static str) {
        self.rows += 1;
        self.widest = self.widest.max(logprobs.len());
        *self.by_source.entry(source).or_default() += 1;
        self.structural += u64::from(structural);
        if !trains {
            return;
        }
        self.kd_rows += 1;
        self.candidates += logprobs.len() as u64;
        let mut entropy = 0.0;
        let mut covered = 0.0;
        for l in logprobs {
            let p = f64::from(*l).exp();
            covered += p;
            entropy -= p * f64::from(*l);
        }
        let other = f64::from(other_logprob).exp();
        entropy -= other * f64::from(other_logprob);
        self.covered += covered;
        self.entropy += entropy;
        let bin = OTHER_EDGES.iter().position(|e| other <= e * 1.000_001).unwrap_or(OTHER_EDGES.len() - 1);
        self.other[bin] += 1;
    }
    /// Adds another tally.
    pub fn merge(&mut self, o: &Tally) {
        for (a, b) in [
            (&mut self.sequences, o.sequences),
            (&mut self.not_reproduced, o.not_reproduced),
            (&mut self.teacher_rows, o.teacher_rows),
            (&mut self.rows, o.rows),
            (&mut self.kd_rows, o.kd_rows),
            (&mut self.renormalised, o.renormalised),
            (&mut self.spanning, o.spanning),
            (&mut self.drawn_in_top_k, o.drawn_in_top_k),
            (&mut self.moved_candidates, o.moved_candidates),
            (&mut self.structural, o.structural),
            (&mut self.exact_tails, o.exact_tails),
            (&mut self.candidates, o.candidates),
        ] {
            *a += b;
        }
        o.by_source.iter().for_each(|(k, v)| *self.by_source.entry(k).or_default() += v);
        o.invalid.iter().for_each(|(k, v)| *self.invalid.entry(k).or_default() += v);
        self.other.iter_mut().zip(o.other).for_each(|(a, b)| *a += b);
        self.widest = self.widest.max(o.widest);
        self.covered += o.covered;
        self.lost += o.lost;
        self.entropy += o.entropy;
    }
    /// Share of teacher rows that are quarantined.
    pub fn invalid_share(&self) -> f64 {
        share(self.invalid.values().sum(), self.teacher_rows)
    }
    /// The artifact.
    pub fn report(&self, method: &str, exact: bool, top_k: usize) -> TraceStats {
        let mean = |sum: f64| if self.kd_rows == 0 { 0.0 } else { sum / self.kd_rows as f64 };
        TraceStats {
            method: method.into(),
            exact,
            top_k: top_k.max(self.widest),
            sequences: self.sequences,
            teacher_rows: self.teacher_rows,
            rows: self.rows,
            tokens: self.kd_rows,
            rows_by_source: self.by_source.iter().map(|(k, v)| ((*k).to_owned(), *v)).collect(),
            dropped_rows: self.rows - self.kd_rows,
            not_reproduced_sequences: self.not_reproduced,
            invalid: self.invalid.iter().map(|(k, v)| ((*k).to_owned(), *v)).collect(),
            invalid_share: self.invalid_share(),
            renormalised_rows: self.renormalised,
            coverage: mean(self.covered),
            lost_mass: mean(self.lost),
            moved_candidates: self.moved_candidates,
            mean_candidates: mean(self.candidates as f64),
            drawn_in_top_k: share(self.drawn_in_top_k, self.teacher_rows),
            spanning_share: share(self.spanning, self.rows),
            structural_share: share(self.structural, self.rows),
            exact_tail_share: share(self.exact_tails, self.kd_rows),
            entropy: mean(self.entropy),
            other_mass: OTHER_EDGES.iter().zip(self.other).map(|(e, n)| OtherBin { up_to: *e, rows: n }).collect(),
        }
    }
}

fn share(part: u64, whole: u64) -> f64 {
    if whole == 0 { 0.0 } else { part as f64 / whole as f64 }
}

/// One bin of the histogram of Other's mass.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct OtherBin {
    /// Upper edge.
    pub up_to: f64,
    /// Rows.
    pub rows: u64,
}

/// Statistics of projected traces (`TraceStats`).
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct TraceStats {
    /// `byte_aligned` or `first_subtoken`.
    pub method: String,
    /// Whether teacher and student share the tokenizer, so that nothing was projected.
    pub exact: bool,
    /// Candidates per row, at most.
    pub top_k: usize,
    /// Sequences.
    pub sequences: u64,
    /// Rows as the teacher gave them.
    pub teacher_rows: u64,
    /// Rows for the student.
    pub rows: u64,
    /// Rows that train by KL.
    pub tokens: u64,
    /// Rows by source.
    pub rows_by_source: BTreeMap<String, u64>,
    /// Rows for the student without KL.
    pub dropped_rows: u64,
    /// Sequences that the student's tokenizer does not reproduce byte by byte.
    pub not_reproduced_sequences: u64,
    /// Quarantined teacher rows by reason.
    pub invalid: BTreeMap<String, u64>,
    /// Their share of the teacher's rows.
    pub invalid_share: f64,
    /// Teacher rows scaled to Σp = 1 − 1e-6.
    pub renormalised_rows: u64,
    /// Mean mass of the student's candidates.
    pub coverage: f64,
    /// Mean mass that projection moved into Other.
    pub lost_mass: f64,
    /// Candidates that projection moved into Other.
    pub moved_candidates: u64,
    /// Mean number of candidates.
    pub mean_candidates: f64,
    /// Share of teacher rows whose drawn token is among the candidates.
    pub drawn_in_top_k: f64,
    /// Share of student rows whose token spans several teacher tokens.
    pub spanning_share: f64,
    /// Share of structural rows.
    pub structural_share: f64,
    /// Share of the rows with KL that hold their tail's log-sum-exp at each temperature of the traces.
    pub exact_tail_share: f64,
    /// Mean entropy over candidates and Other, nats.
    pub entropy: f64,
    /// Histogram of Other's mass.
    pub other_mass: Vec<OtherBin>,
}
