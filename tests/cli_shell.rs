//! `shell` stages: what a command sees, what it may do, and what becomes of one that misbehaves.

mod support;

use std::fs;
use std::time::{Duration, Instant};

use support::Project;

/// A project of one shell stage with these parameters (YAML flow mapping without braces).
fn stage(with: &str) -> Project {
    Project::new(&format!("flow: 1\nstages:\n  s:\n    use: shell\n    with: {{ {with} }}\n"))
}

fn out(project: &Project) -> String {
    let to = project.path("got");
    let _ = fs::remove_file(&to);
    project.flow(&["get", "p.yaml", "s", "--to", to.to_str().unwrap()]).expect(0);
    fs::read_to_string(to).unwrap()
}

/// The failure of stage `s`.
fn failure(project: &Project) -> serde_json::Value {
    let ran = project.run(&[]).expect(1);
    let event = ran.out.lines().filter_map(|l| serde_json::from_str::<serde_json::Value>(l).ok()).find(|e| e["event"] == "stage_failed");
    let stored = project.files(".flow/objects");
    assert!(stored.is_empty(), "nothing half-written is stored: {stored:?}");
    event.unwrap_or_else(|| panic!("{}", ran.out))
}

#[test]
fn ports_files_and_directories() {
    let project = Project::new(
        "flow: 1\nstages:\n  one: { use: shell, with: { run: 'echo one > $out' } }\n  dir:\n    use: shell\n    with:\n      outputs: [tree, list]\n      run: |\n        mkdir -p $tree/deep\n        echo a > $tree/deep/a\n        echo '#!/bin/sh' > $tree/run && chmod +x $tree/run\n        ls $tree > $list\n  s:\n    use: shell\n    in: { t: dir.tree, l: dir.list, many: [one, one.out] }\n    with: { run: 'cat $t/deep/a $l $many > $out; test -x $t/run' }\n",
    );
    project.run(&[]).expect(0);
    assert_eq!(out(&project), "a\ndeep\nrun\none\none\n");
}

#[test]
fn declared_files_count_by_content_and_others_are_not_there() {
    let project = stage("run: 'cat src/*.txt > $out; test ! -e a.txt', files: ['src/*.txt']");
    fs::create_dir(project.path("src")).unwrap();
    project.write("src/x.txt", "x\n");
    project.run(&[]).expect(0);
    assert_eq!(out(&project), "x\n");
    project.write("src/y.txt", "y\n");
    let planned = project.run(&["--dry-run"]).expect(0);
    assert_eq!(planned.last()["execute"][0]["causes"][0], "source file src/y.txt is new");
    project.run(&[]).expect(0);
    assert_eq!(out(&project), "x\ny\n");
    project.write("src/x.txt", "z\n");
    let planned = project.run(&["--dry-run"]).expect(0);
    assert_eq!(planned.last()["execute"][0]["causes"][0], "source file src/x.txt changed");
    // Back to what it was: the old result is still there.
    project.write("src/x.txt", "x\n");
    assert_eq!(project.run(&[]).expect(0).names("executed"), [""; 0]);
    // The working directory is a copy.
    let project = stage("run: 'echo changed > a.txt; cp a.txt $out', files: [a.txt]");
    let before = project.read("a.txt");
    project.run(&[]).expect(0);
    assert_eq!(project.read("a.txt"), before);
}

#[test]
fn the_environment_is_cleared_and_what_is_declared_counts() {
    let with = "run: 'env | sed s,/.*/.flow/,, | sort > $out', env: { WORD: hello, N: 3, FLOW_TEST_A: { inherit: true }, FLOW_TEST_SECRET: { secret: true } }";
    let project = stage(with);
    let run = |a: &str, secret: &str| {
        let vars = [("FLOW_TEST_A", a), ("FLOW_TEST_SECRET", secret), ("FLOW_TEST_OTHER", "x")];
        project.flow_with(&["run", "p.yaml", "--json"], &vars).expect(0)
    };
    assert_eq!(run("1", "hunter2").names("executed"), ["s"]);
    let vars = [("FLOW_TEST_A", "1"), ("FLOW_TEST_SECRET", "hunter2")];
    project.flow_with(&["get", "p.yaml", "s", "--to", project.path("got").to_str().unwrap()], &vars).expect(0);
    let text = project.read("got");
    for line in ["WORD=hello", "N=3", "FLOW_TEST_A=1", "LANG=C.UTF-8"] {
        assert!(text.lines().any(|l| l == line), "{line} in\n{text}");
    }
    assert!(!text.contains("FLOW_TEST_OTHER") && text.contains("FLOW_TEST_SECRET=hunter2"), "{text}");
    assert_eq!(run("1", "other").names("executed"), [""; 0], "a secret is not in the key");
    let again = run("2", "other");
    assert_eq!(again.names("executed"), ["s"], "an inherited value is");
    assert!(again.out.contains(r#"environment variable FLOW_TEST_A \"1\" → \"2\""#), "{}", again.out);
    let told = project.files(".flow").into_iter().filter(|p| !p.to_string_lossy().contains("objects"));
    for file in told {
        let bytes = fs::read(&file).unwrap();
        assert!(!bytes.windows(7).any(|w| w == b"hunter2"), "the secret is in {}", file.display());
    }
}

#[test]
fn writes_outside_its_directory_are_refused() {
    let outside = std::env::temp_dir().join(format!("flow-test-escape-{}", std::process::id()));
    let project = stage(&format!("run: 'echo x > $out; echo x > {}'", outside.display()));
    if !flow_engine::command::sandbox::is_enforced() {
        support::skipped("this kernel has no Landlock, and the plan says so");
        assert!(project.flow(&["plan", "p.yaml"]).expect(0).out.contains("no Landlock"));
        return;
    }
    let event = failure(&project);
    assert!(event["log"].to_string().contains("Permission denied") && !outside.exists(), "{event}");
    let project =
        stage("run: 'rm -rf \"$D\"/* 2>/dev/null || true; echo x > \"$D/new\" || echo safe > $out', env: { D: { inherit: true } }");
    let vars = [("D", project.path("").to_string_lossy().into_owned())];
    project.flow_with(&["run", "p.yaml", "--json"], &[("D", &vars[0].1)]).expect(0);
    assert!(project.path("a.txt").exists() && !project.path("new").exists());
}

#[test]
fn the_store_cannot_be_changed_through_an_input() {
    let project = Project::new(
        "flow: 1\nstages:\n  a: { use: shell, with: { run: 'echo good > $out' } }\n  s: { use: shell, in: { a: a }, with: { run: 'chmod 644 $a || true; echo bad > $a || true; cat $a > $out' } }\n",
    );
    let ran = project.run(&[]);
    if ran.code == Some(0) {
        assert_eq!(out(&project), "good\n");
    } else {
        assert!(ran.out.contains("the task changed its input"), "{}", ran.out);
    }
}

#[test]
fn failures_say_what_happened() {
    let event = failure(&stage("run: 'echo something; echo half > $out; exit 3'"));
    assert_eq!(event["message"], "the command failed with exit code 3");
    assert_eq!(event["log"][0], "something");
    let event = failure(&stage("run: nosuchcommand"));
    assert!(event["help"].as_str().unwrap().contains("PATH"), "{event}");
    let event = failure(&stage("run: 'echo $misspelt > $out'"));
    assert!(event["log"].to_string().contains("misspelt"), "a name that nobody set ends the command: {event}");
    let event = failure(&stage("run: 'true'"));
    assert!(event["message"].as_str().unwrap().contains("without creating its output `out`"), "{event}");
    let event = failure(&stage("run: 'ln -s /etc/hostname $out'"));
    assert!(event["message"].as_str().unwrap().contains("only files and directories"), "{event}");
    let event = failure(&stage("run: 'kill -SEGV $$'"));
    assert!(event["message"].as_str().unwrap().contains("signal 11"), "{event}");
}

#[test]
fn a_flood_is_ended() {
    let began = Instant::now();
    let event = failure(&stage("run: 'yes; echo x > $out'"));
    assert!(event["message"].as_str().unwrap().contains("printed more than 64 MiB"), "{event}");
    assert!(began.elapsed() < Duration::from_secs(60));
}

#[test]
fn a_timeout_ends_the_whole_process_group() {
    let project =
        Project::new("flow: 1\nstages:\n  s: { use: shell, timeout: 0.5, with: { run: 'sleep 1000 & sleep 1000; echo > $out' } }\n");
    let began = Instant::now();
    let event = failure(&project);
    assert!(event["message"].as_str().unwrap().contains("timed out after 0.5 s"), "{event}");
    assert!(began.elapsed() < Duration::from_secs(5), "the command obeys TERM");
    assert_eq!(processes_of(&project), 0);
}

#[test]
fn processes_left_behind_are_ended_and_told() {
    for run in ["sleep 1000 & echo x > $out", "setsid sleep 1000 & sleep 0.1; echo x > $out"] {
        let project = stage(&format!("run: '{run}'"));
        let event = failure(&project);
        assert!(event["message"].as_str().unwrap().contains("left processes running"), "{run}: {event}");
        assert_eq!(processes_of(&project), 0, "{run}");
    }
}

/// Processes whose environment names the project's cache.
fn processes_of(project: &Project) -> usize {
    let root = project.path("").to_string_lossy().into_owned();
    let mine = |entry: &fs::DirEntry| {
        let environment = fs::read(entry.path().join("environ")).unwrap_or_default();
        String::from_utf8_lossy(&environment).contains(&format!("TMPDIR={root}"))
    };
    std::thread::sleep(Duration::from_millis(100));
    fs::read_dir("/proc").unwrap().flatten().filter(mine).count()
}

#[test]
fn a_source_that_changes_while_the_stage_runs_is_no_result() {
    let project = stage("run: 'sleep 1; cp a.txt $out', files: [a.txt]");
    let child = project.start();
    std::thread::sleep(Duration::from_millis(400));
    project.write("a.txt", "changed meanwhile\n");
    let ran = Project::wait(child).expect(1);
    assert!(ran.out.contains("changed while the stage ran"), "{}", ran.out);
    project.run(&[]).expect(0);
    assert_eq!(out(&project), "changed meanwhile\n");
}

#[test]
fn the_same_action_runs_once_under_two_names() {
    let project = Project::new(
        "flow: 1\nstages:\n  a: { use: shell, with: { run: 'sleep 0.3; echo same > $out' } }\n  b: { use: shell, with: { run: 'sleep 0.3; echo same > $out' } }\n",
    );
    let ran = project.run(&[]).expect(0);
    assert_eq!((ran.names("executed").len(), ran.names("reused").len()), (1, 1));
}

#[test]
fn early_cutoff() {
    let project = Project::new(
        "flow: 1\nvars: { x: one }\nstages:\n  a: { use: shell, with: { run: 'echo ${x} | wc -c > $out' } }\n  b: { use: shell, in: { a: a }, with: { run: 'cat $a > $out' } }\n",
    );
    project.run(&[]).expect(0);
    assert_eq!(project.run(&["--var", "x=two"]).expect(0).names("executed"), ["a"]);
    assert_eq!(project.run(&["--var", "x=three"]).expect(0).names("executed"), ["a", "b"]);
}

/// A run ends what an earlier one left behind, and nothing of another project that does the same work at the same time.
#[test]
fn the_same_action_in_two_projects_at_once() {
    let text = "flow: 1\nstages:\n  a: { use: shell, with: { run: 'sleep 0.4; echo done > $out' } }\npublish: { out: a }\n";
    let (first, second) = (Project::new(text), Project::new(text));
    // The second has a task directory of a killed run: it looks for what that left.
    let killed = second.start();
    std::thread::sleep(std::time::Duration::from_millis(200));
    rustix::process::kill_process(rustix::process::Pid::from_child(&killed), rustix::process::Signal::KILL).unwrap();
    Project::wait(killed);
    let running = first.start();
    std::thread::sleep(std::time::Duration::from_millis(200));
    second.run(&[]).expect(0);
    Project::wait(running).expect(0);
    assert_eq!((first.read("out"), second.read("out")), ("done\n".to_owned(), "done\n".to_owned()));
}
