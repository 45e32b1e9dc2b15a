//! External plugins: the worked examples, and plugins that misbehave.

mod support;

use std::fs;
use std::path::Path;

use support::Project;

/// A project whose plugin is a shell script: what it does for `describe` and for `run DIR`.
fn plugin(describe: &str, run: &str) -> Project {
    let project = Project::new(
        "flow: 1\nplugins:\n  p: { command: [sh, p.sh], files: [p.sh] }\nstages:\n  t: { use: shell, with: { run: 'echo text > $out' } }\n  s: { use: my.kind, in: { text: t }, with: { n: 2 }, timeout: 2 }\n",
    );
    write(&project, describe, run);
    project
}

fn write(project: &Project, describe: &str, run: &str) {
    project.write("p.sh", &format!("if [ $1 = describe ]; then\n{describe}\nelse\ndir=$2\n{run}\nfi\n"));
}

const KIND: &str = r#"cat <<'J'
{"kinds": [{"kind": "my.kind", "revision": 1, "summary": "Mine.", "inputs": [{"name": "text", "types": ["*"]}],
 "outputs": [{"name": "out", "type": "Text"}],
 "params": {"properties": {"n": {"type": "integer", "maximum": 9}, "word": {"type": "string", "default": "x"}}}}]}
J"#;
const GOOD: &str = "grep -q '\"word\": \"x\"' $dir/task.json; echo made > $dir/out/out; echo '{\"event\":\"metric\",\"name\":\"m\",\"value\":7}' >> $dir/events.jsonl; echo '{\"ok\":true}' > $dir/result.json";

fn failure(run: &str) -> serde_json::Value {
    let project = plugin(KIND, run);
    let ran = project.run(&[]).expect(1);
    let event = ran.out.lines().filter_map(|l| serde_json::from_str::<serde_json::Value>(l).ok()).find(|e| e["event"] == "stage_failed");
    assert_eq!(project.files(".flow/objects").len(), 1, "only the text of stage t is stored");
    event.unwrap()
}

#[test]
fn the_examples_run() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/plugins");
    let project = Project::new("");
    for name in ["pipeline.yaml", "words.py", "lines.sh", "text.txt"] {
        fs::copy(dir.join(name), project.path(name)).unwrap();
    }
    let python = std::process::Command::new("python3").arg("--version").output().is_ok_and(|o| o.status.success());
    let target = if python { "counts" } else { "sorted" };
    if !python {
        support::skipped("no python3 here; the Bash plugin is tested alone");
        let text = project.read("pipeline.yaml").lines().filter(|l| !l.contains("words")).collect::<Vec<_>>().join("\n");
        project.write("pipeline.yaml", &text.replace("targets: [counts]", ""));
    }
    project.flow(&["run", "pipeline.yaml", target]).expect(0);
    project.flow(&["get", "pipeline.yaml", "sorted", "--to", project.path("sorted").to_str().unwrap()]).expect(0);
    assert_eq!(project.read("sorted"), "the quick brown fox\nthe end\njumps over the lazy dog\n");
    if python {
        project.flow(&["get", "pipeline.yaml", "counts", "--to", project.path("counts").to_str().unwrap()]).expect(0);
        let counts: serde_json::Value = serde_json::from_str(&project.read("counts")).unwrap();
        assert_eq!(counts, serde_json::json!({"the": 3, "brown": 1, "dog": 1}));
        let planned = project.flow(&["plan", "pipeline.yaml", "--set", "stages.counts.with.top=4"]).expect(0);
        assert!(planned.out.contains("`with.top` 3 → 4"), "{}", planned.out);
    }
}

#[test]
fn a_plugin_runs_is_keyed_by_its_files_and_its_parameters_are_checked() {
    let project = plugin(KIND, GOOD);
    let ran = project.run(&[]).expect(0);
    assert!(ran.out.contains(r#""event":"stage_metric","stage":"s","name":"m","value":7.0"#), "{}", ran.out);
    assert_eq!(project.run(&[]).expect(0).names("executed"), [""; 0]);
    write(&project, KIND, &format!("{GOOD} # edited"));
    let planned = project.run(&["--dry-run"]).expect(0);
    assert_eq!(planned.last()["execute"][0]["causes"][0], "fingerprint `plugin` changed");
    let wrong = project.flow(&["plan", "p.yaml", "--set", "stages.s.with.n=12"]).expect(2);
    assert!(wrong.err.contains("`with.n`") && wrong.err.contains("12 is greater than the maximum of 9"), "{}", wrong.err);
    let wrong = project.flow(&["plan", "p.yaml", "--set", "stages.s.with.wrod=y"]).expect(2);
    assert!(wrong.err.contains("did you mean `word`?"), "{}", wrong.err);
}

#[test]
fn plugins_that_do_not_describe_themselves() {
    for (describe, message) in [
        ("exit 3", "failed to describe itself"),
        ("yes $(printf %1000s | tr ' ' y)", "prints more than 4 MiB"),
        ("echo $SOME_API_KEY >&2; exit ${#SOME_API_KEY}", "JSON that does not fit"),
        ("echo hello", "JSON that does not fit"),
        ("echo '{\"kinds\":[{\"kind\":\"my.kind\",\"revision\":1,\"summary\":\"\",\"outputs\":[]}]}'", "has no output"),
        (
            "echo '{\"kinds\":[{\"kind\":\"shell\",\"revision\":1,\"summary\":\"\",\"outputs\":[{\"name\":\"o\",\"type\":\"T\"}]}]}'",
            "is there already",
        ),
    ] {
        let ran = plugin(describe, GOOD).flow_with(&["plan", "p.yaml"], &[("SOME_API_KEY", "very-secret")]).expect(2);
        assert!(!ran.err.contains("very-secret"));
        assert!(ran.err.contains(message) && ran.err.contains("p.yaml:3"), "{message}: {}", ran.err);
    }
    let project = plugin(KIND, GOOD);
    project.write("p.yaml", &project.read("p.yaml").replace("[sh, p.sh]", "[nosuchprogram]"));
    assert!(project.flow(&["plan", "p.yaml"]).expect(2).err.contains("cannot be started"));
}

#[test]
fn plugins_that_misbehave() {
    for (run, message) in [
        ("exit 7", "without result.json (exit code 7)"),
        ("kill -ABRT $$", "crashed (signal 6)"),
        ("sleep 100", "timed out after 2 s"),
        ("yes $(printf %1000s | tr ' ' y)", "printed more than 64 MiB"),
        ("echo x > $dir/out/out; echo '{\"ok\": tr' > $dir/result.json", "result.json does not fit"),
        ("echo x > $dir/out/out; echo '{\"ok\": true}' > $dir/result.json; sleep 100 & exit 0", "left processes running"),
        ("echo '{\"ok\": true}' > $dir/result.json", "without creating its output `out`"),
        ("echo x > $dir/out/out; echo '{\"ok\": true}' > $dir/result.json; exit 4", "says ok and ended with exit code 4"),
        ("echo '{\"ok\": false, \"message\": \"row 3 is bad\", \"help\": \"repair it\"}' > $dir/result.json; exit 1", "row 3 is bad"),
    ] {
        let event = failure(run);
        assert!(event["message"].as_str().unwrap().contains(message), "{message}: {event}");
    }
}
