//! The pipelines that ship: they plan, they are what they say, and `flow schema` knows every word of them.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;

use serde_json::Value;

const SHIPPED: [&str; 4] = ["pipelines/poc.yaml", "pipelines/poc-full.yaml", "pipelines/http.yaml", "tests/data/tiny/tiny.yaml"];

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
    serde_yaml::from_str(&text).unwrap()
}

#[test]
fn every_shipped_pipeline_plans() {
    for path in SHIPPED {
        let stages = read(path)["stages"].as_object().unwrap().len();
        let out = flow(&["run", path, "--dry-run", "--json"]);
        let last: Value = serde_json::from_str(out.lines().last().unwrap()).unwrap();
        assert_eq!(last["event"], "planned");
        let count = |list: &str| last[list].as_array().unwrap().len();
        assert_eq!(count("execute") + count("reuse"), stages, "{path}");
    }
}

/// Collects every `$ref`-free object schema below `schema` that tells a stage of kind `kind` apart.
fn kinds(schema: &Value) -> BTreeSet<String> {
    let uses = &schema["properties"]["stages"]["additionalProperties"]["properties"]["use"]["oneOf"];
    uses.as_array().unwrap().iter().map(|k| k["const"].as_str().unwrap().to_owned()).collect()
}

/// Checks `value` against the parts of JSON Schema that `flow schema` uses; gives what does not fit.
fn wrong(root: &Value, schema: &Value, value: &Value, at: &str) -> Vec<String> {
    let mut out = Vec::new();
    if let Some(reference) = schema["$ref"].as_str() {
        let target = root.pointer(reference.trim_start_matches('#')).unwrap_or_else(|| panic!("no {reference}"));
        out.extend(wrong(root, target, value, at));
    }
    for part in schema["allOf"].as_array().into_iter().flatten() {
        out.extend(wrong(root, part, value, at));
    }
    for list in ["anyOf", "oneOf"] {
        if let Some(choices) = schema[list].as_array() {
            let tried: Vec<_> = choices.iter().map(|c| wrong(root, c, value, at)).collect();
            if tried.iter().all(|t| !t.is_empty()) {
                out.push(format!("{at}: fits nothing of {list}: {:?}", tried.concat()));
            }
        }
    }
    if schema.get("if").is_some() {
        let branch = if wrong(root, &schema["if"], value, at).is_empty() { "then" } else { "else" };
        if schema.get(branch).is_some() {
            out.extend(wrong(root, &schema[branch], value, at));
        }
    }
    if schema.get("const").is_some_and(|c| c != value) {
        out.push(format!("{at}: {value} is not {}", schema["const"]));
    }
    if let (Some(pattern), Some(text)) = (schema["pattern"].as_str(), value.as_str()) {
        // The only pattern there is: a variable.
        assert_eq!(pattern, r"\$\{.+\}");
        if !text.contains("${") {
            out.push(format!("{at}: {text} names no variable"));
        }
    }
    if schema["enum"].as_array().is_some_and(|e| !e.contains(value)) {
        out.push(format!("{at}: {value} is not one of {}", schema["enum"]));
    }
    let is = |kind: &str| match kind {
        "object" => value.is_object(),
        "array" => value.is_array(),
        "string" => value.is_string(),
        "boolean" => value.is_boolean(),
        "null" => value.is_null(),
        "integer" => value.is_i64() || value.is_u64(),
        _ => value.is_number(),
    };
    let types: Vec<&str> = match &schema["type"] {
        Value::String(one) => vec![one],
        Value::Array(many) => many.iter().filter_map(Value::as_str).collect(),
        _ => Vec::new(),
    };
    if !types.is_empty() && !types.iter().any(|t| is(t)) {
        out.push(format!("{at}: {value} is no {types:?}"));
    }
    if let Some(fields) = value.as_object() {
        for required in schema["required"].as_array().into_iter().flatten() {
            if !fields.contains_key(required.as_str().unwrap()) {
                out.push(format!("{at}: {required} is missing"));
            }
        }
        for (name, field) in fields {
            let at = format!("{at}.{name}");
            match (schema["properties"].get(name), schema.get("additionalProperties")) {
                (Some(known), _) => out.extend(wrong(root, known, field, &at)),
                (None, Some(Value::Bool(false))) => out.push(format!("{at}: unknown")),
                (None, Some(more @ Value::Object(_))) => out.extend(wrong(root, more, field, &at)),
                _ => {}
            }
        }
    }
    if let (Some(items), Some(schema)) = (value.as_array(), schema.get("items")) {
        for (i, item) in items.iter().enumerate() {
            out.extend(wrong(root, schema, item, &format!("{at}[{i}]")));
        }
    }
    out
}

#[test]
fn the_schema_accepts_every_shipped_pipeline() {
    let schema: Value = serde_json::from_str(&flow(&["schema"])).unwrap();
    for path in SHIPPED {
        let problems = wrong(&schema, &schema, &read(path), "");
        assert!(problems.is_empty(), "{path}: {problems:#?}");
    }
}

#[test]
fn the_schema_refuses_what_is_wrong() {
    let schema: Value = serde_json::from_str(&flow(&["schema"])).unwrap();
    let refuses = |what: &str, change: &dyn Fn(&mut Value)| {
        let mut pipeline = read("pipelines/poc.yaml");
        change(&mut pipeline);
        assert!(!wrong(&schema, &schema, &pipeline, "").is_empty(), "{what}");
    };
    refuses("a kind", &|p| p["stages"]["student"]["use"] = "train.bitnett".into());
    refuses("a parameter", &|p| p["stages"]["student"]["with"]["budget_token"] = 5.into());
    refuses("a type", &|p| p["stages"]["student"]["with"]["layers"] = "two".into());
    refuses("a key of a stage", &|p| p["stages"]["student"]["inputs"] = Value::Null);
    refuses("a version", &|p| p["flow"] = 2.into());
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
    let kinds = |path: &str| -> Vec<(String, String)> {
        let stages = read(path);
        stages["stages"].as_object().unwrap().iter().map(|(n, s)| (n.clone(), s["use"].to_string())).collect()
    };
    assert_eq!(kinds("pipelines/poc-full.yaml"), kinds("pipelines/poc.yaml"));
}
