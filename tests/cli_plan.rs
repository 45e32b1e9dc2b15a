//! What `flow plan` and the beginning of `flow run` say of time and memory.

use std::path::Path;
use std::process::Command;

use serde_json::Value;

#[path = "support/mod.rs"]
mod support;
use support::{Project, Ran};

/// Two trainings of a few steps.
const TRAININGS: &str = "\
flow: 1
stages:
  corpus: { use: data.text, with: { path: a.txt, holdout: 0.1 } }
  tokenizer: { use: tokenizer.bpe, in: { text: corpus.train }, with: { vocab_size: 280 } }
  teacher:
    use: teacher.train
    in: { text: corpus.train, tokenizer: tokenizer }
    with: { preset: poc, layers: 1, seq: 16, tokens: 64, recipe: { batch: 1 } }
  student:
    use: train.bitnet
    in: { text: corpus.train, tokenizer: tokenizer, init: teacher }
    with: { preset: poc, layers: 1, seq: 16, budget_tokens: 64, recipe: { batch: 1 } }
";

fn project() -> Project {
    let project = Project::new(TRAININGS);
    project.write("a.txt", &"# A\nAll that glitters is not gold; often have you heard that told.\n".repeat(40));
    project
}

/// `flow` with the kinds that ship.
fn flow(dir: &Path, args: &[&str]) -> Ran {
    let mut command = Command::new(env!("CARGO_BIN_EXE_flow"));
    command.args(args).current_dir(dir).env("FLOW_DEVICE", "cpu").env_remove("FLOW_CACHE_DIR");
    Ran::of(&command.output().unwrap())
}

/// Stages of a plan with an estimate: name, seconds, bytes.
fn estimates(ran: &Ran) -> Vec<(String, f64, u64)> {
    let all = ran.last()["execute"].as_array().unwrap().clone();
    let estimated = all.iter().filter(|e| !e["estimate"].is_null());
    let figures = |e: &Value| {
        let of = &e["estimate"];
        (e["stage"].as_str().unwrap().to_owned(), of["seconds"].as_f64().unwrap(), of["memory_bytes"].as_u64().unwrap())
    };
    estimated.map(figures).collect()
}

#[test]
fn the_main_jobs_trainings_have_estimates() {
    let cache = tempfile::tempdir().unwrap();
    let plan = |more: &[&str]| {
        let args = ["plan", "pipelines/poc.yaml", "--cache-dir", cache.path().to_str().unwrap()];
        flow(Path::new(env!("CARGO_MANIFEST_DIR")), &[&args, more].concat()).expect(0)
    };
    let json = plan(&["--json"]);
    let found = estimates(&json);
    assert_eq!(found.iter().map(|e| e.0.as_str()).collect::<Vec<_>>(), ["teacher", "student"]);
    for (stage, seconds, bytes) in &found {
        assert!(*seconds > 1.0 && *seconds < 1e5, "{stage}: {seconds} s");
        assert!(*bytes > 50 << 20 && *bytes < 1 << 30, "{stage}: {bytes} bytes");
    }
    assert!(json.last()["execute"].as_array().unwrap().iter().all(|e| e.get("estimate").is_none_or(Value::is_object)));
    let text = plan(&[]).out;
    let lines: Vec<&str> = text.lines().filter(|l| l.contains("on this machine")).collect();
    assert!(lines.len() == 3 && lines[0].starts_with("  teacher  ") && lines[1].starts_with("  student  "), "{text}");
    assert!(lines[1].contains("about ") && lines[1].ends_with(" MiB") && lines[2].starts_with("together about "), "{text}");
}

#[test]
fn what_is_reused_has_no_estimate_and_a_run_says_what_the_rest_takes() {
    let project = project();
    let dir = project.path("");
    let first = flow(&dir, &["run", "p.yaml", "teacher"]).expect(0);
    let line = first.err.lines().next().unwrap();
    assert!(line.starts_with("teacher: ") && line.contains(" on this machine, "), "{line}");
    let plan = || flow(&dir, &["plan", "p.yaml", "--json"]).expect(0);
    assert_eq!(estimates(&plan()).iter().map(|e| e.0.as_str()).collect::<Vec<_>>(), ["student"]);
    assert!(flow(&dir, &["plan", "p.yaml"]).expect(0).out.lines().all(|l| !l.starts_with("together")));
    let quiet = flow(&dir, &["run", "p.yaml", "--quiet"]).expect(0);
    assert!(!quiet.err.contains("on this machine"), "{}", quiet.err);
    assert!(estimates(&plan()).is_empty());
    let again = flow(&dir, &["run", "p.yaml", "--threads", "1"]).expect(0);
    assert!(!again.err.contains("on this machine"), "{}", again.err);
    let forced = flow(&dir, &["run", "p.yaml", "--check"]).expect(0);
    assert!(forced.err.starts_with("teacher, student: together "), "{}", forced.err);
}

#[test]
fn a_plan_that_does_not_fit_says_what_would_help() {
    let project = project();
    let large = ["--set", "stages.student.with.preset=7b", "--set", "stages.student.with.layers=32"];
    let ran = flow(&project.path(""), &[&["plan", "p.yaml"], &large[..]].concat()).expect(0);
    let note = ran.out.lines().find(|l| l.starts_with("note: student: plans ")).unwrap_or_else(|| panic!("{}", ran.out));
    assert!(note.contains(" GiB are free: its recipe can take `recompute: true`") && note.ends_with("`storage: float16`"), "{note}");
}

#[test]
fn sizes_that_nothing_has_leave_the_estimate_out() {
    let project = project();
    for (name, value) in
        [("layers", "100000000"), ("seq", "1000000000000"), ("recipe.batch", "1000000000000"), ("shape.mlp", "100000000000")]
    {
        let set = format!("stages.student.with.{name}={value}");
        let ran = flow(&project.path(""), &["plan", "p.yaml", "--json", "--set", &set]).expect(0);
        assert_eq!(estimates(&ran).iter().map(|e| e.0.as_str()).collect::<Vec<_>>(), ["teacher"], "{name}");
    }
}

#[test]
fn a_broken_model_file_breaks_no_plan() {
    let text = TRAININGS.replace("init: teacher }", "init: file }") + "  file: { use: teacher.file, with: { path: model.gguf } }\n";
    let project = Project::new(&text);
    project.write("a.txt", "# A\nsome text\n");
    for content in ["", "GGUF", "no model", "GGUF\u{3}\0\0\0\u{7f}\u{7f}\u{7f}\u{7f}\0\0\0\0\u{7f}\u{7f}\0\0\0\0\0\0"] {
        project.write("model.gguf", content);
        let ran = flow(&project.path(""), &["plan", "p.yaml", "--json"]).expect(0);
        assert_eq!(estimates(&ran).len(), 2, "{content:?}");
    }
}

#[test]
fn a_device_that_is_not_there_leaves_the_memory() {
    let project = project();
    let ran = flow(&project.path(""), &["plan", "p.yaml", "--json", "--device", "no such adapter"]).expect(0);
    let student = ran.last()["execute"].as_array().unwrap().iter().find(|e| e["stage"] == "student").unwrap()["estimate"].clone();
    assert!(student["seconds"].is_null() && student["memory_bytes"].as_u64().is_some(), "{student}");
}
