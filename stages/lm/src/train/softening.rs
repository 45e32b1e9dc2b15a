//! How a training comes to ternary weights: from its first step on, or gradually.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::config::Refused;

/// How weights become ternary (`ternary_schedule`): a word, or a word with its numbers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(from = "Spelled", into = "Spelled")]
#[schemars(with = "Spelled")]
pub enum TernarySchedule {
    /// Codes from the first step on; gradients go straight through.
    #[default]
    Ste,
    /// Masters turn into their codes by a pressure that rises from 0 to 1.
    Ramp(Course),
    /// Soft assignment to −1, 0, +1 at a temperature that falls to 0, under a pressure (Hestia, arXiv 2601.20745).
    Soft(Course),
}

/// The course of a gradual schedule; shares are of the token budget.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Course {
    /// Share over which weights stay as they are, before the pressure rises.
    #[serde(default)]
    pub warmup: f64,
    /// Share at which the pressure is 1: 0.5 for `ramp`, 0.2 for `soft`.
    #[serde(default)]
    pub pressure: Option<f64>,
    /// `soft`: temperature at the beginning, of weights divided by their scale.
    #[serde(default)]
    pub temperature: Option<f64>,
    /// `soft`: share at which the temperature is 0.
    #[serde(default)]
    pub cold: Option<f64>,
    /// `soft`: temperatures of their own for tensors, by how curved the loss is along each: tokens of a calibration pass. 0:
    /// one temperature for all.
    #[serde(default)]
    pub calibrate: usize,
    /// What both learning rates are multiplied by until weights are hard.
    #[serde(default = "one")]
    pub rate: f64,
}

fn one() -> f64 {
    1.0
}

impl Default for Course {
    fn default() -> Self {
        Self { warmup: 0.0, pressure: None, temperature: None, cold: None, calibrate: 0, rate: 1.0 }
    }
}

/// A schedule as it is written.
#[derive(Clone, Copy, Serialize, Deserialize, JsonSchema)]
#[serde(untagged)]
enum Spelled {
    /// `ste`, `ramp` or `soft`.
    Word(Word),
    /// With its course.
    Whole(Whole),
}

#[derive(Clone, Copy, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
enum Word {
    Ste,
    Ramp,
    Soft,
}

#[derive(Clone, Copy, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase", deny_unknown_fields)]
enum Whole {
    /// `ramp: { … }`.
    Ramp(Course),
    /// `soft: { … }`.
    Soft(Course),
}

impl From<Spelled> for TernarySchedule {
    fn from(spelled: Spelled) -> Self {
        match spelled {
            Spelled::Word(Word::Ste) => TernarySchedule::Ste,
            Spelled::Word(Word::Ramp) => TernarySchedule::Ramp(Course::default()),
            Spelled::Word(Word::Soft) => TernarySchedule::Soft(Course::default()),
            Spelled::Whole(Whole::Ramp(course)) => TernarySchedule::Ramp(course),
            Spelled::Whole(Whole::Soft(course)) => TernarySchedule::Soft(course),
        }
    }
}

impl From<TernarySchedule> for Spelled {
    fn from(schedule: TernarySchedule) -> Self {
        match schedule {
            TernarySchedule::Ste => Spelled::Word(Word::Ste),
            TernarySchedule::Ramp(course) => Spelled::Whole(Whole::Ramp(course)),
            TernarySchedule::Soft(course) => Spelled::Whole(Whole::Soft(course)),
        }
    }
}

/// How ternary the weights of a step are.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Softness {
    /// 0: masters, 1: what they are assigned to.
    pub pressure: f32,
    /// 1 / T of the assignment; 0: codes.
    pub inv_temperature: f32,
}

impl Default for Softness {
    fn default() -> Self {
        Self::HARD
    }
}

impl Softness {
    /// Codes.
    pub const HARD: Softness = Softness { pressure: 1.0, inv_temperature: 0.0 };

    /// Whether products take codes.
    pub fn is_hard(self) -> bool {
        self == Self::HARD
    }

    /// The temperature; 0 where the assignment is hard.
    pub fn temperature(self) -> f64 {
        if self.inv_temperature == 0.0 { 0.0 } else { 1.0 / f64::from(self.inv_temperature) }
    }
}

/// Temperatures below this are 0: soft values are then codes to float precision, but at the ties.
const COLDEST: f64 = 1e-3;

impl TernarySchedule {
    /// Its word.
    pub fn name(&self) -> &'static str {
        match self {
            TernarySchedule::Ste => "ste",
            TernarySchedule::Ramp(_) => "ramp",
            TernarySchedule::Soft(_) => "soft",
        }
    }

    /// Whether there are steps whose weights are no codes.
    pub fn softens(&self) -> bool {
        *self != TernarySchedule::Ste
    }

    /// Tokens of the calibration pass.
    pub fn calibrates(&self) -> usize {
        if let TernarySchedule::Soft(course) = self { course.calibrate } else { 0 }
    }

    /// How ternary weights are after `done` of the budget.
    pub fn at(&self, done: f64) -> Softness {
        let (course, soft) = match self {
            TernarySchedule::Ste => return Softness::HARD,
            TernarySchedule::Ramp(course) => (course, false),
            TernarySchedule::Soft(course) => (course, true),
        };
        let full = course.pressure.unwrap_or(if soft { 0.2 } else { 0.5 });
        let pressure = if done >= full { 1.0 } else { ((done - course.warmup) / (full - course.warmup)).clamp(0.0, 1.0) };
        let temperature = match soft {
            false => 0.0,
            true => course.temperature.unwrap_or(0.5) * (1.0 - done / course.cold.unwrap_or(0.7)),
        };
        let inv_temperature = if temperature < COLDEST { 0.0 } else { (1.0 / temperature) as f32 };
        Softness { pressure: pressure as f32, inv_temperature }
    }

    /// What the learning rates are multiplied by after `done` of the budget.
    pub fn rate(&self, done: f64) -> f64 {
        match self {
            TernarySchedule::Ramp(course) | TernarySchedule::Soft(course) if !self.at(done).is_hard() => course.rate,
            _ => 1.0,
        }
    }

    /// Ranges that the schema cannot say.
    pub fn check(&self) -> Result<(), Refused> {
        let (course, soft) = match self {
            TernarySchedule::Ste => return Ok(()),
            TernarySchedule::Ramp(course) => (course, false),
            TernarySchedule::Soft(course) => (course, true),
        };
        let wrong = |field: &str, why: String| Err(Refused { field: format!("{}.{field}", self.name()), why });
        let shares = [("warmup", Some(course.warmup)), ("pressure", course.pressure), ("cold", course.cold)];
        if let Some((field, Some(v))) = shares.iter().find(|(_, v)| v.is_some_and(|v| !(0.0..=1.0).contains(&v))) {
            return wrong(field, format!("{v} is not a share between 0 and 1"));
        }
        if course.warmup >= course.pressure.unwrap_or(if soft { 0.2 } else { 0.5 }) {
            return wrong("warmup", format!("{} is not before the pressure is 1 (`pressure`)", course.warmup));
        }
        if course.cold == Some(0.0) {
            return wrong("cold", "0: a temperature that is 0 from the beginning is `ste`, or `ramp`".into());
        }
        if !(course.rate.is_finite() && course.rate > 0.0) {
            return wrong("rate", format!("{} is not above 0", course.rate));
        }
        if let Some(t) = course.temperature.filter(|t| !(t.is_finite() && *t >= COLDEST)) {
            return wrong("temperature", format!("{t} is below {COLDEST}"));
        }
        let of_soft = [("temperature", course.temperature.is_some()), ("cold", course.cold.is_some()), ("calibrate", course.calibrate > 0)];
        match of_soft.iter().find(|(_, said)| *said && !soft) {
            Some((field, _)) => wrong(field, "is for `soft`".into()),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pressure_rises_and_temperature_falls_to_codes() {
        let ramp = TernarySchedule::Ramp(Course { warmup: 0.1, ..Course::default() });
        assert_eq!((ramp.at(0.0).pressure, ramp.at(0.1).pressure), (0.0, 0.0));
        assert!((ramp.at(0.3).pressure - 0.5).abs() < 1e-6 && ramp.at(0.3).inv_temperature == 0.0);
        assert!(ramp.at(0.5).is_hard() && ramp.at(1.0).is_hard() && !ramp.at(0.499).is_hard());
        let soft = TernarySchedule::Soft(Course { rate: 0.5, ..Course::default() });
        assert_eq!(soft.at(0.0), Softness { pressure: 0.0, inv_temperature: 2.0 });
        assert!(soft.at(0.2).pressure == 1.0 && !soft.at(0.2).is_hard() && soft.at(0.7).is_hard());
        assert_eq!((soft.rate(0.69), soft.rate(0.7)), (0.5, 1.0));
        assert!(TernarySchedule::Ste.at(0.0).is_hard());
    }

    #[test]
    fn it_is_written_as_a_word_or_with_its_course() {
        let read = |text: &str| serde_json::from_str::<TernarySchedule>(text);
        assert_eq!(read(r#""ramp""#).expect("a word"), TernarySchedule::Ramp(Course::default()));
        let soft = read(r#"{"soft": {"temperature": 0.3}}"#).expect("a course");
        assert_eq!(soft, TernarySchedule::Soft(Course { temperature: Some(0.3), ..Course::default() }));
        let again = serde_json::to_string(&soft).expect("is written");
        assert_eq!(read(&again).expect("reads"), soft);
        for bad in [r#""hard""#, r#"{"ramp": {"speed": 1}}"#, r#"{"ste": {}}"#] {
            assert!(read(bad).is_err(), "{bad}");
        }
        for (bad, word) in [
            (TernarySchedule::Ramp(Course { cold: Some(0.5), ..Course::default() }), "for `soft`"),
            (TernarySchedule::Soft(Course { warmup: 0.3, ..Course::default() }), "before"),
            (TernarySchedule::Soft(Course { cold: Some(0.0), ..Course::default() }), "ste"),
            (TernarySchedule::Ramp(Course { rate: 0.0, ..Course::default() }), "above 0"),
        ] {
            assert!(bad.check().expect_err("is refused").why.contains(word), "{word}");
        }
    }
}
