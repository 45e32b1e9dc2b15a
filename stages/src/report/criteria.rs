//! A figure against its threshold, and the exit criteria that the proof of concept set itself.

use serde::{Deserialize, Serialize};

use super::parts::{EvalReport, TrainLog};
use crate::distil::TraceStats;
use flow_lm::train::skipped::MAX_SKIPPED_SHARE;

/// Direction of a threshold.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Op {
    /// The value must reach it.
    #[serde(rename = ">=")]
    AtLeast,
    /// The value must not exceed it.
    #[serde(rename = "<=")]
    AtMost,
    /// The value must stay under it.
    #[serde(rename = "<")]
    Below,
}

impl Op {
    /// The sign.
    pub fn sign(self) -> &'static str {
        match self {
            Op::AtLeast => "≥",
            Op::AtMost => "≤",
            Op::Below => "<",
        }
    }
}

/// One figure against its threshold.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Criterion {
    /// Name.
    pub name: String,
    /// Measured value, `null` where it was not measured.
    pub value: Option<f64>,
    /// What it is compared with.
    pub threshold: f64,
    /// How.
    pub op: Op,
    /// Whether it holds; `null` where nothing that could measure it was wired.
    pub pass: Option<bool>,
    /// Group of the proof of concept's list.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub group: Option<String>,
    /// Why there is no value, or how it was measured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
}

impl Criterion {
    /// Compares; a missing value does not pass.
    pub fn new(name: &str, value: Option<f64>, op: Op, threshold: f64) -> Self {
        let value = value.filter(|v| v.is_finite());
        let holds = |v: f64| match op {
            Op::AtLeast => v >= threshold,
            Op::AtMost => v <= threshold,
            Op::Below => v < threshold,
        };
        let note = value.is_none().then(|| "not measured".to_owned());
        Self { name: name.into(), value, threshold, op, pass: Some(value.is_some_and(holds)), group: None, note }
    }
    /// Adds what its threshold comes from.
    #[must_use]
    pub fn explained(mut self, note: &str) -> Self {
        self.note = Some(self.note.map_or_else(|| note.to_owned(), |before| format!("{before}; {note}")));
        self
    }
    /// Why it does not hold, in words.
    pub fn failing(&self) -> String {
        let value = self.value.map_or("not measured".into(), |v| format!("{v:.4}"));
        let note = self.note.as_deref().filter(|_| self.value.is_some()).map_or(String::new(), |note| format!(" ({note})"));
        format!("{} is {value}, must be {} {:.4}{note}", self.name, self.op.sign(), self.threshold)
    }
    /// Marks it as not applicable here.
    #[must_use]
    pub fn unmeasured(mut self, why: &str) -> Self {
        self.pass = None;
        self.note = Some(why.into());
        self
    }
    fn group(mut self, group: &str) -> Self {
        self.group = Some(group.into());
        self
    }
}

/// A clipped norm may exceed the limit by the rounding of its own square root.
pub const CLIP_LIMIT: f64 = 1.0 + 1e-3;

/// The proof of concept's own list (facts: exit criteria), from what was measured.
pub fn exit_criteria(stats: Option<&TraceStats>, log: Option<&TrainLog>, eval: Option<&EvalReport>) -> Vec<Criterion> {
    let no_stats = |c: Criterion| if stats.is_none() { c.unmeasured("no trace statistics were wired to the report") } else { c };
    let no_log = |c: Criterion| if log.is_none() { c.unmeasured("no student's training log was wired to the report") } else { c };
    let no_eval = |c: Criterion| if eval.is_none() { c.unmeasured("no evaluation was wired to the report") } else { c };
    let tokens = stats.map(|s| s.tokens as f64);
    let invalid = stats.map(|s| s.invalid_share);
    let qei = eval.map(|e| &e.qei_metrics);
    let (skipped, may_be_skipped) = log.map_or((None, 0.0), |l| l.skipped_of(MAX_SKIPPED_SHARE));
    let mut all = vec![
        no_stats(Criterion::new("kd_tokens", tokens, Op::AtLeast, 500_000.0)).group("data"),
        no_stats(Criterion::new("invalid_rows", invalid, Op::Below, 0.02)).group("data"),
        no_log(Criterion::new("seen_tokens", log.and_then(|l| l.seen_tokens), Op::AtLeast, 1_000_000.0)).group("training"),
        no_log(Criterion::new("nan_steps", log.and_then(|l| l.nan_steps), Op::AtMost, 0.0)).group("training"),
        no_log(Criterion::new("skipped_steps", skipped, Op::AtMost, may_be_skipped)).group("training"),
        no_log(Criterion::new("flip_at", log.and_then(TrainLog::flip_share), Op::AtLeast, 0.9)).group("training"),
        no_log(Criterion::new("grad_norm_clipped", log.and_then(TrainLog::largest_clipped_norm), Op::AtMost, CLIP_LIMIT)).group("training"),
    ];
    for (group, threshold_qei, threshold_speed) in [("evaluation", 0.20, 0.10), ("version 1", 1.0, 1.0)] {
        all.push(no_eval(Criterion::new("qei", qei.and_then(|q| q.qei), Op::AtLeast, threshold_qei)).group(group));
        all.push(no_eval(Criterion::new("qei_speed", qei.and_then(|q| q.qei_speed), Op::AtLeast, threshold_speed)).group(group));
    }
    all.push(no_eval(Criterion::new("json_validity", eval.and_then(|e| e.json_validity.student), Op::AtLeast, 0.95)).group("version 1"));
    all.push(no_eval(Criterion::new("quality_ratio", qei.and_then(|q| q.quality_ratio()), Op::AtLeast, 0.8)).group("version 1"));
    all.push(
        Criterion::new("ci_minutes", None, Op::Below, 15.0)
            .unmeasured("measured by .ci/run, not by a pipeline")
            .group("continuous integration"),
    );
    all.push(no_stats(Criterion::new("kd_tokens", tokens, Op::AtLeast, 30_000_000.0)).group("later"));
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn thresholds_compare_and_missing_values_do_not_pass() {
        assert_eq!(Criterion::new("a", Some(0.2), Op::AtLeast, 0.2).pass, Some(true));
        assert_eq!(Criterion::new("a", Some(0.02), Op::Below, 0.02).pass, Some(false));
        assert_eq!(Criterion::new("a", Some(f64::NAN), Op::AtMost, 1.0).pass, Some(false));
        assert_eq!(Criterion::new("a", None, Op::AtMost, 1.0).pass, Some(false));
    }
}
