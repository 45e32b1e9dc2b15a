//! `flow bench …`: figures that add up, and what is refused.

use std::path::Path;
use std::process::Command;

use serde_json::Value;

#[path = "support/mod.rs"]
mod support;
use support::Ran;

fn flow(args: &[&str]) -> Ran {
    Ran::of(&Command::new(env!("CARGO_BIN_EXE_flow")).arg("bench").args(args).env("FLOW_DEVICE", "cpu").output().unwrap())
}

fn report(args: &[&str]) -> Value {
    serde_json::from_str(&flow(&[args, &["--json"]].concat()).expect(0).out).unwrap()
}

#[test]
fn training_is_measured_with_its_memory() {
    let run = |more: &[&str]| report(&[&["train", "--preset", "poc", "--batch", "1", "--seq", "32", "--steps", "1"], more].concat());
    let (kept, again, muon) = (run(&[]), run(&["--recompute", "--bits", "4"]), run(&["--muon"]));
    for r in [&kept, &again, &muon] {
        let (rate, ms) = (r["tokens_per_second"].as_f64().unwrap(), r["step_ms"].as_f64().unwrap());
        assert!((rate * ms / 1e3 / 32.0 - 1.0).abs() < 0.01, "{r}");
        assert_eq!((&r["preset"], &r["seq"]), (&Value::from("poc"), &Value::from(32)));
    }
    assert!(again["planned_bytes"].as_u64() < kept["planned_bytes"].as_u64());
    assert_eq!((&again["bits"], &muon["optimizer"]), (&Value::from(4), &Value::from("muon")));
}

#[test]
fn inference_from_a_file_is_measured() {
    let model = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/gguf/student-tq2_0.gguf").display().to_string();
    let r = report(&["infer", &model, "--prompt", "20", "--decode", "3", "--batch", "2", "--repeat", "1"]);
    assert!(r["prefill_tokens_per_second"].as_f64().unwrap() > 0.0 && r["decode_tokens_per_second"].as_f64().unwrap() > 0.0, "{r}");
    let r = report(&["infer", &model, "--prompt", "20", "--score", "--repeat", "1"]);
    assert!(r["score_tokens_per_second"].as_f64().unwrap() > 0.0 && r["decode_tokens_per_second"].is_null(), "{r}");
    assert!(flow(&["infer", "no such file.gguf"]).expect(1).err.contains("no such file.gguf"));
    assert!(flow(&["train", "--preset", "huge"]).expect(2).err.contains("poc, poc-teacher, mini, 2b4t, 7b"));
    assert!(flow(&["train", "--bits", "5"]).expect(2).err.contains("expected 8 or 4"));
}
