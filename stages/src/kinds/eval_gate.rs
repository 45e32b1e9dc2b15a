//! `eval.gate`: a verdict on a student from measured values.

use flow_engine::plugin::{InputPort, OutputPort, ParamError, Stage, StageError, TaskContext};

use crate::distil::TraceStats;
use crate::measurements::{self, Baseline, ComparedWith, EvalReport, TrainLog, Verdict, read};
use crate::report::criteria::Criterion;
use crate::report::gate::{Floor, GateParams, beaten_by, judge, same_prompts};

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
        if let Some(Floor::Margin(margin)) = p.below_compressor.filter(|f| matches!(f, Floor::Margin(m) if !m.is_finite() || m.abs() > 8.0))
        {
            let message = format!("{margin} is no number of bits per byte");
            return Err(ParamError { path: "below_compressor".into(), message, help: Some("true, false, or such as 0.05".into()) });
        }
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
        let reasons: Vec<String> = criteria.iter().filter(|c| c.pass != Some(true)).map(Criterion::failing).collect();
        let warnings: Vec<String> = beaten_by(&p, &report).into_iter().collect();
        warnings.iter().for_each(|warning| ctx.warn(warning.clone()));
        let verdict = Verdict {
            accepted: reasons.is_empty(),
            reasons,
            warnings,
            criteria,
            not_checked: not_checked.into_iter().map(str::to_owned).collect(),
            baseline: ComparedWith {
                teacher_digest: baseline.teacher_digest,
                prompts_digest: baseline.prompts_digest,
                template: baseline.template,
            },
        };
        measurements::write(ctx.output("verdict")?, &verdict)
    }
}
