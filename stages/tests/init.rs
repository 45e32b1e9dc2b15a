//! `init` of `train.bitnet`: students that begin as what is kept of a model.

mod harness;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use flow_engine::plugin::{Stage, StageError};
use flow_lm::config::{ModelConfig, Weights};
use flow_lm::format::tensors::TensorSource as _;
use flow_lm::format::{self, load, load_with_tokenizer};
use flow_lm::tokenizer::Tokenizer;
use flow_lm::train::initial_values;
use flow_stages::kinds::bitnet_dryrun::DryRunStage;
use flow_stages::kinds::eval_text::TextEvalStage;
use flow_stages::kinds::train_bitnet::{StudentParams, StudentStage};
use harness::{golden, made_up, run};
use serde_json::{Value, json};

/// A recipe that leaves the parameters where they begin.
fn still(params: &Value) -> Value {
    let mut all = json!({
        "preset": "init", "seq": 32, "budget_tokens": 100, "flip_fraction": null, "seed": 5, "recipe": {"batch": 2, "lr": 1e-9, "muon_lr": 1e-9}
    });
    for (name, value) in params.as_object().into_iter().flatten() {
        all[name] = value.clone();
    }
    all
}

/// The beginning of the shipped text.
fn text(dir: &Path) -> PathBuf {
    let corpus = std::fs::read_to_string(harness::corpus()).expect("the shipped text");
    std::fs::write(dir.join("text"), &corpus[..8_000]).expect("a text");
    dir.join("text")
}

fn tokenizer() -> PathBuf {
    golden().join("models/student-tokenizer-4096.json")
}

/// A full-precision model of two layers over the vocabulary of [`tokenizer`], without SubLN.
fn model(dir: &Path, change: impl FnOnce(&mut ModelConfig)) -> PathBuf {
    let tokenizer = tokenizer();
    let vocab = Tokenizer::load(&tokenizer).expect("reads").vocab_size();
    let mut config = ModelConfig { weights: Weights::Float, sub_norm: false, layers: 2, heads: 4, ..harness::small_model(vocab) };
    (config.kv_heads, config.head_dim) = (2, 8);
    change(&mut config);
    let values = made_up(&config);
    let to = dir.join("model");
    format::save(&to, &config, values.iter().map(|(n, v)| (n.as_str(), v.as_slice())), Some(&tokenizer), &json!({})).expect("writes");
    to
}

fn log_of(out: &BTreeMap<String, PathBuf>) -> Value {
    serde_json::from_slice(&std::fs::read(&out["log"]).expect("a log")).expect("JSON")
}

fn said(e: &StageError) -> String {
    format!("{} {}", e.message, e.help.as_deref().unwrap_or_default())
}

/// A plan of teacher, student and chunk: the shape is the teacher's, the teacher's matrices take two bytes a parameter, and no
/// logits of the batch are in it.
#[test]
fn a_dry_run_plans_a_teacher_in_the_loop() {
    let dir = tempfile::tempdir().expect("a directory");
    let from = golden().join("models/tiny-llama");
    let wired = [("teacher", "Teacher", from.as_path())];
    let params = json!({"preset": "init", "batch": 8, "seq": 64, "run": true});
    let out = run(&DryRunStage, params, &wired, &dir.path().join("a")).expect("plans and runs");
    let report: Value = serde_json::from_slice(&std::fs::read(&out["report"]).expect("a report")).expect("JSON");
    let there = load(&from).expect("loads").config;
    assert_eq!(
        (&report["config"]["dim"], &report["config"]["vocab"], &report["config"]["weights"]),
        (&json!(there.dim), &json!(there.vocab), &json!("absmean"))
    );
    assert!(report["ran"] == true && report["runs"].as_array().is_some_and(|r| r.len() == 2), "{report}");
    let of = |plan: &str, field: &str| report[plan][field].as_u64().unwrap_or_else(|| panic!("{plan}.{field} of {report}"));
    let (rows, chunk) = (of("training_in_loop", "rows_at_once"), of("training_in_loop", "chunk_bytes"));
    assert!(rows < 8 * 64 && chunk == 2 * rows * there.vocab as u64 * 4);
    assert_eq!(of("training_in_loop", "teacher_parameters"), there.parameters() as u64);
    let logits = 8 * 64 * there.vocab as u64 * 4;
    let (with, without) = (of("training_in_loop", "float32"), of("training", "float32"));
    assert!(with + logits > without + chunk / 2 + 2 * there.parameters() as u64 * 9 / 10, "{with} {without}");
    assert!(of("training_in_loop", "all_three") < with);
    let error = DryRunStage.wiring(&serde_json::from_value(json!({"preset": "init"})).expect("parameters"), &[]).expect_err("no model");
    assert!(said(&error).contains("`teacher` is not wired"), "{}", said(&error));
}

#[test]
fn a_student_has_the_shape_and_the_tokenizer_of_what_is_kept() {
    let dir = tempfile::tempdir().expect("a directory");
    let (text, from) = (text(dir.path()), golden().join("models/tiny-llama"));
    let kept = json!({"from": "teacher", "layers": [1], "width": {"heads": 4, "mlp": 96}, "sub_norm": "insert", "calibration_tokens": 200});
    let params = still(&json!({"init": kept}));
    let wired = [("text", "Text", text.as_path()), ("teacher", "Teacher", &from)];
    let out = run(&StudentStage, params.clone(), &wired, &dir.path().join("a")).expect("trains");
    let (student, tokens) = load_with_tokenizer(&out["student"]).expect("loads");
    let (there, theirs) = load_with_tokenizer(&from).expect("loads");
    let wanted = ModelConfig {
        layers: 1,
        heads: 4,
        kv_heads: 1,
        mlp: 96,
        sub_norm: true,
        weights: Weights::Absmean,
        seq: 32,
        ..there.config.clone()
    };
    assert_eq!(student.config, wanted);
    assert_eq!((tokens.digest(), tokens.roles()), (theirs.digest(), theirs.roles()));
    let log = log_of(&out);
    let init = &log["init"];
    assert_eq!((&init["vocabulary"], &init["layers"], &init["calibration_tokens"]), (&json!("the same"), &json!([1]), &json!(200)));
    assert_eq!((&init["drawn"], &init["left_out"], &log["preset"]), (&json!([]), &json!([]), &json!("init")));
    let group = init["kv_heads"][0][0].as_u64().expect("one of two") as usize;
    let same = |a: &[f32], b: &[f32]| a.iter().zip(b).all(|(a, b)| (a - b).abs() <= 1e-6 * a.abs().max(1e-2));
    assert!(same(&student.tensors.tensor("embed"), &there.tensors.tensor("embed")));
    let v = there.tensors.tensor("layers.1.v");
    assert!(same(&student.tensors.tensor("layers.0.v"), &v[group * 8 * 64..][..8 * 64]));
    let g = init["sub_norm"][0][1].as_f64().expect("a weight") as f32;
    assert!(g > 0.0 && student.tensors.tensor("layers.0.mlp_sub_norm").iter().all(|x| (x - g).abs() < 1e-6), "{g}");
    // The same bytes again.
    let again = run(&StudentStage, params, &wired, &dir.path().join("b")).expect("trains");
    let bytes = |out: &BTreeMap<String, PathBuf>| std::fs::read(out["student"].join("model.safetensors")).expect("weights");
    assert!(bytes(&out) == bytes(&again));
}

#[test]
fn what_does_not_match_is_drawn_and_named() {
    let dir = tempfile::tempdir().expect("a directory");
    let (text, there) = (text(dir.path()), model(dir.path(), |_| ()));
    let tokenizer = tokenizer();
    let shape = json!({"dim": 32, "heads": 4, "kv_heads": 2, "mlp": 96, "sub_norm": false});
    let params = still(&json!({"preset": "poc", "layers": 1, "shape": shape, "init": {"from": "init"}}));
    let wired = [("text", "Text", text.as_path()), ("init", "Model", &there), ("tokenizer", "Tokenizer", &tokenizer)];
    let out = run(&StudentStage, params, &wired, dir.path()).expect("trains");
    let drawn = |tensor: &str, there: Value, here: Value| json!({"tensor": tensor, "there": there, "here": here});
    let log = log_of(&out);
    let wanted = json!([
        drawn("layers.0.gate", json!([64, 32]), json!([96, 32])),
        drawn("layers.0.up", json!([64, 32]), json!([96, 32])),
        drawn("layers.0.down", json!([32, 64]), json!([32, 96])),
    ]);
    assert_eq!(log["init"]["drawn"], wanted);
    let left_out: Vec<&str> = log["init"]["left_out"].as_array().expect("names").iter().filter_map(Value::as_str).collect();
    assert!(left_out.len() == 9 && left_out.iter().all(|n| n.starts_with("layers.1.")), "{left_out:?}");
    let (before, after) = (load(&there).expect("loads"), load(&out["student"]).expect("loads"));
    for t in after.config.tensors() {
        let begins = match t.name.rsplit('.').next() {
            Some("gate" | "up" | "down") => initial_values(&after.config, &t, 5),
            _ => before.tensors.tensor(&t.name).into_owned(),
        };
        let now = after.tensors.tensor(&t.name);
        assert!(begins.iter().zip(&*now).all(|(a, b)| (a - b).abs() <= 1e-6 * a.abs().max(1e-2)), "{}", t.name);
    }
}

/// A GGUF file brings its tokenizer; a directory its chat template too.
#[test]
fn files_and_directories_are_taken_by_their_path() {
    let dir = tempfile::tempdir().expect("a directory");
    let text = text(dir.path());
    let with_template = dir.path().join("chat");
    std::fs::create_dir(&with_template).expect("a directory");
    for name in ["config.json", "model.safetensors", "tokenizer.json", "generation_config.json"] {
        std::fs::copy(golden().join("models/tiny-llama").join(name), with_template.join(name)).expect("copies");
    }
    std::fs::write(with_template.join("chat_template.jinja"), "{{ messages[0].content }}").expect("writes");
    for (name, path) in [("gguf", golden().join("gguf/student-tq2_0.gguf")), ("directory", with_template)] {
        let params = still(&json!({"init": {"from": "file", "path": path, "every": 2}}));
        let out = run(&StudentStage, params, &[("text", "Text", &text)], &dir.path().join(name)).expect(name);
        let (student, tokens) = load_with_tokenizer(&out["student"]).expect(name);
        let (there, theirs) = load_with_tokenizer(&path).expect(name);
        assert_eq!((tokens.digest(), tokens.roles()), (theirs.digest(), theirs.roles()), "{name}");
        assert_eq!(student.config.layers, there.config.layers.div_ceil(2), "{name}");
        assert_eq!((student.config.vocab, student.config.sub_norm), (there.config.vocab, there.config.sub_norm), "{name}");
        assert_eq!(out["student"].join("chat_template.jinja").is_file(), name == "directory");
    }
}

/// A student of the teacher's tokenizer that begins as nobody.
#[test]
fn the_teacher_lends_its_tokenizer() {
    let dir = tempfile::tempdir().expect("a directory");
    let (text, teacher) = (text(dir.path()), golden().join("models/tiny-llama"));
    let params = still(&json!({"preset": "poc", "layers": 1, "shape": {"dim": 32, "heads": 2, "kv_heads": 1, "mlp": 64}}));
    let out = run(&StudentStage, params.clone(), &[("text", "Text", &text), ("teacher", "Teacher", &teacher)], dir.path()).expect("trains");
    let (student, tokens) = load_with_tokenizer(&out["student"]).expect("loads");
    assert_eq!(tokens.digest(), load_with_tokenizer(&teacher).expect("loads").1.digest());
    assert_eq!((student.config.vocab, log_of(&out).get("init")), (4096, None));
}

#[test]
fn models_that_cannot_be_taken_are_refused() {
    let dir = tempfile::tempdir().expect("a directory");
    let (text, tokenizer) = (text(dir.path()), tokenizer());
    let there = model(dir.path(), |_| ());
    let wired = [("text", "Text", text.as_path()), ("init", "Model", &there), ("tokenizer", "Tokenizer", &tokenizer)];
    let poc = |shape: Value| json!({"preset": "poc", "layers": 2, "shape": shape, "init": {"from": "init"}});
    let same = json!({"dim": 32, "heads": 4, "kv_heads": 2, "mlp": 64});
    let with = |field: &str, value: Value| {
        let mut shape = same.clone();
        shape[field] = value;
        poc(shape)
    };
    let kept = |kept: Value| json!({"init": kept});
    for (params, words) in [
        (with("dim", json!(64)), ["layers.0.", "[32]", "is needed"]),
        (with("rope_theta", json!(5e5)), ["RoPE base", "", ""]),
        (with("rope_scaling", json!({"type": "linear", "factor": 2.0})), ["RoPE is scaled", "", ""]),
        (with("tied", json!(false)), ["ties its head", "", ""]),
        (json!({"preset": "2b4t", "layers": 2, "shape": same, "init": {"from": "init"}}), ["another activation", "", ""]),
        (kept(json!({"from": "init", "layers": [2]})), ["no layer 2", "has 2", "0 to 1"]),
        (kept(json!({"from": "init", "width": {"heads": 3}})), ["3 of 4 query heads", "stay together", ""]),
        (json!({"group": 64, "init": {"from": "init"}}), ["groups of 64 do not divide", "the student's shape", ""]),
        (json!({"seq": 33, "init": {"from": "init"}}), ["`seq: 33`", "context of 16", "set `seq: 16`"]),
    ] {
        let mut params = still(&params);
        if params["seq"] == 32 {
            params["seq"] = json!(16);
        }
        let error = said(&run(&StudentStage, params.clone(), &wired, &dir.path().join("out")).expect_err("must refuse"));
        words.iter().for_each(|w| assert!(error.contains(w), "{params}: {w}: {error}"));
    }
    let ternary = model(&dir.path().join("ternary"), |c| (c.weights, c.sub_norm) = (Weights::Absmean, true));
    let wired = [("text", "Text", text.as_path()), ("init", "Model", &ternary)];
    for (params, words) in [
        (json!({"weights": "float", "init": {"from": "init"}}), "the model's weights are `absmean`"),
        (json!({"group": "row", "init": {"from": "init"}}), "in other groups"),
        (json!({"init": {"from": "init", "sub_norm": "insert"}}), "the model has SubLN"),
    ] {
        let mut params = still(&params);
        params["seq"] = json!(16);
        let error = said(&run(&StudentStage, params, &wired, &dir.path().join("out")).expect_err("must refuse"));
        assert!(error.contains(words), "{words}: {error}");
    }
}

#[test]
fn parameters_and_wires_that_do_not_go_together_are_refused() {
    let params = |value: &Value| serde_json::from_value::<StudentParams>(value.clone()).expect("parameters");
    for (value, path) in [
        (json!({"preset": "init"}), "preset"),
        (json!({"init": {"from": "file"}}), "init.path"),
        (json!({"init": {"from": "init", "path": "m.gguf"}}), "init.path"),
        (json!({"init": {"from": "init", "layers": [0], "every": 2}}), "init.every"),
        (json!({"init": {"from": "init", "layers": []}}), "init.layers"),
        (json!({"init": {"from": "init", "every": 0}}), "init.every"),
        (json!({"init": {"from": "init", "width": {"heads": 0}}}), "init.width.heads"),
        (json!({"init": {"from": "init", "calibration_tokens": 0}}), "init.calibration_tokens"),
        (json!({"preset": "init", "init": {"from": "init"}, "layers": 2}), "layers"),
        (json!({"preset": "init", "init": {"from": "init"}, "activation": "relu2"}), "activation"),
        (json!({"preset": "init", "init": {"from": "init"}, "shape": {"sub_norm": true}}), "shape.sub_norm"),
        (json!({"preset": "init", "init": {"from": "init"}, "shape": {"no_rope": [1]}}), "shape.no_rope"),
    ] {
        assert_eq!(StudentStage.check(&params(&value)).expect_err("must refuse").path, path, "{value}");
    }
    for value in [
        json!({"preset": "init", "init": {"from": "init"}, "shape": {"a4": "hybrid"}, "group": 256}),
        json!({"preset": "init", "init": {"from": "init"}, "ternary_head": true, "ternary_embedding": true}),
    ] {
        assert!(StudentStage.check(&params(&value)).is_ok(), "{value}");
    }
    let (init, width) = (json!({"from": "init"}), json!({"from": "init", "width": {"mlp": 8}}));
    for (init, wired, words) in [
        (None, &["text"][..], "no tokenizer"),
        (Some(&init), &["text", "tokenizer"], "nothing is wired to `init`"),
        (Some(&json!({"from": "teacher"})), &["text", "init"], "nothing is wired to `teacher`"),
        (Some(&json!({"from": "teacher"})), &["text", "init", "teacher"], "takes another one"),
        (Some(&width), &["traces", "init"], "none is wired to `text`"),
        (Some(&init), &["traces", "text", "init"], "both `traces` and `text`"),
    ] {
        let value = init.map_or(json!({}), |init| json!({"init": init}));
        let error = said(&StudentStage.wiring(&params(&value), wired).expect_err("must refuse"));
        assert!(error.contains(words), "{words}: {error}");
    }
    for (init, wired) in [(&width, &["traces", "text", "init"][..]), (&init, &["text", "init"])] {
        assert!(StudentStage.wiring(&params(&json!({"init": init})), wired).is_ok());
    }
}

/// What was a key stays one, and that of any model's shape holds the kernels of all.
#[test]
fn keys_of_before_stay_and_those_of_a_models_shape_hold_every_option() {
    let params = |value: &Value| serde_json::from_value::<StudentParams>(value.clone()).expect("parameters");
    let canonical = serde_json::to_value(params(&json!({"preset": "mini"}))).expect("JSON");
    assert!(canonical.get("init").is_none() && canonical["preset"] == "mini");
    let prints = |value: Value| StudentStage.fingerprints(&params(&value), &["text"]);
    let any = prints(json!({"preset": "init", "init": {"from": "init"}}));
    for shape in [json!({}), json!({"sub_norm": false}), json!({"qkv_bias": true, "head_norm": true, "sub_norm": false})] {
        let missing: Vec<_> = prints(json!({"shape": shape})).into_iter().filter(|p| !any.contains(p)).collect();
        assert!(missing.is_empty(), "{shape}: {missing:?}");
    }
    let measured = prints(json!({"init": {"from": "init", "sub_norm": "insert"}}));
    let inference = TextEvalStage.fingerprints(&serde_json::from_value(json!({})).expect("parameters"), &[]);
    assert!(!inference.is_empty() && inference.iter().all(|p| measured.contains(p)));
    assert!(measured.iter().any(|(name, _)| name.contains("rmsnorm_grad_g")));
    // Kernels of a schedule and of a teacher in the loop are in the keys of those who have them, and of nobody else.
    let has = |prints: &[(String, String)], kernel: &str| prints.iter().any(|(name, _)| name.ends_with(kernel));
    let soft = prints(json!({"ternary_schedule": "soft"}));
    assert!(has(&soft, "soften") && !has(&soft, "kd_full") && !has(&prints(json!({})), "soften"));
    let taught = StudentStage.fingerprints(&params(&json!({})), &["text", "teacher"]);
    assert!(has(&taught, "kd_full") && !has(&StudentStage.fingerprints(&params(&json!({})), &["traces", "teacher"]), "kd_full"));
}
