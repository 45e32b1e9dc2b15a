//! Evaluation during training: its figures are those of a scoring of their own, it changes nothing, and the best checkpoint
//! survives a stop.

mod common;
mod harness;

use std::path::{Path, PathBuf};

use flow_stages::kinds::eval_text::TextEvalStage;
use flow_stages::kinds::teacher_train::TeacherStage;
use flow_stages::kinds::train_bitnet::StudentStage;
use harness::{run, run_and_stop};
use serde_json::{Value, json};

struct Texts {
    dir: tempfile::TempDir,
}

impl Texts {
    fn new() -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let text = std::fs::read_to_string(common::golden_dir().join("../../pipelines/data/corpus.txt")).expect("the shipped text");
        std::fs::write(dir.path().join("text"), &text[..24_000]).expect("a text");
        // Not a whole number of windows, and fewer of them than fill the last batch.
        std::fs::write(dir.path().join("validation"), &text[900_000..904_321]).expect("a text");
        Self { dir }
    }
    fn tokenizer() -> PathBuf {
        common::golden_dir().join("models/student-tokenizer-4096.json")
    }
    fn wired<'a>(&'a self, tokenizer: &'a Path, paths: &'a [PathBuf; 2], validated: bool) -> Vec<(&'a str, &'a str, &'a Path)> {
        let mut wired = vec![("text", "Text", paths[0].as_path()), ("tokenizer", "Tokenizer", tokenizer)];
        wired.extend(validated.then_some(("validation", "Text", paths[1].as_path())));
        wired
    }
    fn paths(&self) -> [PathBuf; 2] {
        ["text", "validation"].map(|n| self.dir.path().join(n))
    }
    /// Trains a student; its model and its log.
    fn student(&self, name: &str, more: Value, validated: bool, stop: Option<usize>) -> Option<(PathBuf, Value)> {
        let (tokenizer, paths, dir) = (Self::tokenizer(), self.paths(), self.dir.path().join(name));
        let mut params = json!({
            "preset": "poc", "layers": 1, "seq": 32, "shape": {"dim": 64, "heads": 2, "kv_heads": 1, "mlp": 128},
            "budget_tokens": 2048, "flip_fraction": 0.5, "recipe": {"batch": 4, "lr": 3e-3, "log_every": 1, "checkpoint_every": 3},
        });
        params.as_object_mut().expect("an object").extend(more.as_object().expect("an object").clone());
        let wired = self.wired(&tokenizer, &paths, validated);
        let out = match stop {
            Some(reports) => {
                assert!(run_and_stop(&StudentStage, params, &wired, &dir, reports).is_err(), "it was not stopped");
                return None;
            }
            None => run(&StudentStage, params, &wired, &dir).expect("trains"),
        };
        let log = serde_json::from_slice(&std::fs::read(&out["log"]).expect("a log")).expect("JSON");
        Some((out["student"].clone(), log))
    }
    /// Bits per byte of a model on the validation text, by `eval.text`.
    fn scored(&self, model: &Path, name: &str, ty: &str) -> f64 {
        let paths = self.paths();
        let wired = [("model", ty, model), ("text", "Text", paths[1].as_path())];
        let out = run(&TextEvalStage, json!({}), &wired, &self.dir.path().join(name)).expect("scores");
        let report: Value = serde_json::from_slice(&std::fs::read(&out["report"]).expect("a report")).expect("JSON");
        report["bits_per_byte"].as_f64().expect("a figure")
    }
}

fn bytes(model: &Path) -> Vec<u8> {
    std::fs::read(model.join("model.safetensors")).expect("weights")
}

/// A scorer holds embedding and head as float16; a training does not.
const HALF: f64 = 2e-3;

#[test]
fn an_evaluation_is_what_a_scoring_finds_and_changes_nothing() {
    let texts = Texts::new();
    let (plain, log) = texts.student("plain", json!({}), false, None).expect("trained");
    assert_eq!(log.get("validation"), None);
    for (name, weights, bits) in [("ternary", "absmean", 4), ("float", "float", 0)] {
        let (model, log) = texts.student(name, json!({"weights": weights, "eval": {"every": 5}}), true, None).expect("trained");
        let curve = log["validation"]["curve"].as_array().expect("a curve");
        let steps: Vec<u64> = curve.iter().map(|c| c["step"].as_u64().expect("a step")).collect();
        assert_eq!(steps, [5, 10, 15, 17], "{log}");
        assert_eq!(curve[3]["bits"], bits);
        let (said, scored) =
            (log["validation"]["bits_per_byte"].as_f64().expect("a figure"), texts.scored(&model, &format!("of {name}"), "Model"));
        assert!((said - scored).abs() < HALF * scored, "{said} {scored}");
        assert!(said > 1.0 && said < 8.0, "{said}");
        if name == "ternary" {
            assert!(bytes(&model) == bytes(&plain), "an evaluation changed the training");
        }
    }
    let (tokenizer, paths, dir) = (Texts::tokenizer(), texts.paths(), texts.dir.path().join("teacher"));
    let params =
        json!({"layers": 1, "seq": 32, "shape": {"dim": 64, "heads": 2, "kv_heads": 1, "mlp": 128}, "tokens": 600, "recipe": {"lr": 3e-3}});
    let out = run(&TeacherStage, params, &texts.wired(&tokenizer, &paths, true), &dir).expect("trains");
    let log: Value = serde_json::from_slice(&std::fs::read(&out["log"]).expect("a log")).expect("JSON");
    let (said, scored) =
        (log["validation"]["bits_per_byte"].as_f64().expect("a figure"), texts.scored(&out["teacher"], "of teacher", "Teacher"));
    assert!((said - scored).abs() < HALF * scored, "{said} {scored}");
}

/// At such a rate a training gets worse towards its end, so that the best is not the last.
#[test]
fn the_best_checkpoint_is_given_after_a_stop_too() {
    let texts = Texts::new();
    let wild = |best: bool| {
        json!({"eval": {"every": 2, "best": best}, "flip_fraction": 0.3,
            "recipe": {"optimizer": "adamw", "batch": 4, "lr": 0.4, "lr_min": 1.0, "warmup": 0.6, "schedule": "linear", "log_every": 1, "checkpoint_every": 3}})
    };
    let (model, log) = texts.student("whole", wild(true), true, None).expect("trained");
    let of = &log["validation"];
    let curve: Vec<(u64, u64, f64)> = of["curve"]
        .as_array()
        .expect("a curve")
        .iter()
        .map(|c| (c["step"].as_u64().expect("a step"), c["bits"].as_u64().expect("bits"), c["bits_per_byte"].as_f64().expect("a figure")))
        .collect();
    let best = curve.iter().filter(|c| c.1 == 4).min_by(|a, b| a.2.total_cmp(&b.2)).expect("evaluated after the flip");
    assert!(best.0 < curve[curve.len() - 1].0, "the last is the best: nothing is tested: {curve:?}");
    assert_eq!((of["step"].as_u64(), of["bits_per_byte"].as_f64()), (Some(best.0), Some(best.2)), "{of}");
    let scored = texts.scored(&model, "of best", "Model");
    assert!((scored - best.2).abs() < HALF * scored, "{scored} {}", best.2);
    let (last, _) = texts.student("last", wild(false), true, None).expect("trained");
    assert!(bytes(&last) != bytes(&model));
    for reports in [4, 9, 15] {
        let name = format!("stopped after {reports}");
        assert!(texts.student(&name, wild(true), true, Some(reports)).is_none());
        let (resumed, resumed_log) = texts.student(&name, wild(true), true, None).expect("trained");
        assert!(bytes(&resumed) == bytes(&model), "{reports}");
        assert_eq!(resumed_log, log, "{reports}");
    }
    // A crash between the two files: best parameters of a later step lie beside an earlier checkpoint.
    assert!(texts.student("torn", wild(true), true, Some(4)).is_none());
    let checkpoint = texts.dir.path().join("torn/state/training.safetensors");
    let earlier = std::fs::read(&checkpoint).expect("a checkpoint");
    assert!(texts.student("torn", wild(true), true, Some(7)).is_none());
    std::fs::write(&checkpoint, earlier).expect("restores");
    let (resumed, resumed_log) = texts.student("torn", wild(true), true, None).expect("trained");
    assert!(bytes(&resumed) == bytes(&model) && resumed_log == log);
}

#[test]
fn what_is_asked_for_must_be_there() {
    let texts = Texts::new();
    let (tokenizer, paths, dir) = (Texts::tokenizer(), texts.paths(), texts.dir.path().join("refused"));
    let refused = |params: Value, wired: &[(&str, &str, &Path)], words: &[&str]| {
        let error = run(&StudentStage, params, wired, &dir).expect_err("must refuse");
        let error = format!("{} {}", error.message, error.help.unwrap_or_default());
        words.iter().for_each(|w| assert!(error.contains(w), "{w}: {error}"));
    };
    let wired = texts.wired(&tokenizer, &paths, false);
    refused(json!({"eval": {"best": true}}), &wired, &["eval.best", "every"]);
    refused(json!({"shape": {"heads": 3}}), &wired, &["shape"]);
    std::fs::write(&paths[1], "").expect("writes");
    refused(json!({}), &texts.wired(&tokenizer, &paths, true), &["is empty", "validation: 0.05"]);
}
