//! The gate's verdict and the report page, from made-up measurements.

mod harness;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use flow_engine::plugin::{InputArtifact, Provenance, Stage, Task, TaskContext};
use flow_stages::distil::{OtherBin, TraceStats};
use flow_stages::kinds::eval_gate::GateStage;
use flow_stages::kinds::report_html::{ReportParams, ReportStage};
use serde_json::{Value, json};

fn eval(qei: f64) -> Value {
    json!({
        "timestamp": 1, "device": "cpu (2 threads)", "qei_metrics": {
            "student_tokens_per_second": 900.0, "teacher_tokens_per_second": 450.0, "student_memory_bytes": 3_500_000,
            "teacher_memory_bytes": 22_000_000, "student_quality": 0.53, "teacher_quality": 0.54,
            "quality_metric": "1 / held-out bits per byte", "qei": qei, "qei_speed": 2.0 * qei
        },
        "bits_per_byte": {"student": 1.905, "student_a8": 1.89, "teacher": 1.85, "student_sliding": null, "teacher_sliding": 1.8},
        "compressors": [{"name": "bzip2 -9", "bits_per_byte": 2.37, "primed": false}, {"name": "xz -9e", "bits_per_byte": 1.97, "primed": true}],
        "kl": 0.21, "top1_agreement": 0.71, "json_validity": {"student": 0.9, "teacher": 0.97},
        "results": (0..12).map(|i| json!({"id": i, "prompt": "{\"a\":", "student": "<b>1</b> & 2}", "teacher": "2}\n"})).collect::<Vec<_>>(),
        "a_field_of_tomorrow": true
    })
}

fn baseline() -> Value {
    let results: Vec<Value> = (0..12).map(|i| json!({"id": i, "kind": "json", "prompt": "{\"a\":", "text": "2}\n"})).collect();
    json!({"teacher": {"preset": "poc-teacher"}, "template": "{prompt}", "decode_tokens_per_second": 450.0, "memory_bytes": 22_000_000,
           "parameters": 5_500_000, "results": results, "json_validity": 0.97})
}

fn log(flip_at: f64) -> Value {
    let curve: Vec<Value> = (0..700)
        .map(|i| {
            let seen = f64::from(i) * 500.0;
            json!({"step": i, "seen_tokens": seen as u64, "loss": 6.0 / (1.0 + f64::from(i) / 90.0) + 2.0, "kl": 1.2, "ce": 3.4, "format": 0.4,
                   "grad_norm": if i == 7 { Value::Null } else { json!(1.4) }, "grad_norm_clipped": 1.0, "lr": 0.02, "bits": if seen < flip_at * 350_000.0 { 8 } else { 4 }})
        })
        .collect();
    json!({"preset": "poc", "config": {}, "parameters": 4_400_000, "optimizer": "muon", "tau": 1.0, "budget_tokens": 350_000, "seen_tokens": 350_000,
           "steps": 700, "flip": {"step": 630, "seen_tokens": (flip_at * 350_000.0) as u64}, "skipped_steps": 0, "nan_steps": 0, "trace_tokens": 350_000, "curve": curve})
}

fn stats() -> Value {
    let s = TraceStats {
        method: "byte_aligned".into(),
        top_k: 20,
        sequences: 4_000,
        teacher_rows: 450_000,
        rows: 496_000,
        tokens: 496_000,
        coverage: 0.86,
        invalid: BTreeMap::from([("mass_above_one".to_owned(), 12)]),
        invalid_share: 12.0 / 450_000.0,
        other_mass: [1e-6, 1e-3, 0.1, 1.0].iter().enumerate().map(|(i, e)| OtherBin { up_to: *e, rows: 1000 * (i as u64 + 1) }).collect(),
        ..TraceStats::default()
    };
    serde_json::to_value(s).expect("JSON")
}

fn file(dir: &Path, name: &str, value: &Value) -> PathBuf {
    let path = dir.join(format!("{name}.json"));
    std::fs::write(&path, value.to_string()).expect("write");
    path
}

fn gate(dir: &Path, params: Value, qei: f64, flip_at: f64) -> Value {
    let (report, base, log, stats) =
        (file(dir, "eval", &eval(qei)), file(dir, "base", &baseline()), file(dir, "log", &log(flip_at)), file(dir, "stats", &stats()));
    let inputs = [
        ("report", "EvalReport", report.as_path()),
        ("baseline", "Baseline", base.as_path()),
        ("student", "TrainLog", log.as_path()),
        ("stats", "TraceStats", stats.as_path()),
    ];
    let out = harness::run(&GateStage, params, &inputs, &dir.join("gate")).expect("a refusal is no failure");
    serde_json::from_slice(&std::fs::read(&out["verdict"]).expect("verdict")).expect("JSON")
}

fn failing(verdict: &Value) -> Vec<&str> {
    let all = verdict["criteria"].as_array().expect("list");
    all.iter().filter(|c| c["pass"] == false).map(|c| c["name"].as_str().expect("name")).collect()
}

#[test]
fn the_gate_accepts_and_refuses_by_measured_values() {
    let dir = tempfile::tempdir().expect("dir");
    let verdict = gate(dir.path(), json!({}), 6.0, 0.9);
    assert!(verdict["accepted"] == true && failing(&verdict).is_empty(), "{verdict}");
    assert_eq!(verdict["criteria"].as_array().expect("list").len(), 6);
    assert_eq!(verdict["criteria"][0], json!({"name": "qei", "value": 6.0, "threshold": 0.2, "op": ">=", "pass": true}));
    let verdict = gate(dir.path(), json!({}), 0.15, 0.85);
    assert!(verdict["accepted"] == false);
    assert_eq!(failing(&verdict), ["qei", "flip_at"]);
    let params = json!({"json_validity": 0.95, "quality_ratio": 0.99, "max_bits_per_byte": 1.9, "min_seen_tokens": 1_000_000, "min_kd_tokens": 500_000, "qei": null});
    let verdict = gate(dir.path(), params, 0.1, 0.9);
    recorded("verdict.json", &(serde_json::to_string_pretty(&verdict).expect("JSON") + "\n"));
    assert_eq!(failing(&verdict), ["json_validity", "quality_ratio", "bits_per_byte", "seen_tokens", "kd_tokens"]);
    let bad = harness::run(&GateStage, json!({"flip_at": 90}), &[], dir.path()).expect_err("a share");
    assert!(bad.message.contains("flip_at"), "{bad}");
    let bad = harness::run(&GateStage, json!({"qie": 1}), &[], dir.path()).expect_err("unknown parameter");
    assert!(bad.message.contains("qie"), "{bad}");
}

fn report(dir: &Path, parts: &[(&str, &str, Value)]) -> (String, Value) {
    let inputs = parts
        .iter()
        .map(|(stage, ty, value)| InputArtifact {
            port: "parts".into(),
            path: file(dir, &format!("{stage}-{ty}"), value),
            ty: (*ty).into(),
            digest: "00".into(),
            from: format!("{stage}.out"),
            operational: Value::Null,
        })
        .collect();
    let one = |stage: &str, kind: &str, after: &[&str], seconds: f64| Provenance {
        stage: stage.into(),
        kind: kind.into(),
        after: after.iter().map(|a| (*a).to_owned()).collect(),
        seconds,
        reused: stage == "corpus",
        device: "cpu".into(),
        finished: 1,
        metrics: BTreeMap::from([("rows".to_owned(), 12_345.0)]),
    };
    let task = Task {
        flow: 1,
        stage: "report".into(),
        kind: ReportStage::KIND.into(),
        key: "00".into(),
        params: json!({}),
        inputs,
        outputs: ["report", "summary"].iter().map(|p| ((*p).to_owned(), dir.join(p))).collect(),
        dir: std::path::PathBuf::new(),
        state: dir.join("state"),
        answers: std::path::PathBuf::new(),
        withheld: Vec::new(),
        device: "cpu".into(),
        threads: 1,
        run: "20260131T235959.123Z-4711".into(),
        provenance: vec![
            one("corpus", "data.text", &[], 0.01),
            one("tokenizer", "tokenizer.bpe", &["corpus"], 1.2),
            one("student", "train.bitnet", &["corpus", "tokenizer"], 133.0),
            one("eval", "eval.student", &["student", "corpus"], 12.0),
        ],
    };
    let ctx = TaskContext::new(task, Arc::new(harness::Events::default()), Arc::new(AtomicBool::new(false)));
    ReportStage.run(ReportParams::default(), &ctx).expect("report");
    let page = std::fs::read_to_string(dir.join("report")).expect("page");
    (page, serde_json::from_slice(&std::fs::read(dir.join("summary")).expect("summary")).expect("JSON"))
}

/// A page as a browser reads it: one tag or text a line, entities of quotes and slashes as what they stand for.
fn read_as_html(page: &str) -> String {
    let mut out = String::new();
    for piece in page.split_inclusive('>').flat_map(|p| p.find('<').map_or(vec![p], |at| vec![&p[..at], &p[at..]])) {
        let text = piece.trim();
        if !text.is_empty() {
            out += &[("&#39;", "'"), ("&#x27;", "'"), ("&quot;", "\""), ("&#34;", "\""), ("&#x2f;", "/")]
                .iter()
                .fold(text.to_owned(), |t, (entity, c)| t.replace(entity, c));
            out.push('\n');
        }
    }
    out.replace(concat!("flow ", env!("CARGO_PKG_VERSION")), "flow VERSION")
}

/// `name` under `tests/data` holds `text`; `FLOW_RECORD=1` writes it anew.
fn recorded(name: &str, text: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data").join(name);
    if std::env::var_os("FLOW_RECORD").is_some() {
        std::fs::write(&path, text).expect("write");
    }
    let before = std::fs::read_to_string(&path).expect("recorded");
    let differs = before.lines().zip(text.lines()).find(|(a, b)| a != b);
    assert!(before == text, "{name} is another than recorded, first in {differs:?}; if that is meant, set FLOW_RECORD=1");
}

#[test]
fn the_page_holds_everything_and_nothing_from_outside() {
    let dir = tempfile::tempdir().expect("dir");
    let verdict = gate(dir.path(), json!({"json_validity": 0.95}), 6.0, 0.9);
    let dry = json!({"preset": "mini", "parameters": 138_000_000, "planned_bytes": 90_000_000, "measured_bytes": 91_000_000, "ratio": 1.011, "ran": true,
        "runs": [{"bits": 8, "tokens_per_second": 50.0, "peak_bytes": 91_000_000, "steady_bytes": 80_000_000}], "max_logit_difference": 0.4});
    let planned = json!({"preset": "7b", "planned_bytes": 3_000_000_000_u64, "ran": false, "why_not": "the plan takes 2.8 GiB"});
    let teacher_log =
        json!({"preset": "poc-teacher", "seen_tokens": 800_000, "curve": [{"seen_tokens": 0, "loss": 8}, {"seen_tokens": 1, "loss": 7}]});
    let (page, summary) = report(
        dir.path(),
        &[
            ("baseline", "Baseline", baseline()),
            ("projected", "TraceStats", stats()),
            ("teacher", "TrainLog", teacher_log),
            ("student", "TrainLog", log(0.9)),
            ("eval", "EvalReport", eval(6.0)),
            ("twin_bits", "TextReport", json!({"bits_per_byte": 1.98, "weights": "float", "activation_bits": 8})),
            ("ce_only_bits", "TextReport", json!({"bits_per_byte": 1.95, "weights": "absmean", "activation_bits": 4})),
            ("gate", "Verdict", verdict),
            ("dryrun", "DryRun", dry),
            ("dryrun7b", "DryRun", planned),
        ],
    );
    for wanted in [
        "A8 → A4",
        "Loss (nats per token)",
        "Gradient norm",
        "Learning rate",
        "bzip2 -9",
        "xz -9e after the training text",
        "refused",
        "json_validity",
        "mass_above_one",
        "&lt;b&gt;1&lt;/b&gt; &amp; 2}",
        "the plan takes 2.8 GiB",
        "train.bitnet",
        "2 min 13 s",
        "poc-teacher",
        "locked baseline",
        "twin_bits (full precision)",
        "ce_only_bits (absmean, A4)",
        "student over twin_bits</td><td class=\"num\">-3.79 %",
        "student over ce_only_bits</td><td class=\"num\">-2.31 %",
        "run 20260131T235959.123Z-4711",
    ] {
        assert!(page.to_lowercase().contains(&wanted.to_lowercase()), "{wanted}");
    }
    for outside in ["http", "src=", "href=", "url(", "@import", "<script", "<b>1</b>", ">NaN", ",NaN"] {
        assert!(!page.contains(outside), "{outside}");
    }
    for tag in ["section", "table", "svg", "figure", "div", "details", "main"] {
        let opened = page.matches(&format!("<{tag}>")).count() + page.matches(&format!("<{tag} ")).count();
        assert_eq!(opened, page.matches(&format!("</{tag}>")).count(), "{tag}");
    }
    recorded("report.html", &read_as_html(&page));
    recorded("summary.json", &(serde_json::to_string_pretty(&summary).expect("JSON") + "\n"));
    assert_eq!(summary["accepted"], false);
    let find = |group: &str, name: &str| {
        let all = summary["exit_criteria"].as_array().expect("list");
        all.iter().find(|c| c["group"] == group && c["name"] == name).cloned().expect(name)
    };
    assert_eq!(find("training", "seen_tokens")["value"], 350_000.0);
    assert_eq!((&find("training", "flip_at")["pass"], &find("evaluation", "qei")["pass"]), (&json!(true), &json!(true)));
    assert_eq!(
        (&find("version 1", "json_validity")["pass"], &find("continuous integration", "ci_minutes")["pass"]),
        (&json!(false), &Value::Null)
    );
    assert_eq!(summary["headline"]["gate"], "refused: json_validity");
    assert_eq!(summary["headline"]["held-out bits per byte"], "student 1.905, teacher 1.850 (+3.0 %)");
    if let Some(keep) = std::env::var_os("FLOW_KEEP_REPORT") {
        std::fs::write(keep, page).expect("copy");
    }
}

#[test]
fn a_report_of_little_is_still_a_page_and_bad_parts_are_named() {
    let dir = tempfile::tempdir().expect("dir");
    let (page, summary) = report(dir.path(), &[("student", "TrainLog", json!({}))]);
    assert!(page.contains("<h2>Training</h2>") && !page.contains("<h2>Quality</h2>"));
    assert!(summary["accepted"].is_null() && summary["exit_criteria"][0]["pass"].is_null());
    let bad = dir.path().join("bad.json");
    std::fs::write(&bad, "{\"qei_metrics\": 5}").expect("write");
    let base = file(dir.path(), "base", &baseline());
    let inputs = [("report", "EvalReport", bad.as_path()), ("baseline", "Baseline", base.as_path())];
    let error = harness::run(&GateStage, json!({}), &inputs, dir.path()).expect_err("not a report");
    assert!(error.message.contains("bad.json") && error.message.contains("EvalReport"), "{error}");
}

/// What stands between `open` and `close` wherever they do, with entities as what they stand for.
fn texts_in(page: &str, open: &str, close: &str) -> Vec<String> {
    let entities = [("&lt;", "<"), ("&gt;", ">"), ("&quot;", "\""), ("&#x27;", "'"), ("&#x2f;", "/"), ("&amp;", "&")];
    let decoded = |text: &str| entities.iter().fold(text.to_owned(), |t, (entity, c)| t.replace(entity, c));
    page.split(open).skip(1).filter_map(|rest| rest.split_once(close)).map(|(text, _)| decoded(text)).collect()
}

#[test]
fn texts_of_others_come_out_exactly_and_as_texts() {
    let dir = tempfile::tempdir().expect("dir");
    let texts = [
        "\n\n  two lines and two spaces before\n\tand a tab\n  \n",
        "</script><script>alert('1')</script></pre><b class=\"x\">& &amp; &lt;",
        "{{ 7*7 }} {% if true %} {%- endif -%} {# gone? #} {{ title|safe }}",
        "bell \u{7}, escape \u{1b}[1m, return \r\n, next line \u{85}, none \0, delete \u{7f}",
    ];
    let shown = texts.map(|t| t.replace(|c: char| c.is_control() && c != '\n' && c != '\t', "\u{fffd}"));
    let results: Vec<Value> =
        (0..6).map(|i| json!({"id": i, "prompt": texts[i % 4], "student": texts[(i + 1) % 4], "teacher": texts[(i + 2) % 4]})).collect();
    let eval = json!({"results": results, "notes": texts, "device": texts[2], "qei_metrics": {"quality_metric": texts[1]},
        "compressors": texts.map(|name| json!({"name": name, "bits_per_byte": 2.0}))});
    let criterion = |name| json!({"name": name, "value": 1.0, "threshold": 2.0, "op": ">=", "pass": false, "note": texts[2]});
    let verdict = json!({"accepted": false, "warnings": texts, "criteria": texts.map(criterion)});
    let log = json!({"preset": texts[3], "curve": [{"seen_tokens": 0, "loss": 8}, {"seen_tokens": 1, "loss": 7}]});
    let parts = [("eval", "EvalReport", eval), ("gate", "Verdict", verdict), ("<i>{{ title }}&'", "TrainLog", log)];
    let (page, _) = report(dir.path(), &parts);
    let answers: Vec<&String> = (0..6).flat_map(|i| [&shown[i % 4], &shown[(i + 1) % 4], &shown[(i + 2) % 4]]).collect();
    assert_eq!(texts_in(&page, "<pre>", "</pre>").iter().collect::<Vec<_>>(), answers);
    assert_eq!(texts_in(&page, "<li>", "</li>"), shown);
    assert_eq!(texts_in(&page, "<p class=\"bad\">Warning: ", "</p>"), shown);
    assert!(page.contains("<h3>&lt;i&gt;{{ title }}&amp;&#x27;</h3>"));
    assert!(!page.contains("<script") && !page.contains("<b class=\"x\""));
    assert!(!page.contains(|c: char| c.is_control() && c != '\n' && c != '\t'));
}
