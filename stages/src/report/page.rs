//! The page and the summary of a pipeline.

use flow_engine::plugin::{StageError, TaskContext};
use serde_json::{Map, Value, json};

use super::criteria::Criterion;
use super::exit::exit_criteria;
use super::parts::{Baseline, DryRun, EvalReport, TextReport, TrainLog, Verdict, read};
use super::sections;
use super::text::{bytes, escape, number, or_dash, whole};
use crate::distil::TraceStats;

/// Everything that was wired, by the stage that made it.
#[derive(Default)]
pub(crate) struct Parts {
    baselines: Vec<(String, Baseline)>,
    stats: Vec<(String, TraceStats)>,
    logs: Vec<(String, TrainLog)>,
    evals: Vec<(String, EvalReport)>,
    /// Models that were measured beside the student: its full-precision twin, one without a teacher.
    beside: Vec<(String, TextReport)>,
    verdicts: Vec<(String, Verdict)>,
    dry_runs: Vec<(String, DryRun)>,
}

impl Parts {
    /// The artifacts on the port `parts`.
    pub fn collect(ctx: &TaskContext) -> Result<Self, StageError> {
        let mut parts = Self::default();
        for artifact in ctx.inputs("parts") {
            let stage = artifact.from.split('.').next().unwrap_or(&artifact.from).to_owned();
            let (path, ty) = (artifact.path.as_path(), artifact.ty.as_str());
            match ty {
                "Baseline" => parts.baselines.push((stage, read(path, ty)?)),
                "TraceStats" => parts.stats.push((stage, read(path, ty)?)),
                "TrainLog" => parts.logs.push((stage, read(path, ty)?)),
                "EvalReport" => parts.evals.push((stage, read(path, ty)?)),
                "TextReport" => parts.beside.push((stage, read(path, ty)?)),
                "Verdict" => parts.verdicts.push((stage, read(path, ty)?)),
                "DryRun" => parts.dry_runs.push((stage, read(path, ty)?)),
                other => return Err(StageError::new(format!("input `parts`: {} has type {other}, which no section shows", artifact.from))),
            }
        }
        Ok(parts)
    }
    /// The student's log: the one with distillation behind it, else the last.
    fn student(&self) -> Option<&TrainLog> {
        let taught = |l: &&(String, TrainLog)| l.1.kd_weight.is_some_and(|w| w > 0.0);
        let distilled = |l: &&(String, TrainLog)| l.1.flip.is_some() || l.1.trace_tokens.is_some_and(|t| t > 0.0);
        self.logs.iter().rfind(taught).or_else(|| self.logs.iter().rfind(distilled)).or(self.logs.last()).map(|l| &l.1)
    }
    fn eval(&self) -> Option<&EvalReport> {
        self.evals.last().map(|e| &e.1)
    }
    fn exit_criteria(&self) -> Vec<Criterion> {
        exit_criteria(self.stats.last().map(|s| &s.1), self.student(), self.eval())
    }
    /// Whether every gate accepted; `None` without one.
    fn accepted(&self) -> Option<bool> {
        (!self.verdicts.is_empty()).then(|| self.verdicts.iter().all(|v| v.1.accepted))
    }
}

/// The page.
pub(crate) fn page(title: &str, parts: &Parts, ctx: &TaskContext) -> String {
    let badge = match parts.accepted() {
        Some(true) => "<span class=\"badge good\">gate: accepted</span>",
        Some(false) => "<span class=\"badge bad\">gate: refused</span>",
        None => "",
    };
    let (provenance, run) = (&ctx.task().provenance, &ctx.task().run);
    let mut sections: Vec<(&str, String)> = Vec::new();
    if let Some(e) = parts.eval() {
        sections.push(("Quality", sections::quality(Some(e), &parts.beside)));
        sections.push(("Memory, speed and QEI", sections::efficiency(e, &parts.baselines)));
    }
    if parts.eval().is_none() && !parts.beside.is_empty() {
        sections.push(("Quality", sections::quality(None, &parts.beside)));
    }
    sections.push(("Gate and exit criteria", sections::gates(&parts.verdicts, &parts.exit_criteria())));
    sections.push(("Training", parts.logs.iter().map(|(s, l)| sections::training(s, l)).collect()));
    sections.push(("Traces", parts.stats.iter().map(|(s, t)| sections::traces(s, t)).collect()));
    if let Some(e) = parts.eval() {
        sections.push(("Samples", sections::samples(e)));
    }
    sections.push(("Dry-run", parts.dry_runs.iter().map(|(s, d)| sections::dry_run(s, d)).collect()));
    if !provenance.is_empty() {
        sections.push(("Pipeline", sections::pipeline(provenance)));
    }
    let body: String = sections.iter().filter(|s| !s.1.is_empty()).map(|(h, s)| format!("<section><h2>{h}</h2>{s}</section>")).collect();
    format!(
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\
         <title>{title}</title><style>{}</style></head><body><main><header><h1>{title}</h1>{badge}</header>{}{body}\
         <footer>flow {}{}. The page needs nothing else; figures come from the artifacts that this run made or found.</footer></main></body></html>\n",
        include_str!("style.css"),
        sections::cards(parts.eval(), parts.student()),
        env!("CARGO_PKG_VERSION"),
        if run.is_empty() { String::new() } else { format!(", run {}", escape(run)) },
        title = escape(title),
    )
}

/// `pipeline_summary.json`.
pub(crate) fn summary(parts: &Parts, ctx: &TaskContext) -> Value {
    let criteria = parts.exit_criteria();
    let count = |pass: Option<bool>| criteria.iter().filter(|c| c.pass == pass).count();
    let stages: Vec<Value> = ctx
        .task()
        .provenance
        .iter()
        .map(|p| json!({"stage": p.stage, "kind": p.kind, "seconds": p.seconds, "reused": p.reused, "device": p.device}))
        .collect();
    json!({
        "run": ctx.task().run,
        "accepted": parts.accepted(),
        "exit_criteria": criteria,
        "passed": count(Some(true)),
        "failed": count(Some(false)),
        "not_measured": count(None),
        "headline": headline(parts),
        "stages": stages,
    })
}

/// What the command line prints at the end of a run.
fn headline(parts: &Parts) -> Map<String, Value> {
    let mut out = Map::new();
    let mut say = |key: &str, value: String| {
        out.insert(key.into(), Value::String(value));
    };
    if let Some(e) = parts.eval() {
        let (b, q) = (&e.bits_per_byte, &e.qei_metrics);
        let gap = sections::gap(e).map_or(String::new(), |g| format!(" ({:+.1} %)", 100.0 * g));
        say("held-out bits per byte", format!("student {}, teacher {}{gap}", or_dash(b.student, number), or_dash(b.teacher, number)));
        let best = e
            .compressors
            .iter()
            .filter(|c| c.bits_per_byte.is_some())
            .min_by(|x, y| x.bits_per_byte.unwrap_or(0.0).total_cmp(&y.bits_per_byte.unwrap_or(0.0)));
        if let Some(c) = best {
            let primed = if c.primed { " after the training text" } else { "" };
            say("best compressor", format!("{} {}{primed}", or_dash(c.bits_per_byte, number), c.name));
        }
        say("QEI", format!("{} (with speed {})", or_dash(q.qei, number), or_dash(q.qei_speed, number)));
        say("memory", format!("student {}, teacher {}", or_dash(q.student_memory_bytes, bytes), or_dash(q.teacher_memory_bytes, bytes)));
        say(
            "decode tokens/s",
            format!("student {}, teacher {}", or_dash(q.student_tokens_per_second, number), or_dash(q.teacher_tokens_per_second, number)),
        );
    }
    for (stage, r) in &parts.beside {
        let student = parts.eval().and_then(|e| e.bits_per_byte.student);
        let over = sections::over(student, r.bits_per_byte).map_or(String::new(), |g| format!(" (the student {:+.1} %)", 100.0 * g));
        say(stage, format!("{}{over}", or_dash(r.bits_per_byte, number)));
    }
    if let Some(l) = parts.student() {
        say("tokens trained on", or_dash(l.seen_tokens, whole));
    }
    if let Some(accepted) = parts.accepted() {
        let failing: Vec<&str> =
            parts.verdicts.iter().flat_map(|v| &v.1.criteria).filter(|c| c.pass != Some(true)).map(|c| c.name.as_str()).collect();
        say("gate", if accepted { "accepted".into() } else { format!("refused: {}", failing.join(", ")) });
    }
    out
}
