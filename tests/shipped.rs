//! The pipelines that ship: they plan, they are what they say, and `flow schema` knows every word of them.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;

use serde_json::{Value, json};

const SHIPPED: [&str; 7] = [
    "pipelines/poc.yaml",
    "pipelines/poc-full.yaml",
    "pipelines/smollm2.yaml",
    "pipelines/ternarise.yaml",
    "pipelines/http.yaml",
    "pipelines/ablation.yaml",
    "tests/data/tiny/tiny.yaml",
];

/// A model file that stands for the one which does not ship.
const MODEL: &str = concat!("model=", env!("CARGO_MANIFEST_DIR"), "/tests/golden/gguf/student-tq2_0.gguf");

fn flow(args: &[&str]) -> String {
    let cache = Path::new(env!("CARGO_TARGET_TMPDIR")).join("shipped-cache");
    let output = Command::new(env!("CARGO_BIN_EXE_flow"))
        .args(args)
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .env("FLOW_CACHE_DIR", cache)
        .env("FLOW_DEVICE", "cpu")
        .output()
        .unwrap();
    assert!(output.status.success(), "flow {args:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

fn read(path: &str) -> Value {
    let text = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(path)).unwrap();
    // Merges are YAML's, not JSON Schema's: an editor resolves them too.
    let mut yaml: serde_yaml::Value = serde_yaml::from_str(&text).unwrap();
    // What is merged may merge itself.
    for _ in 0..4 {
        yaml.apply_merge().unwrap();
    }
    serde_json::to_value(yaml).unwrap()
}

/// Stages that a run without flags has: names and kinds, a matrix as often as it has cells.
fn cells(pipeline: &Value) -> Vec<(String, String)> {
    let mut all = Vec::new();
    for (name, stage) in pipeline["stages"].as_object().unwrap().iter().filter(|(_, s)| s.get("when").is_none()) {
        let axes = stage["matrix"].as_object().into_iter().flatten().map(|(_, values)| values.as_array().unwrap().len());
        all.extend(std::iter::repeat_n((name.clone(), stage["use"].as_str().unwrap().to_owned()), axes.product()));
    }
    all
}

#[test]
fn every_shipped_pipeline_plans() {
    for path in SHIPPED {
        let stages = cells(&read(path)).len();
        let mut args = vec!["run", path, "--dry-run", "--json"];
        if path.contains("ablation") {
            args.push("*");
        }
        if path.contains("smollm2") || path.contains("ternarise") {
            args.extend(["--var", MODEL]);
        }
        let out = flow(&args);
        let last: Value = serde_json::from_str(out.lines().last().unwrap()).unwrap();
        assert_eq!(last["event"], "planned");
        let count = |list: &str| last[list].as_array().unwrap().len();
        assert_eq!(count("execute") + count("reuse"), stages, "{path}");
    }
}

/// Collects every `$ref`-free object schema below `schema` that tells a stage of kind `kind` apart.
fn kinds(schema: &Value) -> BTreeSet<String> {
    schema["$defs"]["kind"]["oneOf"].as_array().unwrap().iter().map(|k| k["const"].as_str().unwrap().to_owned()).collect()
}

/// What a validator of JSON Schema says against a pipeline.
fn wrong(schema: &Value, pipeline: &Value) -> Vec<String> {
    let validator = jsonschema::validator_for(schema).unwrap();
    validator.iter_errors(pipeline).map(|e| format!("{}: {e}", e.instance_path())).collect()
}

#[test]
fn the_schema_accepts_every_shipped_pipeline() {
    let schema: Value = serde_json::from_str(&flow(&["schema"])).unwrap();
    for path in SHIPPED {
        let problems = wrong(&schema, &read(path));
        assert!(problems.is_empty(), "{path}: {problems:#?}");
    }
}

#[test]
fn the_schema_refuses_what_is_wrong() {
    let schema: Value = serde_json::from_str(&flow(&["schema"])).unwrap();
    let refuses = |what: &str, change: &dyn Fn(&mut Value)| {
        let mut pipeline = read("pipelines/poc.yaml");
        change(&mut pipeline);
        assert!(!wrong(&schema, &pipeline).is_empty(), "{what}");
    };
    refuses("a kind", &|p| p["stages"]["student"]["use"] = "train.bitnett".into());
    refuses("a parameter", &|p| p["stages"]["student"]["with"]["budget_token"] = 5.into());
    refuses("a type", &|p| p["stages"]["student"]["with"]["layers"] = "two".into());
    refuses("a key of a stage", &|p| p["stages"]["student"]["inputs"] = Value::Null);
    refuses("a version", &|p| p["flow"] = 2.into());
    refuses("a remote without an address", &|p| p["remote"] = json!({"read_only": true}));
    refuses("a plugin without a command", &|p| p["plugins"] = json!({"mine": {"files": ["a"]}}));
    refuses("an axis that is no list", &|p| p["stages"]["student"]["matrix"] = json!({"tau": 1.3}));
    refuses("a pool of no size", &|p| p["pools"] = json!({"api": "many"}));
}

#[test]
fn the_schema_knows_every_key_of_a_pipeline() {
    let schema: Value = serde_json::from_str(&flow(&["schema"])).unwrap();
    let shell = |more: Value| {
        let mut stage = json!({"use": "shell", "with": {"run": "echo > $out"}});
        stage.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        stage
    };
    let pipeline = json!({
        "flow": 1, "name": "all", "include": ["a.yaml"], "vars": {"n": [1, 2], "word": "x"},
        "plugins": {"mine": {"command": ["./plugin"], "files": ["plugin"]}},
        "pools": {"api": 2},
        "remote": {"url": "s3://bucket/prefix", "read_only": true},
        "stages": {
            "a": shell(json!({"matrix": {"n": "${n}", "mark": ["!", true, 3]}, "retries": 2, "timeout": "5m", "labels": {"team": "x"}})),
            "b": shell(json!({"in": {"parts": ["a", "a[n=1]"]}, "after": ["a"], "requires": "gate", "resources": {"cpu": 1, "memory": "2GiB", "api": 1}})),
        },
        "targets": ["b", "a*"], "publish": {"out/b": "b"},
    });
    assert_eq!(wrong(&schema, &pipeline), [""; 0]);
}

#[test]
fn the_schema_names_every_kind() {
    let schema: Value = serde_json::from_str(&flow(&["schema"])).unwrap();
    let listed: BTreeSet<String> = flow(&["kinds"]).lines().map(|l| l.split_whitespace().next().unwrap().to_owned()).collect();
    assert_eq!(kinds(&schema), listed);
}

/// What `poc-full.yaml` promises: the `mini` student, 500,000 KD tokens, 1,000,000 seen, gated as such.
#[test]
fn the_full_size_is_the_proof_of_concepts() {
    let stages = &read("pipelines/poc-full.yaml")["stages"];
    assert_eq!(stages["student"]["with"]["preset"], "mini");
    assert!(stages["student"]["with"]["budget_tokens"].as_u64() >= Some(1_000_000));
    assert!(stages["gate"]["with"]["min_kd_tokens"].as_u64() >= Some(500_000));
    assert!(stages["gate"]["with"]["min_seen_tokens"].as_u64() >= Some(1_000_000));
    // The same stages of the same kinds as the main job.
    assert_eq!(cells(&read("pipelines/poc-full.yaml")), cells(&read("pipelines/poc.yaml")));
}

/// `smollm2.yaml` is the main job with another teacher, without the dry-runs; its student has other blocks than that.
#[test]
fn the_real_teacher_is_swapped_in_by_its_stage() {
    let (mut poc, real) = (read("pipelines/poc.yaml"), read("pipelines/smollm2.yaml"));
    assert_eq!(poc["stages"]["student"]["in"].as_object_mut().unwrap().remove("init"), Some("teacher".into()));
    assert_eq!(real["stages"]["teacher"]["use"], "teacher.file");
    for (name, stage) in real["stages"].as_object().unwrap().iter().filter(|(name, _)| *name != "teacher") {
        let original = &poc["stages"][name];
        assert_eq!(stage["use"], original["use"], "{name}");
        assert!(name == "report" || stage["in"] == original["in"], "{name}");
    }
}
