//! Keys that cannot lie: every built-in kind on a tiny fixed input gives the bytes that are recorded for its recipe.
//!
//! `recipes/digests.json` holds, per stage, what its key is made of and the digests of its pure outputs; `recipes/measured.json`
//! what stages measured, without what another machine or moment measures otherwise. `FLOW_RECORD=1` writes both anew, and
//! refuses where bytes changed and the recipe did not.

mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use flow_cache::Digest;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use support::Ran;

/// What is recorded of a stage.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Recorded {
    kind: String,
    revision: u64,
    /// Digest of what its key is made of, the machine left out.
    recipe: String,
    /// Pure output port → digest.
    outputs: BTreeMap<String, String>,
}

fn here(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests").join(path)
}

fn flow(dir: &Path, args: &[&str]) -> Ran {
    let mut command = Command::new(env!("CARGO_BIN_EXE_flow"));
    command.args(args).current_dir(dir).env("FLOW_DEVICE", "cpu").env("FLOW_CACHE_DIR", dir.join(".flow"));
    Ran::of(&command.env_remove("FLOW_REMOTE").output().unwrap()).expect(0)
}

/// Kind → its pure output ports; `None` for a shell stage's, which the pipeline names.
fn pure_ports(dir: &Path) -> BTreeMap<String, BTreeSet<String>> {
    let kinds: Value = serde_json::from_str(&flow(dir, &["kinds", "--json"]).out).unwrap();
    let name = |v: &Value| v.as_str().unwrap().to_owned();
    let ports = |k: &Value| {
        let outputs = k["outputs"].as_array().unwrap().iter();
        outputs.filter(|o| o["purity"] == "pure").map(|o| name(&o["name"])).collect()
    };
    kinds.as_array().unwrap().iter().map(|k| (name(&k["kind"]), ports(k))).collect()
}

fn entries(dir: &Path) -> Vec<Value> {
    let mut out = Vec::new();
    for shard in fs::read_dir(dir.join(".flow/actions")).unwrap().flatten() {
        for file in fs::read_dir(shard.path()).unwrap().flatten() {
            out.push(serde_json::from_slice(&fs::read(file.path()).unwrap()).unwrap());
        }
    }
    out
}

/// What every run measures anew: speeds, memory of processes, times, names of machines and runs, and what follows from them.
fn is_of_the_moment(key: &str) -> bool {
    key.ends_with("tokens_per_second")
        // What the twins hold beside their buffers follows the instruction set.
        || ["planned_bytes", "qei", "qei_speed", "timestamp", "session_planned_bytes", "session_measured_bytes", "speed_measured", "student_speed_measured", "teacher_speed_measured", "device", "free_bytes", "peak_bytes", "steady_bytes", "measured_bytes", "ratio", "run"]
            .contains(&key)
}

/// A measured artifact without what is of the moment.
fn settled(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            // Stages in the order in which they ended, with their times.
            fields.retain(|key, value| key != "stages" || !value.is_array());
            let of_the_moment = |v: &Value| v.as_str().is_some_and(is_of_the_moment);
            if fields.get("name").is_some_and(of_the_moment) {
                fields.remove("value");
            }
            for (key, value) in fields {
                match key.as_str() {
                    key if is_of_the_moment(key) => *value = Value::from("(measured)"),
                    "QEI" | "decode tokens/s" => *value = Value::from("(measured)"),
                    _ => settled(value),
                }
            }
        }
        Value::Array(items) => items.iter_mut().for_each(settled),
        _ => {}
    }
}

struct Made {
    recorded: BTreeMap<String, Recorded>,
    /// Stage and port → what it measured.
    measured: BTreeMap<String, Value>,
    kinds: BTreeSet<String>,
}

/// Runs every kind; what would be recorded.
fn made() -> Made {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    fs::create_dir(dir.join(".git")).unwrap();
    for name in [
        "data/tiny/tiny.yaml",
        "data/tiny/corpus.txt",
        "data/tiny/prompts.jsonl",
        "recipes/shell.yaml",
        "recipes/file.yaml",
        "recipes/http.yaml",
        "recipes/import.yaml",
        "recipes/foreign.parquet",
        "golden/gguf/student-tq2_0.gguf",
    ] {
        fs::copy(here(name), dir.join(Path::new(name).file_name().unwrap())).unwrap();
    }
    flow(dir, &["run", "tiny.yaml", "--quiet"]);
    flow(dir, &["run", "shell.yaml", "--quiet"]);
    flow(dir, &["run", "file.yaml", "--quiet"]);
    flow(dir, &["run", "http.yaml", "--quiet"]);
    flow(dir, &["run", "import.yaml", "--quiet"]);
    let pure = pure_ports(dir);
    let mut recorded_of = BTreeMap::new();
    let mut measured = BTreeMap::new();
    for entry in entries(dir) {
        let kind = entry["kind"].as_str().unwrap();
        let mut parts = entry["parts"].clone();
        parts["machine"] = Value::Null;
        let stage = entry["provenance"]["stage"].as_str().unwrap().to_owned();
        for (port, artifact) in entry["outputs"].as_object().unwrap() {
            // The page is recorded of made-up parts (stages/tests/report.rs); a directory's card tells speeds and memory.
            if kind == "shell"
                || artifact["tree"] == true
                || pure[kind].contains(port.as_str())
                || (kind, port.as_str()) == ("report.html", "report")
            {
                continue;
            }
            let (shard, name) = artifact["digest"].as_str().unwrap().split_at(2);
            let mut value = serde_json::from_slice(&fs::read(dir.join(".flow/objects").join(shard).join(name)).unwrap()).unwrap();
            settled(&mut value);
            measured.insert(format!("{stage}.{port}"), value);
        }
        let outputs = entry["outputs"].as_object().unwrap().iter();
        let outputs = outputs.filter(|(port, _)| kind == "shell" || pure[kind].contains(port.as_str()));
        let outputs = outputs.map(|(port, a)| (port.clone(), a["digest"].as_str().unwrap().to_owned()));
        let recorded = Recorded {
            kind: kind.to_owned(),
            revision: parts["revision"].as_u64().unwrap(),
            recipe: Digest::of(parts.to_string().as_bytes()).to_string(),
            outputs: outputs.collect(),
        };
        recorded_of.insert(stage, recorded);
    }
    Made { recorded: recorded_of, measured, kinds: pure.into_keys().collect() }
}

#[test]
fn every_kind_gives_the_bytes_that_are_recorded_for_its_recipe() {
    let Made { recorded: made, measured, kinds } = made();
    let ran: BTreeSet<String> = made.values().map(|r| r.kind.clone()).collect();
    assert_eq!(kinds.difference(&ran).collect::<Vec<_>>(), [""; 0], "kinds that no recipe runs");
    let path = here("recipes/digests.json");
    let recorded: BTreeMap<String, Recorded> = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    let mut lies = Vec::new();
    let mut others = Vec::new();
    for (stage, now) in made.iter().filter(|(_, r)| !r.outputs.is_empty()) {
        match recorded.get(stage) {
            Some(before) if before == now => {}
            Some(before) if before.recipe == now.recipe => lies.push(format!(
                "stage `{stage}`: the bytes of `{}` changed, its recipe revision ({}) did not: raise it",
                now.kind, now.revision
            )),
            _ => others.push(format!("`{stage}` ({} revision {})", now.kind, now.revision)),
        }
    }
    assert!(lies.is_empty(), "{}", lies.join("\n"));
    let measured_path = here("recipes/measured.json");
    if std::env::var_os("FLOW_RECORD").is_some() {
        fs::write(measured_path, serde_json::to_string_pretty(&measured).unwrap() + "\n").unwrap();
        let pinned: BTreeMap<_, _> = made.iter().filter(|(_, r)| !r.outputs.is_empty()).collect();
        fs::write(path, serde_json::to_string_pretty(&pinned).unwrap() + "\n").unwrap();
        return;
    }
    assert!(
        others.is_empty(),
        "other recipes than recorded; if that is meant, `FLOW_RECORD=1 cargo test --release --test recipes`:\n{}",
        others.join("\n")
    );
    let before: BTreeMap<String, Value> = serde_json::from_slice(&fs::read(measured_path).unwrap()).unwrap();
    for (artifact, now) in &measured {
        assert_eq!(before.get(artifact), Some(now), "{artifact} measures something else than recorded");
    }
    assert_eq!(before.len(), measured.len(), "recorded and not measured");
    let gone: Vec<_> = recorded.keys().filter(|s| !made.contains_key(*s)).collect();
    assert!(gone.is_empty(), "recorded and not run: {gone:?}");
}
