//! The page and the summary of a pipeline.

use flow_engine::plugin::{StageError, TaskContext};
use serde::Serialize;
use serde_json::{Map, Value, json};

use super::criteria::Criterion;
use super::exit::exit_criteria;
use super::sections::{self, Card, Efficiency, Gates, Pipeline, Quality, Sample, Shape, Traces, Training};
use super::templates;
use super::text::{bytes, number, or_dash, whole};
use crate::distil::TraceStats;
use crate::measurements::{Baseline, DryRun, EvalReport, TextReport, TrainLog, Verdict, figure, read};

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
        let distilled = |l: &&(String, TrainLog)| l.1.flip().is_some() || l.1.trace_tokens.is_some_and(|t| t > 0);
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

/// What is on the page, as its template reads it: a section without its parts is left out.
#[derive(Serialize)]
struct Page<'a> {
    title: &'a str,
    /// Whether every gate accepted; `None` without one.
    accepted: Option<bool>,
    cards: Vec<Card>,
    quality: Option<Quality>,
    efficiency: Option<Efficiency<'a>>,
    gates: Gates<'a>,
    training: Vec<Training<'a>>,
    traces: Vec<Traces<'a>>,
    samples: Vec<Sample<'a>>,
    dry_runs: Vec<Shape<'a>>,
    pipeline: Option<Pipeline>,
    version: &'static str,
    run: &'a str,
}

/// The page.
pub(crate) fn page(title: &str, parts: &Parts, ctx: &TaskContext) -> Result<String, StageError> {
    let (eval, exit_criteria) = (parts.eval(), parts.exit_criteria());
    let page = Page {
        title,
        accepted: parts.accepted(),
        cards: sections::cards(eval, parts.student()),
        quality: (eval.is_some() || !parts.beside.is_empty()).then(|| sections::quality(eval, &parts.beside)),
        efficiency: eval.map(|e| sections::efficiency(e, &parts.baselines)),
        gates: sections::gates(&parts.verdicts, &exit_criteria),
        training: parts.logs.iter().map(|(stage, log)| sections::training(stage, log)).collect(),
        traces: parts.stats.iter().map(|(stage, stats)| sections::traces(stage, stats)).collect(),
        samples: eval.map(sections::samples).unwrap_or_default(),
        dry_runs: parts.dry_runs.iter().map(|(stage, dry_run)| sections::dry_run(stage, dry_run)).collect(),
        pipeline: sections::pipeline(&ctx.task().provenance),
        version: env!("CARGO_PKG_VERSION"),
        run: &ctx.task().run,
    };
    templates::render("page.html", page)
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
        let held = |of: Option<u64>| or_dash(figure(of), bytes);
        say("planned memory", format!("student {}, teacher {}", held(q.student_memory_planned_bytes), held(q.teacher_memory())));
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
        say("tokens trained on", or_dash(figure(l.seen_tokens), whole));
    }
    if let Some(accepted) = parts.accepted() {
        let failing: Vec<&str> =
            parts.verdicts.iter().flat_map(|v| &v.1.criteria).filter(|c| c.pass != Some(true)).map(|c| c.name.as_str()).collect();
        say("gate", if accepted { "accepted".into() } else { format!("refused: {}", failing.join(", ")) });
    }
    out
}
