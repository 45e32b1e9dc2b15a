//! Matrix, include, requires, and the commands around a run: force, check, lock, adopt, compare, profile, watch, init.

mod support;

use std::fs;
use std::process::Command;

use support::{Project, fixture, until};

const MATRIX: &str = "\
flow: 1
vars: { word: hello, all: [1, 2] }
stages:
  text: { use: shell, with: { run: 'echo ${word} > $out' } }
  times: { use: shell, in: { t: text }, matrix: { n: \"${all}\", mark: ['!', '?'] }, with: { run: 'echo ${n}${mark} $(cat $t) > $out' } }
  one: { use: shell, in: { t: \"times[n=2,mark=?]\" }, with: { run: 'cat $t > $out' } }
  all: { use: shell, in: { parts: times }, with: { run: 'cat $parts > $out' } }
targets: [all, one]
publish: { out/all: all, out/one: one }
";

#[test]
fn a_matrix_fans_out_and_is_collected() {
    let project = Project::new(MATRIX);
    let ran = project.run(&[]).expect(0);
    assert_eq!(ran.names("executed").len(), 7);
    assert_eq!(project.read("out/all"), "1! hello\n1? hello\n2! hello\n2? hello\n");
    assert_eq!(project.read("out/one"), "2? hello\n");
    // A third value runs three stages: its two, and what collects them.
    let ran = project.run(&["--var", "all=[1, 2, 3]"]).expect(0);
    assert_eq!(ran.names("executed"), ["all", "times[n=3,mark=!]", "times[n=3,mark=?]"]);
    // Targets by pattern and by the name of the matrix.
    assert_eq!(project.run(&["times[n=1*"]).expect(0).names("reused").len(), 3);
    assert_eq!(project.run(&["times"]).expect(0).names("reused").len(), 5);
    let wrong = project.flow(&["get", "p.yaml", "times", "--to", "x"]).expect(2);
    assert!(wrong.err.contains("`times` is a matrix of 4 stages"), "{}", wrong.err);
}

#[test]
fn a_stage_is_left_out_where_its_when_is_false() {
    let text = "\
flow: 1
vars: { twin: false }
stages:
  one: { use: shell, with: { run: 'echo one > $out' } }
  twin: { use: shell, when: \"${twin}\", with: { run: 'echo twin > $out' } }
  some: { use: shell, when: \"${twin}\", matrix: { n: [1, 2] }, with: { run: 'echo ${n} > $out' } }
  all: { use: shell, in: { parts: [one, twin, some] }, after: [twin], with: { run: 'cat $parts > $out' } }
targets: [all, twin]
publish: { out/all: all, out/twin: twin }
";
    let project = Project::new(text);
    let ran = project.run(&[]).expect(0);
    assert_eq!(ran.names("executed"), ["all", "one"]);
    assert_eq!(project.read("out/all"), "one\n");
    assert!(!project.path("out/twin").exists());
    let ran = project.run(&["--var", "twin=true"]).expect(0);
    assert_eq!(ran.names("executed"), ["all", "some[n=1]", "some[n=2]", "twin"]);
    assert_eq!(project.read("out/all"), "one\ntwin\n1\n2\n");
    // One flag brings one stage; asked for by name without it, it says what is missing.
    assert_eq!(project.run(&["--set", "stages.twin.when=true"]).expect(0).names("executed"), ["all"]);
    let wrong = project.run(&["twin"]).expect(2);
    assert!(wrong.err.contains("`twin` is left out: its `when` is false") && wrong.err.contains("stages.twin.when=true"), "{}", wrong.err);
    for (from, to, words) in [
        ("targets: [all, twin]", "targets: [twin, some]", "every target is left out"),
        ("parts: [one, twin, some]", "parts: [twin, some]", "`twin` is left out"),
        ("in: { parts: [one, twin, some] }", "in: { parts: twin }", "`twin` is left out"),
        ("when: \"${twin}\", with", "when: 2, with", "`when` is true or false"),
        ("after: [twin]", "requires: [twin]", "`twin` is left out"),
    ] {
        project.write("p.yaml", &text.replace(from, to));
        let wrong = project.run(&[]).expect(2);
        assert!(wrong.err.contains(words), "{}", wrong.err);
    }
}

#[test]
fn includes_bring_stages_and_defaults() {
    let project = Project::new(
        "flow: 1\ninclude: [parts/text.yaml]\nvars: { word: mine }\nstages:\n  s: { use: shell, in: { t: text }, with: { run: 'cat $t > $out' } }\npublish: { out: s }\n",
    );
    fs::create_dir(project.path("parts")).unwrap();
    project.write("parts/extra.txt", " extra");
    project.write("parts/text.yaml", "vars: { word: theirs, end: '.' }\nstages:\n  text: { use: shell, with: { run: 'echo ${word}$(cat extra.txt)${end} > $out', files: [extra.txt] } }\n");
    project.run(&[]).expect(0);
    assert_eq!(project.read("out"), "mine extra.\n");
    assert_eq!(project.run(&["--set", "stages.text.with.run=echo set > $out"]).expect(0).names("executed"), ["s", "text"]);
    project.write("parts/text.yaml", "include: ../p.yaml\nstages: {}\n");
    let wrong = project.flow(&["plan", "p.yaml"]).expect(2);
    assert!(wrong.err.contains("includes itself") && wrong.err.contains("parts/text.yaml:1"), "{}", wrong.err);
    project.write("parts/text.yaml", "stages:\n  s: { use: shell, with: { run: x } }\n");
    let wrong = project.flow(&["plan", "p.yaml"]).expect(2);
    assert!(wrong.err.contains("stage `s` stands in p.yaml too"), "{}", wrong.err);
}

#[test]
fn a_refused_gate_withholds_what_requires_it() {
    let text = "flow: 1\nvars: { least: 1 }\nstages:\n  corpus: { use: fix.text, with: { path: a.txt } }\n  gate: { use: fix.gate, in: { text: corpus.train }, with: { at_least: \"${least}\" } }\n  ship: { use: shell, in: { t: corpus.train }, requires: gate, with: { run: 'cp $t $out' } }\n  next: { use: shell, in: { t: ship }, with: { run: 'cp $t $out' } }\n  other: { use: shell, in: { t: corpus.train }, with: { run: 'wc -c < $t > $out' } }\n";
    let project = Project::new(text);
    let ran = project.run(&["--var", "least=100000"]).expect(3);
    assert_eq!(
        (ran.names("executed"), ran.names("withheld")),
        (vec!["corpus".into(), "gate".into(), "other".into()], vec!["next".into(), "ship".into()])
    );
    let again = project.run(&["--var", "least=100000"]).expect(3);
    assert_eq!((again.names("executed").len(), again.names("withheld").len()), (0, 2));
    assert_eq!(project.run(&[]).expect(0).names("executed"), ["gate", "next", "ship"]);
}

#[test]
fn force_executes_and_early_cutoff_stops_there() {
    let project = Project::new(MATRIX);
    project.run(&[]).expect(0);
    let planned = project.run(&["--force", "text", "--dry-run"]).expect(0);
    assert_eq!(planned.last()["execute"][0]["causes"][0], "forced (--force)");
    assert_eq!(project.run(&["--force", "text"]).expect(0).names("executed"), ["text"]);
    assert_eq!(project.run(&["--force", "times*"]).expect(0).names("executed").len(), 4);
}

#[test]
fn check_names_the_first_byte_that_differs() {
    let project = Project::new(
        "flow: 1\nstages:\n  good: { use: shell, with: { run: 'echo same > $out' } }\n  bad: { use: shell, with: { run: 'mkdir $out; echo same > $out/a; echo once $(date +%s%N) > $out/b' } }\n",
    );
    project.run(&[]).expect(0);
    assert_eq!(project.run(&["good", "--check"]).expect(0).names("executed"), [""; 0]);
    let ran = project.run(&["--check"]).expect(1);
    assert_eq!(ran.names("different"), ["bad"]);
    let told = ran.out.lines().find(|l| l.contains("stage_checked") && l.contains("bad")).unwrap();
    let event: serde_json::Value = serde_json::from_str(told).unwrap();
    assert_eq!(event["difference"]["file"], "b");
    assert!(event["difference"]["byte"].as_u64().unwrap() >= 5, "{event}");
    assert_eq!(project.run(&[]).expect(0).names("executed"), [""; 0], "the result that was there stays");
}

#[test]
fn a_locked_run_refuses_to_differ() {
    let project = Project::new(MATRIX);
    assert!(project.run(&["--locked"]).expect(2).out.contains("holds no lock"));
    project.run(&[]).expect(0);
    project.flow(&["lock", "p.yaml"]).expect(0);
    let lock = project.read("flow.lock");
    assert_eq!(project.run(&["--locked"]).expect(0).names("executed"), [""; 0]);
    // Made anew elsewhere it must give the locked bytes.
    project.flow(&["run", "p.yaml", "--locked", "--cache-dir", project.path("other").to_str().unwrap()]).expect(0);
    let ran = project.run(&["--locked", "--var", "word=bye"]).expect(1);
    assert!(ran.out.contains("differs from flow.lock"), "{}", ran.out);
    project.run(&["--var", "word=bye"]).expect(0);
    project.flow(&["lock", "p.yaml", "--var", "word=bye"]).expect(0);
    assert_ne!(lock, project.read("flow.lock"));
}

#[test]
fn results_made_elsewhere_are_adopted() {
    let project = Project::new(MATRIX);
    project.write("elsewhere", "adopted\n");
    let early = project.flow(&["adopt", "p.yaml", "one", "elsewhere"]).expect(2);
    assert!(early.err.contains("is not made yet"), "{}", early.err);
    project.flow(&["adopt", "p.yaml", "text", "elsewhere"]).expect(0);
    let ran = project.run(&["one"]).expect(0);
    assert_eq!((ran.names("executed"), ran.names("reused")), (vec!["one".into(), "times[n=2,mark=?]".into()], vec!["text".into()]));
    let again = project.flow(&["run", "p.yaml"]).expect(0);
    assert!(again.err.contains("warning: text: adopted from elsewhere"), "{}", again.err);
    assert_eq!(project.read("out/one"), "2? adopted\n");
}

#[test]
fn runs_are_compared() {
    let project = Project::new(MATRIX);
    project.run(&[]).expect(0);
    project.run(&["--var", "word=bye"]).expect(0);
    let compared = project.flow(&["compare", "p.yaml", "--json"]).expect(0);
    let rows = compared.last()["differences"].as_array().unwrap().clone();
    let row = rows.iter().find(|r| r["stage"] == "text" && r["what"] == "with.run").unwrap();
    assert_eq!((row["before"].as_str(), row["after"].as_str()), (Some("\"echo hello > $out\""), Some("\"echo bye > $out\"")));
    assert!(rows.iter().any(|r| r["stage"] == "all" && r["what"] == "artifact out"));
    // A run with nothing to do compares as the run that it found.
    project.run(&["--var", "word=bye"]).expect(0);
    assert!(project.flow(&["compare", "p.yaml"]).expect(0).out.contains("no stage differs"));
    assert!(project.flow(&["compare", "p.yaml", "nosuch", "last"]).expect(2).err.contains("no run `nosuch`"));
}

#[test]
fn a_profile_is_a_chrome_trace_with_the_critical_path() {
    let project = Project::new(
        "flow: 1\nstages:\n  a: { use: shell, with: { run: 'sleep 0.2; echo a > $out' } }\n  b: { use: shell, in: { a: a }, with: { run: 'sleep 0.2; echo b > $out' } }\n  c: { use: shell, with: { run: 'echo c > $out' } }\n",
    );
    let ran = project.flow(&["run", "p.yaml", "--profile", "trace.json"]).expect(0);
    let line = ran.err.lines().find(|l| l.starts_with("critical path")).unwrap().to_owned();
    assert!(line.contains("a 0.2") && line.contains("→ b 0.2") && !line.contains("c 0."), "{line}");
    let trace: serde_json::Value = serde_json::from_str(&project.read("trace.json")).unwrap();
    let events = trace["traceEvents"].as_array().unwrap();
    assert_eq!(events.len(), 3);
    assert!(events.iter().all(|e| e["ph"] == "X" && e["dur"].as_f64().unwrap() > 0.0));
}

#[test]
fn watch_runs_again_on_a_change() {
    let project =
        Project::new("flow: 1\nstages:\n  s: { use: shell, with: { run: 'cp a.txt $out', files: [a.txt] } }\npublish: { out: s }\n");
    let mut command = Command::new(fixture());
    let mut child = command.args(["watch", "p.yaml", "--quiet"]).current_dir(project.path("")).spawn().unwrap();
    until("the first run is done", || project.path("out").exists());
    project.write("a.txt", "a new content of another length\n");
    until("the second run is done", || project.read("out").starts_with("a new"));
    child.kill().unwrap();
    child.wait().unwrap();
}

#[test]
fn starters_plan_and_run() {
    let project = Project::new("");
    project.flow(&["init", "s.yaml"]).expect(0);
    project.flow(&["run", "s.yaml"]).expect(0);
    assert!(project.read("out/all.txt").starts_with("HELLO\n"));
    assert!(project.flow(&["init", "s.yaml"]).expect(2).err.contains("exists already"));
    assert!(project.flow(&["completions", "bash"]).expect(0).out.contains("_flow()"));
}

#[test]
fn a_run_with_nothing_to_do_sees_every_change() {
    let project = Project::new(
        "flow: 1\nstages:\n  s: { use: shell, with: { run: 'cat *.txt > $out', files: ['*.txt'], env: { X: { inherit: true } } } }\npublish: { out/s: s }\n",
    );
    let run = |x: &str| project.flow_with(&["run", "p.yaml", "--json"], &[("X", x)]).expect(0).names("executed").len();
    assert_eq!((run("1"), run("1"), run("1")), (1, 0, 0));
    assert_eq!((run("2"), run("2"), run("1")), (1, 0, 0), "an environment variable");
    project.write("b.txt", "b");
    assert_eq!((run("1"), run("1")), (1, 0), "a new file of a glob");
    project.write("p.yaml", &(project.read("p.yaml") + "# comment\n"));
    assert_eq!(run("1"), 0);
    fs::remove_file(project.path("out/s")).unwrap();
    assert_eq!(run("1"), 0);
    assert!(project.path("out/s").exists(), "what is published is put back");
    project.write("out/s", "changed by hand");
    project.flow_with(&["run", "p.yaml", "--json"], &[("X", "1")]).expect(2);
    assert_eq!(project.read("out/s"), "changed by hand");
    project.flow_with(&["run", "p.yaml", "--overwrite", "out/s"], &[("X", "1")]).expect(0);
    assert!(!project.read("out/s").contains("by hand"));
    for object in project.files(".flow/objects") {
        fs::remove_file(object).unwrap();
    }
    assert_eq!((run("1"), run("1")), (1, 0), "objects that are gone");
}

/// A source that changes after its stage and before the end of the run is the next run's to see.
#[test]
fn a_source_that_changes_during_a_run_is_seen_by_the_next() {
    let project = Project::new("");
    let go = project.path("go");
    project.write(
        "p.yaml",
        &format!(
            "flow: 1\nstages:\n  s: {{ use: shell, with: {{ run: 'cp a.txt $out', files: [a.txt] }} }}\n  t: {{ use: shell, in: {{ x: s }}, with: {{ run: 'until [ -e {} ]; do sleep 0.02; done; cp $x $out' }} }}\npublish: {{ out: t, first: s }}\n",
            go.display()
        ),
    );
    project.write("a.txt", "one\n");
    let child = project.start();
    let objects = || project.files(".flow/objects").iter().any(|o| fs::read(o).is_ok_and(|b| b == b"one\n"));
    until("the first stage is done", objects);
    // The stage's task compares its sources with its key when it ends.
    std::thread::sleep(std::time::Duration::from_millis(300));
    project.write("a.txt", "another\n");
    project.write("go", "");
    Project::wait(child).expect(0);
    assert_eq!(project.read("out"), "one\n");
    assert_eq!(project.run(&[]).expect(0).names("executed"), ["s", "t"]);
    assert_eq!(project.read("out"), "another\n");
}

#[test]
fn explain_names_the_nearest_earlier_execution() {
    let text = |stages: &str| format!("flow: 1\nvars: {{ a: 1, b: 2 }}\nstages:\n{stages}");
    let project = Project::new(&text("  s: { use: shell, with: { run: 'echo ${a} > $out', env: { X: \"${b}\" } } }\n"));
    project.run(&[]).expect(0);
    project.run(&["--var", "a=5"]).expect(0);
    project.run(&["--var", "a=5", "--var", "b=6"]).expect(0);
    // The last run is two steps away, the first of them one.
    let out = project.flow(&["explain", "p.yaml", "s", "--var", "b=7"]).expect(0).out;
    let (causes, nearest) = out.split_once("nearest earlier execution: ").unwrap();
    assert_eq!(causes.matches('→').count(), 2, "{out}");
    assert!(nearest.contains("of `s`") && nearest.matches('→').count() == 1 && nearest.contains("2") && nearest.contains("7"), "{out}");
    // Another stage name, in another pipeline, is the same kind of work.
    project.write("q.yaml", &text("  other: { use: shell, with: { run: 'echo ${a} > $out', env: { X: 9 } } }\n"));
    let out = project.flow(&["explain", "q.yaml", "other", "--json"]).expect(0).last();
    assert_eq!(out["causes"][0], "never executed");
    assert_eq!(out["nearest"]["differences"].as_array().unwrap().len(), 1, "{out}");
    assert_eq!(out["nearest"]["entry"]["provenance"]["stage"], "s");
}
