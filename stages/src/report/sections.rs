//! What the sections of the page show, each from the parts that it needs, as the template of its name reads it.

use flow_engine::plugin::Provenance;
use serde::Serialize;

use super::charts::{Bar, Bars, Chart, Dag, LineChart, Node, Series};
use super::criteria::Criterion;
use super::text::{bytes, number, or_dash, percent, seconds, short, whole};
use crate::distil::{KdScale, TraceStats};
use crate::measurements::{Baseline, BitsPerByte, DryRun, EvalReport, Side, TextReport, TrainLog, Verdict, figure};
use flow_lm::config::Weights;
use flow_lm::graph::Optimizer;
use flow_lm::train::Evaluation;
use flow_lm::train::TokenWeight;
use flow_lm::train::state::Point;

/// Several figures in one line.
const BETWEEN: &str = " · ";

/// A row of a table: a name and its figure.
type Fact = (String, String);

fn fact(name: impl Into<String>, figure: impl Into<String>) -> Fact {
    (name.into(), figure.into())
}

fn known(facts: &mut Vec<Fact>) {
    facts.retain(|f| f.1 != or_dash(None, number));
}

/// Student's bits per byte over the teacher's, as a share above 1.
pub fn gap(e: &EvalReport) -> Option<f64> {
    over(e.bits_per_byte.student, e.bits_per_byte.teacher)
}

/// One figure over another, as a share above 1.
pub fn over(a: Option<f64>, b: Option<f64>) -> Option<f64> {
    Some(ratio(a, b)? - 1.0)
}

fn ratio(a: Option<f64>, b: Option<f64>) -> Option<f64> {
    Some(a? / b.filter(|b| *b > 0.0)?)
}

fn change(share: f64) -> String {
    format!("{:+.2} %", 100.0 * share)
}

/// A figure at the top.
#[derive(Serialize)]
pub struct Card {
    label: &'static str,
    value: String,
    note: String,
}

/// The figures at the top.
pub fn cards(eval: Option<&EvalReport>, log: Option<&TrainLog>) -> Vec<Card> {
    let card = |label, value, note: Option<String>| Card { label, value, note: note.unwrap_or_default() };
    let mut out = Vec::new();
    if let Some(e) = eval {
        let (b, q) = (&e.bits_per_byte, &e.qei_metrics);
        let note = gap(e).map(|g| format!("teacher {}, gap {:+.1} %", or_dash(b.teacher, number), 100.0 * g));
        out.push(card("Held-out bits per byte", or_dash(b.student, number), note));
        out.push(card("QEI", or_dash(q.qei, number), Some("quality ratio over memory ratio".into())));
        out.push(card("QEI × speed", or_dash(q.qei_speed, number), Some("QEI times the ratio of tokens per second".into())));
        let note = ratio(q.student_tokens_per_second, q.teacher_tokens_per_second).map(|r| format!("{r:.2} × the teacher"));
        out.push(card("Decode, tokens/s", or_dash(q.student_tokens_per_second, number), note));
        let (ours, theirs) = (figure(q.student_memory_planned_bytes), figure(q.teacher_memory()));
        let note = ratio(ours, theirs).map(|r| format!("{r:.2} × the teacher as it would be run"));
        out.push(card("Planned memory", or_dash(ours, bytes), note));
    }
    if let Some(l) = log {
        let note = figure(l.parameters).map(|p| format!("{} parameters", short(p)));
        out.push(card("Tokens trained on", or_dash(figure(l.seen_tokens), whole), note));
    }
    out
}

/// Held-out bits per byte of both models and of compressors.
#[derive(Serialize)]
pub struct Quality {
    bars: Option<Bars>,
    facts: Vec<Fact>,
}

/// See [`Quality`]: the student's evaluation and the models that were measured beside it.
pub fn quality(e: Option<&EvalReport>, beside: &[(String, TextReport)]) -> Quality {
    let none = EvalReport::default();
    let e = e.unwrap_or(&none);
    let b = &e.bits_per_byte;
    let mut facts = vec![
        fact("student over teacher", or_dash(gap(e), change)),
        fact("KL from the teacher, nats per token", or_dash(e.kl, number)),
        fact("top-1 agreement with the teacher", or_dash(e.top1_agreement, percent)),
        fact("valid JSON, student", or_dash(e.json_validity.student, percent)),
        fact("valid JSON, teacher", or_dash(e.json_validity.teacher, percent)),
        fact("valid JSON held to its schema, student", or_dash(e.json_validity_constrained.student, percent)),
        fact("valid JSON held to its schema, teacher", or_dash(e.json_validity_constrained.teacher, percent)),
    ];
    let against =
        |(stage, r): &(String, TextReport)| fact(format!("student over {stage}"), or_dash(over(b.student, r.bits_per_byte), change));
    facts.extend(beside.iter().map(against));
    known(&mut facts);
    facts.extend(e.text_fidelity.inexact().map(|(side, found)| {
        let comparable = if found.is_lossless() { "" } else { "; bits per byte are not comparable" };
        fact(format!("held-out text by the {side}'s tokenizer"), format!("{found}{comparable}"))
    }));
    facts.extend(b.equal_context.map(|c| {
        let gap = or_dash(over(Some(c.student), Some(c.teacher)), change);
        fact("student over teacher, equal context", format!("{gap} in windows of {} bytes", whole(c.mean_bytes)))
    }));
    let final_bits = b.student.zip(b.student_a8).map(|(s, a8)| change(s / a8 - 1.0));
    facts.extend(final_bits.map(|c| fact("cost of the final activation bits over A8", c)));
    Quality { bars: bits_per_byte(b, beside, e), facts }
}

fn bits_per_byte(b: &BitsPerByte, beside: &[(String, TextReport)], e: &EvalReport) -> Option<Bars> {
    let bar = |label: String, bits: Option<f64>, colour| bits.map(|v| Bar { label, length: v, written: format!("{v:.3}"), colour });
    let own = [
        ("student", b.student, "b0"),
        ("student at A8", b.student_a8, "b0"),
        ("student, sliding window", b.student_sliding, "b0"),
        ("teacher", b.teacher, "b1"),
        ("teacher, sliding window", b.teacher_sliding, "b1"),
        ("student, equal context", b.equal_context.map(|e| e.student), "b0"),
        ("teacher, equal context", b.equal_context.map(|e| e.teacher), "b1"),
    ];
    let own = own.into_iter().filter_map(|(name, bits, colour)| bar(name.into(), bits, colour));
    let beside = beside.iter().filter_map(|(stage, r)| {
        let kind = match (r.weights, r.activation_bits) {
            (Some(Weights::Float), _) => "full precision".to_owned(),
            (weights, bits) => {
                let rule = if weights == Some(Weights::Threshold) { "threshold" } else { "absmean" };
                format!("{rule}, {}", bits.map_or_else(|| "float activations".into(), |b| format!("A{b}")))
            }
        };
        bar(format!("{stage} ({kind})"), r.bits_per_byte, "b1")
    });
    let compressors = e.compressors.iter().filter_map(|c| {
        let primed = if c.primed { " after the training text" } else { "" };
        bar(format!("{}{primed}", c.name), c.bits_per_byte, "bm")
    });
    Bars::layout("Held-out bits per byte (lower is better)", own.chain(beside).chain(compressors).collect())
}

/// Memory, speed, quality and QEI of both sides.
#[derive(Serialize)]
pub struct Efficiency<'a> {
    /// What stands on each side: figure, student, teacher.
    sides: Vec<[String; 3]>,
    /// How each side's speed was measured.
    speeds: Vec<(&'static str, &'a str)>,
    /// Figure, student, teacher, ratio.
    rows: [[String; 4]; 5],
    /// Locked baselines: stage, facts.
    baselines: Vec<(&'a str, String)>,
    notes: &'a [String],
    device: Option<&'a str>,
}

/// See [`Efficiency`].
pub fn efficiency<'a>(e: &'a EvalReport, baselines: &'a [(String, Baseline)]) -> Efficiency<'a> {
    let q = &e.qei_metrics;
    let both = |name: &str, written: fn(f64) -> String, student, teacher| {
        [name.into(), or_dash(student, written), or_dash(teacher, written), or_dash(ratio(student, teacher), |r| format!("{r:.3}"))]
    };
    let qei = |name: &str, v| [name.into(), or_dash(v, number), "1".into(), String::new()];
    let quality = format!("quality ({})", q.quality_metric.as_deref().unwrap_or("not named"));
    let speeds = [("Student", &q.student_speed_measured), ("Teacher", &q.teacher_speed_measured)];
    Efficiency {
        sides: sides(&e.compared.student, e.compared.teacher.as_ref()),
        speeds: speeds.into_iter().filter_map(|(side, how)| Some((side, how.as_deref()?))).collect(),
        rows: [
            both(&quality, number, q.student_quality, q.teacher_quality),
            both("planned memory", bytes, figure(q.student_memory_planned_bytes), figure(q.teacher_memory())),
            both("decode, tokens per second", number, q.student_tokens_per_second, q.teacher_tokens_per_second),
            qei("QEI", q.qei),
            qei("QEI_speed", q.qei_speed),
        ],
        baselines: baselines.iter().map(|(stage, b)| (stage.as_str(), locked(b))).collect(),
        notes: &e.notes,
        device: e.device.as_deref(),
    }
}

/// What was compared with what; nothing of reports that do not say it.
fn sides(student: &Side, teacher: Option<&Side>) -> Vec<[String; 3]> {
    let row = |name: &str, of: &dyn Fn(&Side) -> String| [name.to_owned(), of(student), teacher.map_or_else(|| or_dash(None, number), of)];
    let all = vec![
        row("weights", &|s| s.weights.clone()),
        row("activations of ternary linears", &|s| s.activation_bits.map_or_else(|| "float".into(), |b| format!("{b} bits"))),
        row("window and stride, tokens", &|s| format!("{}, {}", s.window, s.stride)),
        row("weights as they would be run", &|s| bytes(s.weights_bytes as f64)),
        row("planned for the session that was measured", &|s| bytes(s.session_planned_bytes as f64)),
        row("measured of it", &|s| or_dash(figure(s.session_measured_bytes), bytes)),
    ];
    if student.weights.is_empty() { Vec::new() } else { all }
}

fn locked(b: &Baseline) -> String {
    let facts = [
        figure(b.parameters).map(|p| format!("{} parameters", whole(p))),
        Some(format!("{} answers", b.results.len())),
        b.json_validity.map(|v| format!("valid JSON {}", percent(v))),
    ];
    facts.into_iter().flatten().collect::<Vec<_>>().join(BETWEEN)
}

/// The gate and the proof of concept's list.
#[derive(Serialize)]
pub struct Gates<'a> {
    verdicts: Vec<Judged<'a>>,
    exit: Vec<Row<'a>>,
}

/// A gate's verdict.
#[derive(Serialize)]
struct Judged<'a> {
    stage: &'a str,
    accepted: bool,
    warnings: &'a [String],
    criteria: Vec<Row<'a>>,
}

/// A criterion.
#[derive(Serialize)]
struct Row<'a> {
    group: &'a str,
    name: &'a str,
    value: String,
    sign: &'static str,
    threshold: String,
    pass: Option<bool>,
    note: &'a str,
}

fn row(c: &Criterion) -> Row<'_> {
    Row {
        group: c.group.as_deref().unwrap_or_default(),
        name: &c.name,
        value: or_dash(c.value, number),
        sign: c.op.sign(),
        threshold: short(c.threshold),
        pass: c.pass,
        note: c.note.as_deref().unwrap_or_default(),
    }
}

/// See [`Gates`].
pub fn gates<'a>(verdicts: &'a [(String, Verdict)], exit: &'a [Criterion]) -> Gates<'a> {
    let judged = |(stage, v): &'a (String, Verdict)| Judged {
        stage,
        accepted: v.accepted,
        warnings: &v.warnings,
        criteria: v.criteria.iter().map(row).collect(),
    };
    Gates { verdicts: verdicts.iter().map(judged).collect(), exit: exit.iter().map(row).collect() }
}

/// One training.
#[derive(Serialize)]
pub struct Training<'a> {
    stage: &'a str,
    facts: String,
    charts: Vec<Chart>,
}

/// See [`Training`].
pub fn training<'a>(stage: &'a str, log: &TrainLog) -> Training<'a> {
    let facts = [
        log.preset.as_ref().map(|p| format!("preset {p}")),
        figure(log.parameters).map(|p| format!("{} parameters", whole(p))),
        log.optimizer.map(|o| if o == Optimizer::Muon { "muon".into() } else { "adamw".into() }),
        log.tau.map(|t| format!("τ {}", number(f64::from(t)))),
        log.kd_scale.map(|s| format!("KL × {}", if s == KdScale::Tau2 { "τ²" } else { "1" })),
        log.exact_tail_share.map(|s| format!("{} of the rows with their exact tail", percent(s))),
        targets(log),
        log.ternary_schedule.as_ref().map(|s| format!("ternary by {}", s.name())),
        figure(log.steps).map(|s| format!("{} steps", whole(s))),
        figure(log.seen_tokens).map(|s| format!("{} tokens seen", whole(s))),
        log.flip_share().map(|s| format!("flip at {} of the budget", percent(s))),
        log.validation.as_ref().and_then(|v| v.bits_per_byte).map(|b| format!("{} validation bits per byte", number(b))),
        figure(log.skipped_steps).map(|s| format!("{} steps skipped", whole(s))),
        figure(log.nan_steps).map(|s| format!("{} for NaN", whole(s))),
        figure(log.overflow_steps).map(|s| format!("{} overflows of the loss scale", whole(s))),
    ];
    Training { stage, facts: facts.into_iter().flatten().collect::<Vec<_>>().join(BETWEEN), charts: curves(log) }
}

/// Where the targets of its KL came from.
fn targets(log: &TrainLog) -> Option<String> {
    if let Some(t) = &log.teacher_in_loop {
        let weighed = if t.token_weight == TokenWeight::TeacherCe { ", tokens weighed by its cross-entropy" } else { "" };
        return Some(format!("targets: a teacher of {} parameters in the loop{weighed}", or_dash(figure(t.parameters), whole)));
    }
    let traces = log.kd_weight.is_some_and(|w| w > 0.0) && log.trace_tokens.is_some();
    traces.then(|| "targets: stored traces".to_owned())
}

/// Curves over the tokens seen; KL, CE and format loss only of a training that has them.
fn curves(log: &TrainLog) -> Vec<Chart> {
    let line = |name, pick: fn(&Point) -> f64| Series {
        name,
        points: log.curve.iter().map(|p| (p.seen_tokens as f64, pick(p))).filter(|p| p.1.is_finite()).collect(),
    };
    let marks: Vec<(f64, String)> = log.flip().map(|f| (f.seen_tokens as f64, flip_label(log))).into_iter().collect();
    let chart = |title, series, from_zero| LineChart { title, x_label: "tokens seen", series, marks: &marks, from_zero }.layout();
    let some = |line: &Series| line.points.iter().any(|p| p.1 != 0.0);
    let mut losses = vec![line("total", |p| p.loss)];
    let kl = line("KL", |p| p.kl);
    if some(&kl) {
        losses.extend([kl, line("CE", |p| p.ce)]);
    }
    let norms = vec![line("before clipping", |p| p.grad_norm), line("after clipping", |p| p.grad_norm_clipped)];
    let evaluations = |pick: fn(&Evaluation) -> Option<f64>| {
        let all = log.validation.iter().flat_map(|v| &v.curve);
        all.filter_map(|v| Some((v.seen_tokens as f64, pick(v)?))).collect::<Vec<_>>()
    };
    let soft = evaluations(|v| v.soft.map(|s| s.bits_per_byte));
    let mut validation =
        vec![Series { name: if soft.is_empty() { "validation" } else { "hard codes" }, points: evaluations(|v| Some(v.bits_per_byte)) }];
    if !soft.is_empty() {
        validation.push(Series { name: "as it trains", points: soft });
    }
    let mut out = vec![
        chart("Loss (nats per token)", losses, false),
        chart("Learning rate", vec![line("learning rate", |p| p.lr)], true),
        chart("Gradient norm", norms, true),
        chart("Validation bits per byte", validation, false),
    ];
    let format = line("format loss", |p| p.format);
    if some(&format) {
        out.push(chart("Format loss (CE on structural tokens)", vec![format], false));
    }
    out.into_iter().flatten().collect()
}

fn flip_label(log: &TrainLog) -> String {
    let mut bits = log.curve.iter().map(|p| p.bits);
    match (bits.next(), bits.next_back()) {
        (Some(a), Some(b)) if a != b => format!("A{a} → A{b}"),
        _ => "activation flip".into(),
    }
}

/// What the traces hold.
#[derive(Serialize)]
pub struct Traces<'a> {
    stage: &'a str,
    facts: Vec<Fact>,
    other: Option<Bars>,
}

/// See [`Traces`].
pub fn traces<'a>(stage: &'a str, s: &TraceStats) -> Traces<'a> {
    let count = |n: u64| whole(n as f64);
    let mut facts = vec![
        fact("projection", if s.exact { "exact (one tokenizer)" } else { &s.method }),
        fact("sequences", count(s.sequences)),
        fact("teacher rows", count(s.teacher_rows)),
        fact("student rows", count(s.rows)),
        fact("rows that train by KL", count(s.tokens)),
        fact("rows without KL", count(s.dropped_rows)),
        fact("invalid teacher rows", percent(s.invalid_share)),
        fact("renormalised rows", count(s.renormalised_rows)),
        fact("mass of the student's candidates", percent(s.coverage)),
        fact("mass lost to Other by projection", percent(s.lost_mass)),
        fact("drawn token among the candidates", percent(s.drawn_in_top_k)),
        fact("tokens over several teacher tokens", percent(s.spanning_share)),
        fact("rows that hold their tail at each of `taus`", percent(s.exact_tail_share)),
        fact("structural rows", percent(s.structural_share)),
        fact("entropy over candidates and Other, nats", number(s.entropy)),
    ];
    facts.extend(s.rows_by_source.iter().map(|(source, n)| fact(format!("rows from {source}"), count(*n))));
    facts.extend(s.invalid.iter().map(|(why, n)| fact(format!("refused: {why}"), count(*n))));
    let bins = s.other_mass.iter().map(|b| Bar {
        label: format!("≤ {}", short(b.up_to)),
        length: b.rows as f64,
        written: count(b.rows),
        colour: "b2",
    });
    Traces { stage, facts, other: Bars::layout("Rows by the mass of Other", bins.collect()) }
}

/// Both answers to a prompt.
#[derive(Serialize)]
pub struct Sample<'a> {
    id: String,
    prompt: &'a str,
    student: &'a str,
    teacher: &'a str,
}

/// The first 40 prompts and their answers.
pub fn samples(e: &EvalReport) -> Vec<Sample<'_>> {
    let shown = e.results.iter().take(40);
    shown.map(|r| Sample { id: r.id.to_string(), prompt: &r.prompt, student: &r.student, teacher: &r.teacher }).collect()
}

/// Planned and measured memory of a shape.
#[derive(Serialize)]
pub struct Shape<'a> {
    stage: &'a str,
    why_not: Option<&'a str>,
    facts: Vec<Fact>,
    /// Activations, tokens per second, peak, steady.
    runs: Vec<[String; 4]>,
}

/// See [`Shape`].
pub fn dry_run<'a>(stage: &'a str, d: &'a DryRun) -> Shape<'a> {
    let mut facts = vec![
        fact("shape", d.preset.as_deref().unwrap_or("–")),
        fact("parameters", or_dash(d.parameters, whole)),
        fact("planned peak", or_dash(d.planned_bytes, bytes)),
        fact("measured peak", or_dash(d.measured_bytes, bytes)),
        fact("measured over planned", or_dash(d.ratio, |r| format!("{r:.3}"))),
        fact("to train, planned", or_dash(d.training.float32, bytes)),
        fact("to train in the least memory, planned", or_dash(d.training.all_three, bytes)),
        fact("with the teacher in the loop, planned", or_dash(d.training_in_loop.float32, bytes)),
        fact("with the teacher in the loop in the least memory, planned", or_dash(d.training_in_loop.all_three, bytes)),
        fact("largest difference of logits, A8 to A4", or_dash(d.max_logit_difference, number)),
        fact("mean difference of logits", or_dash(d.mean_logit_difference, number)),
    ];
    known(&mut facts);
    let runs = d.runs.iter().map(|r| {
        let activations = or_dash(r.bits, |b| format!("A{b:.0}"));
        [activations, or_dash(r.tokens_per_second, number), or_dash(r.peak_bytes, bytes), or_dash(r.steady_bytes, bytes)]
    });
    Shape { stage, why_not: d.why_not.as_deref().filter(|_| !d.ran), facts, runs: runs.collect() }
}

/// The stages that led here, with their times.
#[derive(Serialize)]
pub struct Pipeline {
    dag: Dag,
    /// Of all stages.
    time: String,
    /// Stage, kind, time, whether this run made it, device, metrics.
    stages: Vec<[String; 6]>,
}

/// See [`Pipeline`]; nothing where no stage is known.
pub fn pipeline(all: &[Provenance]) -> Option<Pipeline> {
    let nodes: Vec<Node> = all
        .iter()
        .map(|p| Node {
            name: &p.stage,
            kind: &p.kind,
            time: seconds(p.seconds),
            after: p.after.iter().filter_map(|a| all.iter().position(|o| o.stage == *a)).collect(),
            reused: p.reused,
        })
        .collect();
    let row = |p: &Provenance| {
        let metrics: Vec<String> = p.metrics.iter().map(|(k, v)| format!("{k} {}", number(*v))).collect();
        let made = if p.reused { "reused" } else { "executed" };
        [p.stage.clone(), p.kind.clone(), seconds(p.seconds), made.into(), p.device.clone(), metrics.join(", ")]
    };
    (!all.is_empty()).then(|| Pipeline {
        dag: Dag::layout(&nodes),
        time: seconds(all.iter().map(|p| p.seconds).sum()),
        stages: all.iter().map(row).collect(),
    })
}
