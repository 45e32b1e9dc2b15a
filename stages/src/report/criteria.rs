//! A figure against its threshold.

use serde::{Deserialize, Serialize};

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
    /// Puts it into a group.
    pub fn group(mut self, group: &str) -> Self {
        self.group = Some(group.into());
        self
    }
}

/// A clipped norm may exceed the limit by the rounding of its own square root.
pub const CLIP_LIMIT: f64 = 1.0 + 1e-3;

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
