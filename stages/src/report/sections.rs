//! The sections of the page, each from the parts that it needs; a section without its part is left out.

use std::fmt::Write as _;

use flow_engine::plugin::Provenance;

use super::criteria::Criterion;
use super::parts::{Baseline, DryRun, EvalReport, Point, TextReport, TrainLog, Verdict};
use super::svg::{LineChart, Node, Series, bars, dag};
use super::text::{bytes, escape, number, or_dash, percent, seconds, short, whole};
use crate::distil::TraceStats;

/// A row of cells; cells that hold a number are set right by their header.
fn table(head: &[&str], rows: &[Vec<String>]) -> String {
    let class = |i: usize| if head[i].starts_with('#') { " class=\"num\"" } else { "" };
    let mut out = String::from("<div class=\"scroll\"><table><tr>");
    for (i, h) in head.iter().enumerate() {
        let _ = write!(out, "<th{}>{}</th>", class(i), escape(h.trim_start_matches('#')));
    }
    out.push_str("</tr>");
    for row in rows {
        out.push_str("<tr>");
        for (i, cell) in row.iter().enumerate().take(head.len()) {
            let _ = write!(out, "<td{}>{cell}</td>", class(i));
        }
        out.push_str("</tr>");
    }
    out + "</table></div>"
}

fn card(label: &str, value: &str, note: &str) -> String {
    format!(
        "<div class=\"card\"><div class=\"label\">{}</div><div class=\"value\">{}</div><div class=\"note\">{}</div></div>",
        escape(label),
        escape(value),
        escape(note)
    )
}

/// Student's bits per byte over the teacher's, as a share above 1.
pub fn gap(e: &EvalReport) -> Option<f64> {
    over(e.bits_per_byte.student, e.bits_per_byte.teacher)
}

/// One figure over another, as a share above 1.
pub fn over(a: Option<f64>, b: Option<f64>) -> Option<f64> {
    Some(a? / b.filter(|b| *b > 0.0)? - 1.0)
}

/// The figures at the top.
pub fn cards(eval: Option<&EvalReport>, log: Option<&TrainLog>) -> String {
    let mut out = String::from("<div class=\"cards\">");
    if let Some(e) = eval {
        let (b, q) = (&e.bits_per_byte, &e.qei_metrics);
        let note = gap(e).map_or(String::new(), |g| format!("teacher {}, gap {:+.1} %", or_dash(b.teacher, number), 100.0 * g));
        out += &card("Held-out bits per byte", &or_dash(b.student, number), &note);
        out += &card("QEI", &or_dash(q.qei, number), "quality ratio over memory ratio");
        out += &card("QEI × speed", &or_dash(q.qei_speed, number), "QEI times the ratio of tokens per second");
        let ratio = |a: Option<f64>, b: Option<f64>| Some(a? / b.filter(|b| *b > 0.0)?);
        let note =
            ratio(q.student_tokens_per_second, q.teacher_tokens_per_second).map_or(String::new(), |r| format!("{r:.2} × the teacher"));
        out += &card("Decode, tokens/s", &or_dash(q.student_tokens_per_second, number), &note);
        let note =
            ratio(q.teacher_memory_bytes, q.student_memory_bytes).map_or(String::new(), |r| format!("{r:.1} × less than the teacher"));
        out += &card("Memory", &or_dash(q.student_memory_bytes, bytes), &note);
    }
    if let Some(l) = log {
        let note = l.parameters.map_or(String::new(), |p| format!("{} parameters", short(p)));
        out += &card("Tokens trained on", &or_dash(l.seen_tokens, whole), &note);
    }
    out + "</div>"
}

fn verdict_word(pass: Option<bool>) -> &'static str {
    match pass {
        Some(true) => "<span class=\"good\">pass</span>",
        Some(false) => "<span class=\"bad\">fail</span>",
        None => "<span class=\"none\">not measured</span>",
    }
}

fn criterion_row(c: &Criterion) -> Vec<String> {
    let note = c.note.as_deref().map(escape).unwrap_or_default();
    let threshold = format!("{} {}", c.op.sign(), short(c.threshold));
    vec![escape(&c.name), or_dash(c.value, number), threshold, verdict_word(c.pass).into(), note]
}

/// The gate and the proof of concept's list.
pub fn gates(verdicts: &[(String, Verdict)], exit: &[Criterion]) -> String {
    let mut out = String::new();
    for (stage, v) in verdicts {
        let (class, word) = if v.accepted { ("good", "accepted") } else { ("bad", "refused") };
        let _ = write!(out, "<h3>{} <span class=\"badge {class}\">{word}</span></h3>", escape(stage));
        out.extend(v.warnings.iter().map(|warning| format!("<p class=\"bad\">Warning: {}</p>", escape(warning))));
        let rows: Vec<_> = v.criteria.iter().map(criterion_row).collect();
        out += &table(&["criterion", "#value", "#threshold", "verdict", ""], &rows);
    }
    let rows: Vec<_> = exit.iter().map(|c| [vec![escape(c.group.as_deref().unwrap_or_default())], criterion_row(c)].concat()).collect();
    out += "<h3>Exit criteria of the proof of concept</h3>";
    out += &table(&["group", "criterion", "#value", "#threshold", "verdict", ""], &rows);
    out
}

/// Loss curves of one training.
pub fn training(stage: &str, log: &TrainLog) -> String {
    let line = |name: &str, pick: fn(&Point) -> Option<f64>| Series {
        name: name.into(),
        points: log.curve.iter().filter_map(|p| Some((p.seen_tokens?, pick(p)?))).collect(),
    };
    let marks: Vec<(f64, String)> = log.flip.and_then(|f| f.seen_tokens).map(|at| (at, flip_label(log))).into_iter().collect();
    let chart = |title: &str, series: Vec<Series>, from_zero: bool| {
        LineChart { title: title.into(), x_label: "tokens seen".into(), series, marks: marks.clone(), from_zero }.draw()
    };
    let mut parts = vec![line("total", |p| p.loss)];
    let kl = line("KL", |p| p.kl);
    if kl.points.iter().any(|p| p.1 != 0.0) {
        parts.push(kl);
        parts.push(line("CE", |p| p.ce));
    }
    let mut out = format!("<h3>{}</h3><p>", escape(stage));
    let mut facts = Vec::new();
    facts.extend(log.preset.as_ref().map(|p| format!("preset {}", escape(p))));
    facts.extend(log.parameters.map(|p| format!("{} parameters", whole(p))));
    facts.extend(log.optimizer.as_ref().map(|o| escape(o)));
    facts.extend(log.tau.map(|t| format!("τ {}", number(t))));
    facts.extend(log.kd_scale.as_ref().map(|s| format!("KL × {}", if s == "tau2" { "τ²" } else { "1" })));
    facts.extend(log.exact_tail_share.map(|s| format!("{} of the rows with their exact tail", percent(s))));
    facts.extend(log.steps.map(|s| format!("{} steps", whole(s))));
    facts.extend(log.seen_tokens.map(|s| format!("{} tokens seen", whole(s))));
    facts.extend(log.flip_share().map(|s| format!("flip at {} of the budget", percent(s))));
    facts.extend(log.validation.bits_per_byte.map(|b| format!("{} validation bits per byte", number(b))));
    facts.extend(log.skipped_steps.map(|s| format!("{} steps skipped", whole(s))));
    facts.extend(log.nan_steps.map(|s| format!("{} for NaN", whole(s))));
    facts.extend(log.overflow_steps.map(|s| format!("{} overflows of the loss scale", whole(s))));
    out += &facts.join(" · ");
    out += "</p><div class=\"grid2\">";
    out += &chart("Loss (nats per token)", parts, false);
    out += &chart("Learning rate", vec![line("learning rate", |p| p.lr)], true);
    out += &chart("Gradient norm", vec![line("before clipping", |p| p.grad_norm), line("after clipping", |p| p.grad_norm_clipped)], true);
    let evaluations: Vec<_> = log.validation.curve.iter().filter_map(|v| Some((v.seen_tokens?, v.bits_per_byte?))).collect();
    if evaluations.len() > 1 {
        out += &chart("Validation bits per byte", vec![Series { name: "validation".into(), points: evaluations }], false);
    }
    let format = line("format loss", |p| p.format);
    if format.points.iter().any(|p| p.1 != 0.0) {
        out += &chart("Format loss (CE on structural tokens)", vec![format], false);
    }
    out + "</div>"
}

fn flip_label(log: &TrainLog) -> String {
    let mut bits = log.curve.iter().filter_map(|p| p.bits);
    match (bits.next(), bits.next_back()) {
        (Some(a), Some(b)) if a != b => format!("A{a:.0} → A{b:.0}"),
        _ => "activation flip".into(),
    }
}

/// Held-out bits per byte of both models and of compressors.
pub fn quality(e: Option<&EvalReport>, beside: &[(String, TextReport)]) -> String {
    let none = EvalReport::default();
    let e = e.unwrap_or(&none);
    let b = &e.bits_per_byte;
    let mut rows: Vec<(String, f64, String, &str)> = Vec::new();
    for (name, value, class) in [
        ("student", b.student, "b0"),
        ("student at A8", b.student_a8, "b0"),
        ("student, sliding window", b.student_sliding, "b0"),
        ("teacher", b.teacher, "b1"),
        ("teacher, sliding window", b.teacher_sliding, "b1"),
    ] {
        rows.extend(value.map(|v| (name.to_owned(), v, format!("{v:.3}"), class)));
    }
    for (stage, r) in beside {
        let kind = match (r.weights.as_deref(), r.activation_bits) {
            (Some("float"), _) => "full precision".to_owned(),
            (weights, bits) => format!("{}, A{}", weights.unwrap_or("ternary"), or_dash(bits.map(f64::from), whole)),
        };
        rows.extend(r.bits_per_byte.map(|v| (format!("{stage} ({kind})"), v, format!("{v:.3}"), "b1")));
    }
    for c in &e.compressors {
        let name = if c.primed { format!("{} after the training text", c.name) } else { c.name.clone() };
        rows.extend(c.bits_per_byte.map(|v| (name, v, format!("{v:.3}"), "bm")));
    }
    let mut facts = vec![
        vec!["student over teacher".to_owned(), or_dash(gap(e), |g| format!("{:+.2} %", 100.0 * g))],
        vec!["KL from the teacher, nats per token".into(), or_dash(e.kl, number)],
        vec!["top-1 agreement with the teacher".into(), or_dash(e.top1_agreement, percent)],
        vec!["valid JSON, student".into(), or_dash(e.json_validity.student, percent)],
        vec!["valid JSON, teacher".into(), or_dash(e.json_validity.teacher, percent)],
    ];
    let against = |(stage, r): &(String, TextReport)| {
        vec![format!("student over {}", escape(stage)), or_dash(over(b.student, r.bits_per_byte), |g| format!("{:+.2} %", 100.0 * g))]
    };
    facts.extend(beside.iter().map(against));
    facts.retain(|f| f[1] != "–");
    let a4 = b
        .student
        .zip(b.student_a8)
        .map(|(s, a8)| vec!["cost of the final activation bits over A8".into(), format!("{:+.2} %", 100.0 * (s / a8 - 1.0))]);
    facts.extend(a4);
    format!(
        "<div class=\"grid2\">{}<div>{}</div></div>",
        bars("Held-out bits per byte (lower is better)", &rows),
        table(&["figure", "#value"], &facts)
    )
}

/// Memory, speed, quality and QEI of both sides.
pub fn efficiency(e: &EvalReport, baselines: &[(String, Baseline)]) -> String {
    let q = &e.qei_metrics;
    let ratio = |a: Option<f64>, b: Option<f64>| or_dash(a.zip(b).filter(|(_, b)| *b > 0.0).map(|(a, b)| a / b), |r| format!("{r:.3}"));
    let quality = format!("quality ({})", q.quality_metric.as_deref().unwrap_or("not named"));
    let rows = vec![
        vec![
            escape(&quality),
            or_dash(q.student_quality, number),
            or_dash(q.teacher_quality, number),
            ratio(q.student_quality, q.teacher_quality),
        ],
        vec![
            "memory".into(),
            or_dash(q.student_memory_bytes, bytes),
            or_dash(q.teacher_memory_bytes, bytes),
            ratio(q.student_memory_bytes, q.teacher_memory_bytes),
        ],
        vec![
            "decode, tokens per second".into(),
            or_dash(q.student_tokens_per_second, number),
            or_dash(q.teacher_tokens_per_second, number),
            ratio(q.student_tokens_per_second, q.teacher_tokens_per_second),
        ],
        vec!["QEI".into(), or_dash(q.qei, number), "1".into(), String::new()],
        vec!["QEI_speed".into(), or_dash(q.qei_speed, number), "1".into(), String::new()],
    ];
    let mut out = table(&["figure", "#student", "#teacher", "#ratio"], &rows);
    for (stage, b) in baselines {
        let mut facts = Vec::new();
        facts.extend(b.parameters.map(|p| format!("{} parameters", whole(p))));
        facts.extend(b.memory_bytes.map(bytes));
        facts.extend(b.decode_tokens_per_second.map(|v| format!("decode {} tokens/s", number(v))));
        facts.extend(b.prefill_tokens_per_second.map(|v| format!("prefill {} tokens/s", number(v))));
        facts.push(format!("{} answers", b.results.len()));
        facts.extend(b.json_validity.map(|v| format!("valid JSON {}", percent(v))));
        let _ = write!(out, "<p>Locked baseline <b>{}</b>: {}</p>", escape(stage), facts.join(" · "));
    }
    if !e.notes.is_empty() {
        let _ = write!(out, "<ul>{}</ul>", e.notes.iter().map(|n| format!("<li>{}</li>", escape(n))).collect::<String>());
    }
    if let Some(d) = &e.device {
        let _ = write!(out, "<p>Measured on {}. QEI = (Qs/Qt) / (Ms/Mt); QEI_speed = QEI · TPSs/TPSt.</p>", escape(d));
    }
    out
}

/// What the traces hold.
pub fn traces(stage: &str, s: &TraceStats) -> String {
    let method = if s.exact { "exact (one tokenizer)" } else { &s.method };
    let mut rows = vec![
        vec!["projection".to_owned(), escape(method)],
        vec!["sequences".into(), whole(s.sequences as f64)],
        vec!["teacher rows".into(), whole(s.teacher_rows as f64)],
        vec!["student rows".into(), whole(s.rows as f64)],
        vec!["rows that train by KL".into(), whole(s.tokens as f64)],
        vec!["rows without KL".into(), whole(s.dropped_rows as f64)],
        vec!["invalid teacher rows".into(), percent(s.invalid_share)],
        vec!["renormalised rows".into(), whole(s.renormalised_rows as f64)],
        vec!["mass of the student's candidates".into(), percent(s.coverage)],
        vec!["mass lost to Other by projection".into(), percent(s.lost_mass)],
        vec!["drawn token among the candidates".into(), percent(s.drawn_in_top_k)],
        vec!["tokens over several teacher tokens".into(), percent(s.spanning_share)],
        vec!["rows that hold their tail at each of `taus`".into(), percent(s.exact_tail_share)],
        vec!["structural rows".into(), percent(s.structural_share)],
        vec!["entropy over candidates and Other, nats".into(), number(s.entropy)],
    ];
    rows.extend(s.rows_by_source.iter().map(|(k, n)| vec![format!("rows from {}", escape(k)), whole(*n as f64)]));
    rows.extend(s.invalid.iter().map(|(k, n)| vec![format!("refused: {}", escape(k)), whole(*n as f64)]));
    let histogram: Vec<_> =
        s.other_mass.iter().map(|b| (format!("≤ {}", short(b.up_to)), b.rows as f64, whole(b.rows as f64), "b2")).collect();
    format!(
        "<h3>{}</h3><div class=\"grid2\"><div>{}</div>{}</div>",
        escape(stage),
        table(&["figure", "#value"], &rows),
        bars("Rows by the mass of Other", &histogram)
    )
}

/// Answers side by side.
pub fn samples(e: &EvalReport) -> String {
    let one = |r: &super::parts::EvalResult| {
        format!(
            "<div class=\"sample\"><div class=\"prompt\">#{} <pre>{}</pre></div><div class=\"sides\"><div><h4>student</h4><pre>{}</pre></div><div><h4>teacher</h4><pre>{}</pre></div></div></div>",
            escape(&r.id.to_string()),
            escape(&r.prompt),
            escape(&r.student),
            escape(&r.teacher)
        )
    };
    let mut out: String = e.results.iter().take(4).map(one).collect();
    if e.results.len() > 4 {
        let _ = write!(out, "<details><summary>{} more</summary>", e.results.len().min(40) - 4);
        out.extend(e.results.iter().skip(4).take(36).map(one));
        out += "</details>";
    }
    out
}

/// Planned and measured memory of a shape.
pub fn dry_run(stage: &str, d: &DryRun) -> String {
    let mut rows = vec![
        vec!["shape".to_owned(), escape(d.preset.as_deref().unwrap_or("–"))],
        vec!["parameters".into(), or_dash(d.parameters, whole)],
        vec!["planned peak".into(), or_dash(d.planned_bytes, bytes)],
        vec!["measured peak".into(), or_dash(d.measured_bytes, bytes)],
        vec!["measured over planned".into(), or_dash(d.ratio, |r| format!("{r:.3}"))],
        vec!["to train, planned".into(), or_dash(d.training.float32, bytes)],
        vec!["to train in the least memory, planned".into(), or_dash(d.training.all_three, bytes)],
        vec!["largest difference of logits, A8 to A4".into(), or_dash(d.max_logit_difference, number)],
        vec!["mean difference of logits".into(), or_dash(d.mean_logit_difference, number)],
    ];
    rows.retain(|r| r[1] != "–");
    let mut out = format!("<h3>{}</h3>", escape(stage));
    if let Some(why) = d.why_not.as_ref().filter(|_| !d.ran) {
        let _ = write!(out, "<p>Planned only: {}</p>", escape(why));
    }
    out += &table(&["figure", "#value"], &rows);
    if !d.runs.is_empty() {
        let runs: Vec<_> = d
            .runs
            .iter()
            .map(|r| {
                vec![
                    or_dash(r.bits, |b| format!("A{b:.0}")),
                    or_dash(r.tokens_per_second, number),
                    or_dash(r.peak_bytes, bytes),
                    or_dash(r.steady_bytes, bytes),
                ]
            })
            .collect();
        out += &table(&["activations", "#tokens per second", "#peak", "#steady"], &runs);
    }
    out
}

/// The stages that led here, with their times.
pub fn pipeline(all: &[Provenance]) -> String {
    let nodes: Vec<Node> = all
        .iter()
        .map(|p| Node {
            name: p.stage.clone(),
            detail: format!("{}, {}", p.kind, seconds(p.seconds)),
            after: p.after.iter().filter_map(|a| all.iter().position(|o| o.stage == *a)).collect(),
            reused: p.reused,
        })
        .collect();
    let rows: Vec<_> = all
        .iter()
        .map(|p| {
            let metrics: Vec<String> = p.metrics.iter().map(|(k, v)| format!("{} {}", escape(k), number(*v))).collect();
            vec![
                escape(&p.stage),
                escape(&p.kind),
                seconds(p.seconds),
                if p.reused { "reused".into() } else { "executed".into() },
                escape(&p.device),
                metrics.join(", "),
            ]
        })
        .collect();
    let total: f64 = all.iter().map(|p| p.seconds).sum();
    format!(
        "{}<p>{} stages, {} of computation in all.</p>{}",
        dag(&nodes),
        all.len(),
        seconds(total),
        table(&["stage", "kind", "#seconds", "this run", "device", "metrics"], &rows)
    )
}
