//! The exit criteria that the proof of concept set itself.

use flow_lm::train::skipped::MAX_SKIPPED_SHARE;

use super::criteria::{CLIP_LIMIT, Criterion, Op};
use crate::distil::TraceStats;
use crate::measurements::{EvalReport, TrainLog, figure};

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
        no_log(Criterion::new("seen_tokens", log.and_then(|l| figure(l.seen_tokens)), Op::AtLeast, 1_000_000.0)).group("training"),
        no_log(Criterion::new("nan_steps", log.and_then(|l| figure(l.nan_steps)), Op::AtMost, 0.0)).group("training"),
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
