//! Slips of the hand on the command line that must not cost anything.

mod support;

use std::fs;
use std::io::Read;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use support::{Project, Ran, fixture, until};

const PIPELINE: &str = r#"
flow: 1
vars: { word: one }
stages:
  a: { use: shell, with: { run: 'echo ${word} > "$out"' } }
  tree: { use: shell, in: { a: a }, with: { run: 'mkdir "$out"; cp "$a" "$out/a"; head -c 300000 /dev/urandom > "$out/b"' } }
"#;

#[test]
fn gc_takes_no_number_for_a_size_and_asks_before_it_removes() {
    let project = Project::new(PIPELINE);
    project.run(&[]).expect(0);
    for size in ["20", "0", "1e3", "20 XiB", "-1GiB"] {
        let ran = project.flow(&["gc", &format!("--max-size={size}")]).expect(2);
        assert!(ran.err.contains("unit"), "{}", ran.err);
    }
    let ran = project.flow(&["gc", "--max-size", "1B"]).expect(2);
    assert!(ran.err.contains("2 results") && ran.err.contains("--yes"), "{}", ran.err);
    assert!(project.flow(&["gc", "--max-size", "1B", "--dry-run"]).expect(0).out.contains("would remove 2 results"));
    assert_eq!(project.run(&[]).expect(0).names("reused"), ["a", "tree"]);
    // What is young is removed with the result that named it: nothing is lost for nothing.
    let bytes = |project: &Project| project.files(".flow/objects").iter().map(|f| fs::metadata(f).unwrap().len()).sum::<u64>();
    assert!(bytes(&project) > 300_000);
    project.flow(&["gc", "--max-size", "1B", "--yes"]).expect(0);
    assert_eq!(bytes(&project), 0);
    // Nothing to remove, nothing to ask.
    project.flow(&["gc"]).expect(0);
}

/// Starts `flow watch` and waits until it has executed something.
fn watching(project: &Project) -> Child {
    let mut command = Command::new(fixture());
    command.args(["watch", "p.yaml"]).current_dir(project.path("")).env("FLOW_DEVICE", "cpu").env_remove("FLOW_CACHE_DIR");
    let child = command.stdout(Stdio::null()).stderr(fs::File::create(project.path("said")).unwrap()).spawn().unwrap();
    until("it watches", || project.read("said").contains("watching"));
    child
}

#[test]
fn watch_ends_by_ctrl_c_and_by_sigterm_after_a_run() {
    for signal in [Signal::INT, Signal::TERM] {
        let project = Project::new(PIPELINE);
        let mut child = watching(&project);
        assert!(project.read("said").contains("done in"), "{}", project.read("said"));
        std::thread::sleep(Duration::from_millis(100));
        kill_process(Pid::from_child(&child), signal).unwrap();
        until("it ends", || child.try_wait().unwrap().is_some());
        assert_eq!(child.wait().unwrap().code(), Some(130));
    }
}

#[test]
fn watch_runs_again_and_a_signal_during_a_run_stops_it() {
    let project = Project::new(
        "flow: 1\nstages:\n  s: { use: shell, with: { run: 'cat a.txt > \"$out\"; sleep $(cat b.txt)', files: [a.txt, b.txt] } }\n",
    );
    project.write("b.txt", "0");
    let mut child = watching(&project);
    project.write("b.txt", "30");
    until("it runs again", || project.read("said").matches("runs:").count() == 2);
    kill_process(Pid::from_child(&child), Signal::INT).unwrap();
    kill_process(Pid::from_child(&child), Signal::INT).unwrap();
    until("it ends", || child.try_wait().unwrap().is_some());
    assert_eq!(child.wait().unwrap().code(), Some(130));
}

#[test]
fn a_device_that_is_not_there_is_told_before_the_first_stage() {
    let project = Project::new(PIPELINE);
    let ran = project.flow(&["run", "p.yaml", "--device", "rtx4090"]).expect(4);
    assert!(ran.err.contains("no device matches `rtx4090`") && ran.err.contains("`cpu`"), "{}", ran.err);
    assert!(!ran.err.contains("runs:"), "{}", ran.err);
    let ran =
        project.flow_with(&["run", "p.yaml", "--device", "gpu"], &[("VK_DRIVER_FILES", "/nowhere"), ("VK_ICD_FILENAMES", "/nowhere")]);
    assert!(ran.code == Some(4) && ran.err.contains("no device matches `gpu`"), "{}", ran.err);
}

#[test]
fn a_reader_that_went_away_is_no_error() {
    let project = Project::new(PIPELINE);
    for args in [&["completions", "bash"][..], &["run", "p.yaml"], &["schema"], &["status", "p.yaml"], &["run", "nowhere.yaml"], &["kinds"]]
    {
        for both in [false, true] {
            let closed = || Stdio::from(rustix::pipe::pipe().unwrap().1);
            let mut command = Command::new(fixture());
            command.args(args).current_dir(project.path("")).env("FLOW_DEVICE", "cpu").env_remove("FLOW_CACHE_DIR").stdout(closed());
            if both {
                command.stderr(closed());
            } else {
                command.stderr(Stdio::piped());
            }
            let mut child = command.spawn().unwrap();
            let mut said = String::new();
            if let Some(mut err) = child.stderr.take() {
                err.read_to_string(&mut said).unwrap();
            }
            let code = child.wait().unwrap().code();
            assert!(!said.contains("panicked") && matches!(code, Some(0 | 2)), "{args:?}: {code:?} {said}");
        }
    }
}

#[test]
fn runs_are_numbered_alike_and_found_without_the_pipeline() {
    let project = Project::new(PIPELINE);
    project.write("q.yaml", "flow: 1\nstages:\n  other: { use: shell, with: { run: 'echo q > \"$out\"' } }\n");
    project.run(&[]).expect(0);
    project.flow(&["run", "q.yaml"]).expect(0);
    project.run(&["--var", "word=two"]).expect(0);
    let log = project.flow(&["log"]).expect(0).out;
    let numbered = |name: &str| log.lines().skip_while(|l| !l.ends_with(name)).skip(1).take_while(|l| l.starts_with("last")).count();
    assert_eq!((numbered("p.yaml"), numbered("q.yaml")), (2, 1), "{log}");
    assert!(log.contains("--var word=two"), "{log}");
    let of_p = project.flow(&["log", "p.yaml"]).expect(0).out;
    let first = of_p.lines().find(|l| l.starts_with("last~1 ")).unwrap().split_whitespace().nth(1).unwrap().to_owned();
    let named = project.flow(&["compare", "p.yaml", "last~1", "last"]).expect(0).out;
    assert!(named.contains("with.run") && named.contains(&first), "{named}");
    for args in
        [&["compare", "last~1", "last"][..], &["compare"], &["compare", "last~1"], &["compare", "p.yaml"], &["compare", &first, "last"]]
    {
        assert_eq!(project.flow(args).expect(0).out, named, "{args:?}");
    }
    let ran = project.flow(&["compare", "q.yaml", "last~1", "last"]).expect(2);
    assert!(ran.err.contains("no run `last~1`"), "{}", ran.err);
}

#[test]
fn values_of_the_last_run_are_repeated_and_said() {
    let project = Project::new(PIPELINE);
    project.run(&["--var", "word=two", "--set", "stages.a.retries=1"]).expect(0);
    let plain = project.flow(&["get", "p.yaml", "a", "--to", "got"]).expect(2);
    assert!(plain.err.contains("--var word=two") && plain.err.contains("--last"), "{}", plain.err);
    for args in [&["get", "p.yaml", "a", "--to", "got"][..], &["status", "p.yaml"], &["explain", "p.yaml", "a"], &["lock", "p.yaml"]] {
        let ran = project.flow(&[args, &["--last"]].concat()).expect(0);
        assert!(ran.err.contains("--var word=two --set stages.a.retries=1"), "{args:?}: {}", ran.err);
    }
    assert_eq!(project.read("got"), "two\n");
    assert!(project.flow(&["status", "p.yaml", "--last"]).expect(0).out.lines().all(|l| !l.contains("stale")));
    let over = project.flow(&["explain", "p.yaml", "a", "--last", "--var", "word=three"]).expect(0);
    assert!(over.err.contains("--set stages.a.retries=1") && over.err.contains("--var word=three"), "{}", over.err);
    let none = Project::new(PIPELINE).flow(&["status", "p.yaml", "--last"]).expect(2);
    assert!(none.err.contains("no run of p.yaml"), "{}", none.err);
    // `--last` means other values after another run, and is never mistaken for a run without it.
    let twice = Project::new("flow: 1\nvars: { word: one }\nstages:\n  a: { use: shell, with: { run: 'echo ${word} > \"$out\"' } }\n");
    twice.run(&[]).expect(0);
    twice.run(&[]).expect(0);
    twice.run(&["--var", "word=two"]).expect(0);
    twice.run(&["--last"]).expect(0);
    twice.flow(&["get", "p.yaml", "a", "--last", "--to", "got"]).expect(0);
    assert_eq!(twice.read("got"), "two\n");
    twice.run(&[]).expect(0);
    assert!(!twice.flow(&["log", "p.yaml"]).expect(0).out.lines().next().unwrap().contains("word=two"));
    // A run that found everything made keeps them too.
    project.run(&["--last"]).expect(0);
    project.run(&["--last"]).expect(0);
    project.flow(&["get", "p.yaml", "a", "--last", "--to", "got"]).expect(0);
}

#[test]
fn a_refusal_says_why() {
    let gate = "flow: 1\nstages:\n  t: { use: fix.text, with: { path: a.txt } }\n  g: { use: fix.gate, in: { text: t.train }, with: { at_least: 1000 } }\n";
    let project = Project::new(gate);
    for _ in 0..3 {
        let ran = project.run(&[]).expect(3);
        let reasons = &ran.last()["reasons"]["g"];
        assert!(reasons.as_array().is_some_and(|r| !r.is_empty()), "{}", ran.out);
        let text: Ran = project.flow(&["run", "p.yaml"]).expect(3);
        assert!(text.err.contains(&format!("refused: {}", reasons[0].as_str().unwrap())), "{}", text.err);
    }
}
