//! A verdict on a student from measured values.

use flow_engine::plugin::StageError;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::criteria::{CLIP_LIMIT, Criterion, Op};
use crate::distil::TraceStats;
use crate::measurements::{Baseline, EvalReport, TrainLog, figure};
use flow_lm::train::skipped::MAX_SKIPPED_SHARE;

/// Whether a student must be better than a compressor.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(untagged)]
pub enum Floor {
    /// It must, or the comparison is left out.
    Asked(bool),
    /// By so many bits per byte at the least; below 0, it may be worse by as many.
    Margin(f64),
}

/// Parameters of `eval.gate`: thresholds; `null` takes one out.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct GateParams {
    /// Least QEI: (Qs/Qt) / (Ms/Mt).
    pub qei: Option<f64>,
    /// Least QEI_speed: QEI · student's over teacher's tokens per second.
    pub qei_speed: Option<f64>,
    /// Least share of the student's JSON answers that parse.
    pub json_validity: Option<f64>,
    /// Least quality of the student over the teacher's.
    pub quality_ratio: Option<f64>,
    /// Most held-out bits per byte of the student at its final activation bits.
    pub max_bits_per_byte: Option<f64>,
    /// Most perplexity of the student over the teacher's, where both have one tokenizer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_perplexity_ratio: Option<f64>,
    /// Whether the student's held-out bits per byte must be below those of the best compressor in the report: `true`, or a
    /// margin in bits per byte (0.05: below by as much; -0.05: above by at most as much). `false` leaves the comparison out.
    /// `null` accepts a student that a compressor beats, with a warning.
    pub below_compressor: Option<Floor>,
    /// Least share of the token budget seen before activations flip to fewer bits; checked where `student` is wired.
    pub flip_at: Option<f64>,
    /// Least tokens that the student was trained on; checked where `student` is wired.
    pub min_seen_tokens: Option<f64>,
    /// Most skipped steps as a share of the attempted ones (one in a run of fewer than 20); checked where `student` is wired.
    pub max_skipped_share: Option<f64>,
    /// Most steps whose loss was NaN or infinite; checked where `student` is wired.
    pub max_nan_steps: Option<f64>,
    /// Most gradient norm after clipping; checked where `student` is wired.
    pub max_grad_norm: Option<f64>,
    /// Share of invalid teacher rows to stay under; checked where `stats` is wired.
    pub max_invalid: Option<f64>,
    /// Least tokens with a teacher's distribution; checked where `stats` is wired.
    pub min_kd_tokens: Option<f64>,
}

impl Default for GateParams {
    fn default() -> Self {
        Self {
            qei: Some(0.20),
            qei_speed: Some(0.10),
            json_validity: None,
            quality_ratio: None,
            max_bits_per_byte: None,
            max_perplexity_ratio: None,
            below_compressor: None,
            flip_at: Some(0.9),
            min_seen_tokens: None,
            max_skipped_share: Some(MAX_SKIPPED_SHARE),
            max_nan_steps: None,
            max_grad_norm: Some(CLIP_LIMIT),
            max_invalid: Some(0.02),
            min_kd_tokens: None,
        }
    }
}

/// A report that answers other prompts than the baseline compares nothing.
pub(crate) fn same_prompts(report: &EvalReport, baseline: &Baseline) -> Result<(), StageError> {
    if report.results.is_empty() || baseline.results.is_empty() {
        return Ok(());
    }
    let stranger = report.results.iter().find(|r| !baseline.results.iter().any(|b| b.id == r.id && b.prompt == r.prompt));
    match stranger {
        None => Ok(()),
        Some(r) => Err(StageError::new(format!("the report answers prompt {} (`{}`), which the baseline does not hold", r.id, r.prompt))
            .help("wire the baseline that `eval.student` was given")),
    }
}

/// The best compressor of a report: its figure, and what it is.
fn best_compressor(r: &EvalReport) -> Option<(f64, String)> {
    let figures = r.compressors.iter().filter_map(|c| Some((c.bits_per_byte?, c)));
    let (bits, best) = figures.min_by(|a, b| a.0.total_cmp(&b.0))?;
    Some((bits, format!("{}{}", best.name, if best.primed { " after the training text" } else { "" })))
}

/// A student that a compressor beats, where the gate does not say what it thinks of that.
pub(crate) fn beaten_by(p: &GateParams, r: &EvalReport) -> Option<String> {
    let (student, (bits, name)) = (r.bits_per_byte.student?, best_compressor(r)?);
    (p.below_compressor.is_none() && student >= bits).then(|| {
        format!("a compressor knows the text better: student {student:.3} bits per byte, {name} {bits:.3}; `below_compressor: true` refuses such a student")
    })
}

/// The criterion that `below_compressor` asks for.
fn floor(p: &GateParams, r: &EvalReport) -> Option<Criterion> {
    let margin = match p.below_compressor? {
        Floor::Asked(false) => return None,
        Floor::Asked(true) => 0.0,
        Floor::Margin(margin) => margin,
    };
    let Some((bits, name)) = best_compressor(r) else {
        return Some(Criterion::new("below_compressor", None, Op::Below, 0.0).explained("the report holds no compressor's figure"));
    };
    Some(Criterion::new("below_compressor", r.bits_per_byte.student, Op::Below, bits - margin).explained(&format!("{name}: {bits:.4}")))
}

pub(crate) fn judge(
    p: &GateParams,
    r: &EvalReport,
    log: Option<&TrainLog>,
    stats: Option<&TraceStats>,
) -> (Vec<Criterion>, Vec<&'static str>) {
    let q = &r.qei_metrics;
    let (mut criteria, mut not_checked) = (Vec::new(), Vec::new());
    let always = [
        ("qei", q.qei, Op::AtLeast, p.qei),
        ("qei_speed", q.qei_speed, Op::AtLeast, p.qei_speed),
        ("json_validity", r.json_validity.student, Op::AtLeast, p.json_validity),
        ("quality_ratio", q.quality_ratio(), Op::AtLeast, p.quality_ratio),
        ("bits_per_byte", r.bits_per_byte.student, Op::AtMost, p.max_bits_per_byte),
        ("perplexity_ratio", r.perplexity.ratio, Op::AtMost, p.max_perplexity_ratio),
    ];
    let share = p.max_skipped_share;
    let (skipped, may_be_skipped) = log.map_or((None, 0.0), |l| l.skipped_of(share.unwrap_or(0.0)));
    let of_log = [
        ("flip_at", log.and_then(TrainLog::flip_share), Op::AtLeast, p.flip_at),
        ("seen_tokens", log.and_then(|l| figure(l.seen_tokens)), Op::AtLeast, p.min_seen_tokens),
        ("skipped_steps", skipped, Op::AtMost, share.map(|_| may_be_skipped)),
        ("nan_steps", log.and_then(|l| figure(l.nan_steps)), Op::AtMost, p.max_nan_steps),
        ("grad_norm_clipped", log.and_then(TrainLog::largest_clipped_norm), Op::AtMost, p.max_grad_norm),
    ];
    let of_stats = [
        ("invalid_rows", stats.map(|s| s.invalid_share), Op::Below, p.max_invalid),
        ("kd_tokens", stats.map(|s| s.tokens as f64), Op::AtLeast, p.min_kd_tokens),
    ];
    for (wired, group) in [(true, &always[..]), (log.is_some(), &of_log[..]), (stats.is_some(), &of_stats[..])] {
        for (name, value, op, threshold) in group {
            match threshold {
                Some(t) if wired => criteria.push(Criterion::new(name, *value, *op, *t)),
                Some(_) => not_checked.push(*name),
                None => {}
            }
        }
    }
    criteria.extend(floor(p, r));
    (criteria, not_checked)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_threshold_without_a_measurement_refuses_and_an_unwired_one_is_named() {
        let mut report = EvalReport::default();
        report.qei_metrics.qei = Some(2.0);
        let (criteria, not_checked) = judge(&GateParams::default(), &report, None, None);
        let pass: Vec<_> = criteria.iter().map(|c| (c.name.as_str(), c.pass)).collect();
        assert_eq!(pass, [("qei", Some(true)), ("qei_speed", Some(false))]);
        assert_eq!(not_checked, ["flip_at", "skipped_steps", "grad_norm_clipped", "invalid_rows"]);
        let log = TrainLog::default();
        let (criteria, _) = judge(&GateParams::default(), &report, Some(&log), None);
        assert_eq!(criteria.iter().filter(|c| c.pass == Some(false)).count(), 4);
    }

    #[test]
    fn skipped_steps_are_judged_by_the_rule_of_the_training() {
        let p = GateParams::default();
        for (skipped, steps, overflows, wanted) in
            [(1, 19, 0, true), (2, 19, 0, false), (1, 49, 0, false), (1, 50, 0, true), (1, 60, 20, false)]
        {
            let (skipped_steps, steps, overflow_steps) = (Some(skipped), Some(steps), Some(overflows));
            let log = TrainLog { skipped_steps, steps, overflow_steps, ..TrainLog::default() };
            let (criteria, _) = judge(&p, &EvalReport::default(), Some(&log), None);
            let found = criteria.iter().find(|c| c.name == "skipped_steps").expect("it is judged");
            assert_eq!(found.pass, Some(wanted), "{skipped} of {steps:?} without {overflows}");
        }
    }

    #[test]
    fn a_student_that_a_compressor_beats_is_warned_of_or_refused() {
        let compressor =
            |name: &str, bits, primed| crate::measurements::Compressor { name: name.into(), bits_per_byte: Some(bits), primed };
        let mut report =
            EvalReport { compressors: vec![compressor("xz -9", 2.4, false), compressor("bzip2 -9", 1.93, true)], ..EvalReport::default() };
        for (student, asked, refused, warned) in [
            (2.63, None, false, true),
            (1.93, None, false, true),
            (1.92, None, false, false),
            (2.63, Some(Floor::Asked(false)), false, false),
            (2.63, Some(Floor::Asked(true)), true, false),
            (1.93, Some(Floor::Asked(true)), true, false),
            (1.92, Some(Floor::Asked(true)), false, false),
            (1.92, Some(Floor::Margin(0.05)), true, false),
            (2.05, Some(Floor::Margin(-0.2)), false, false),
            (2.14, Some(Floor::Margin(-0.2)), true, false),
        ] {
            report.bits_per_byte.student = Some(student);
            let p = GateParams { below_compressor: asked, ..GateParams::default() };
            let found = floor(&p, &report);
            assert_eq!(found.is_some_and(|c| c.pass == Some(false)), refused, "{student} {asked:?}");
            assert_eq!(
                beaten_by(&p, &report).is_some_and(|w| w.contains("bzip2 -9 after the training text 1.930")),
                warned,
                "{student} {asked:?}"
            );
        }
        report.compressors.clear();
        let p = GateParams { below_compressor: Some(Floor::Asked(true)), ..GateParams::default() };
        assert_eq!(floor(&p, &report).and_then(|c| c.pass), Some(false), "without a figure nothing is known to hold");
    }

    #[test]
    fn another_baseline_is_refused() {
        let (mut report, mut baseline) = (EvalReport::default(), Baseline::default());
        report.results.push(crate::measurements::EvalResult { id: 3, prompt: "a".into(), ..Default::default() });
        baseline.results.push(crate::measurements::Answer { id: 4, prompt: "a".into(), ..Default::default() });
        assert!(same_prompts(&report, &baseline).expect_err("other prompts").message.contains("prompt 3"));
        baseline.results[0].id = 3;
        assert!(same_prompts(&report, &baseline).is_ok());
    }
}
