//! `eval.gate`: a verdict on a student from measured values.

use flow_engine::plugin::{InputPort, OutputPort, ParamError, Stage, StageError, TaskContext};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::criteria::{CLIP_LIMIT, Criterion, Op};
use super::parts::{Baseline, EvalReport, TrainLog, read};
use crate::project::TraceStats;
use crate::train::skipped::MAX_SKIPPED_SHARE;

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

/// `eval.gate`.
pub struct GateStage;

impl Stage for GateStage {
    type Params = GateParams;
    const KIND: &'static str = "eval.gate";
    const REVISION: u32 = 2;
    const SUMMARY: &'static str = "Accepts or refuses a student by thresholds; a refusal ends the run with exit code 3.";

    fn inputs(&self) -> Vec<InputPort> {
        vec![
            InputPort::required("report", &["EvalReport"], "What `eval.student` measured."),
            InputPort::required("baseline", &["Baseline"], "The teacher's locked answers that the report compares with."),
            InputPort::optional("student", &["TrainLog"], "The student's training log, for flip, NaN and seen tokens."),
            InputPort::optional("stats", &["TraceStats"], "Statistics of the traces, for invalid rows and their number."),
        ]
    }
    fn outputs(&self) -> Vec<OutputPort> {
        vec![OutputPort::measured("verdict", "Verdict", "Each criterion with its value, and whether all hold (JSON).")]
    }
    fn check(&self, p: &GateParams) -> Result<Vec<String>, ParamError> {
        let shares = [
            ("json_validity", p.json_validity),
            ("flip_at", p.flip_at),
            ("max_skipped_share", p.max_skipped_share),
            ("max_invalid", p.max_invalid),
        ];
        for (path, value) in shares {
            if let Some(v) = value.filter(|v| !(0.0..=1.0).contains(v)) {
                return Err(ParamError { path: path.into(), message: format!("{v} is not a share between 0 and 1"), help: None });
            }
        }
        Ok(Vec::new())
    }
    fn run(&self, p: GateParams, ctx: &TaskContext) -> Result<(), StageError> {
        let report: EvalReport = read(ctx.input("report")?, "EvalReport")?;
        let baseline: Baseline = read(ctx.input("baseline")?, "Baseline")?;
        let log: Option<TrainLog> = ctx.input_opt("student").map(|f| read(f, "TrainLog")).transpose()?;
        let stats: Option<TraceStats> = ctx.input_opt("stats").map(|f| read(f, "TraceStats")).transpose()?;
        same_prompts(&report, &baseline)?;
        let (criteria, not_checked) = judge(&p, &report, log.as_ref(), stats.as_ref());
        let accepted = criteria.iter().all(|c| c.pass == Some(true));
        for c in criteria.iter().filter(|c| c.pass != Some(true)) {
            let value = c.value.map_or("not measured".into(), |v| format!("{v:.4}"));
            ctx.warn(format!("gate: {} is {value}, must be {} {}", c.name, c.op.sign(), c.threshold));
        }
        let verdict = json!({
            "accepted": accepted,
            "criteria": criteria,
            "not_checked": not_checked,
            "baseline": {"teacher_digest": baseline.teacher_digest, "prompts_digest": baseline.prompts_digest, "template": baseline.template},
        });
        let out = ctx.output("verdict")?;
        let text = serde_json::to_string_pretty(&verdict).map_err(|e| StageError::new(e.to_string()))?;
        std::fs::write(out, text + "\n").map_err(|e| StageError::io("cannot write", out, &e))
    }
}

/// A report that answers other prompts than the baseline compares nothing.
fn same_prompts(report: &EvalReport, baseline: &Baseline) -> Result<(), StageError> {
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

fn judge(p: &GateParams, r: &EvalReport, log: Option<&TrainLog>, stats: Option<&TraceStats>) -> (Vec<Criterion>, Vec<&'static str>) {
    let q = &r.qei_metrics;
    let (mut criteria, mut not_checked) = (Vec::new(), Vec::new());
    let always = [
        ("qei", q.qei, Op::AtLeast, p.qei),
        ("qei_speed", q.qei_speed, Op::AtLeast, p.qei_speed),
        ("json_validity", r.json_validity.student, Op::AtLeast, p.json_validity),
        ("quality_ratio", q.quality_ratio(), Op::AtLeast, p.quality_ratio),
        ("bits_per_byte", r.bits_per_byte.student, Op::AtMost, p.max_bits_per_byte),
    ];
    let share = p.max_skipped_share;
    let (skipped, may_be_skipped) = log.map_or((None, 0.0), |l| l.skipped_of(share.unwrap_or(0.0)));
    let of_log = [
        ("flip_at", log.and_then(TrainLog::flip_share), Op::AtLeast, p.flip_at),
        ("seen_tokens", log.and_then(|l| l.seen_tokens), Op::AtLeast, p.min_seen_tokens),
        ("skipped_steps", skipped, Op::AtMost, share.map(|_| may_be_skipped)),
        ("nan_steps", log.and_then(|l| l.nan_steps), Op::AtMost, p.max_nan_steps),
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
            [(1.0, 19.0, 0.0, true), (2.0, 19.0, 0.0, false), (1.0, 49.0, 0.0, false), (1.0, 50.0, 0.0, true), (1.0, 60.0, 20.0, false)]
        {
            let (skipped_steps, steps, overflow_steps) = (Some(skipped), Some(steps), Some(overflows));
            let log = TrainLog { skipped_steps, steps, overflow_steps, ..TrainLog::default() };
            let (criteria, _) = judge(&p, &EvalReport::default(), Some(&log), None);
            let found = criteria.iter().find(|c| c.name == "skipped_steps").expect("it is judged");
            assert_eq!(found.pass, Some(wanted), "{skipped} of {steps:?} without {overflows}");
        }
    }

    #[test]
    fn another_baseline_is_refused() {
        let (mut report, mut baseline) = (EvalReport::default(), Baseline::default());
        report.results.push(super::super::parts::EvalResult { id: 3.into(), prompt: "a".into(), ..Default::default() });
        baseline.results.push(super::super::parts::BaselineResult { id: 4.into(), prompt: "a".into(), ..Default::default() });
        assert!(same_prompts(&report, &baseline).expect_err("other prompts").message.contains("prompt 3"));
        baseline.results[0].id = 3.into();
        assert!(same_prompts(&report, &baseline).is_ok());
    }
}
