//! Crashes, kills and two runs at once: nothing is lost, nothing is half made, nothing is made twice.

mod support;

use std::fs;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use support::{Project, until};

fn slow(steps: u32) -> Project {
    Project::new(&format!("flow: 1\nstages:\n  slow: {{ use: fix.slow, with: {{ steps: {steps} }} }}\npublish: {{ out.txt: slow }}\n"))
}

fn progress(project: &Project) -> u32 {
    let state = project.files(".flow/tasks").into_iter().find(|p| p.ends_with("state/done"));
    state.and_then(|p| fs::read_to_string(p).ok()).and_then(|t| t.parse().ok()).unwrap_or(0)
}

fn signal(child: &std::process::Child, signal: Signal) {
    kill_process(Pid::from_child(child), signal).unwrap();
}

#[test]
fn two_runs_at_once_execute_a_stage_once() {
    let project = slow(60);
    let (a, b) = (project.start(), project.start());
    let (a, b) = (Project::wait(a).expect(0), Project::wait(b).expect(0));
    assert_eq!(project.executed(), ["slow"]);
    let mut counts = [a.names("executed").len(), b.names("executed").len()];
    counts.sort_unstable();
    assert_eq!(counts, [0, 1]);
}

#[test]
fn kill_9_keeps_the_state_and_the_next_run_resumes() {
    let project = slow(100);
    let mut child = project.start();
    until("some steps are done", || progress(&project) > 20);
    signal(&child, Signal::KILL);
    child.wait().unwrap();
    assert!(!project.path("out.txt").exists());
    let before = progress(&project);
    assert!(before > 20);
    let started = Instant::now();
    let ran = project.run(&[]).expect(0);
    assert!(ran.out.contains("resumed at "), "{}", ran.out);
    assert!(started.elapsed() < Duration::from_secs(5));
    assert_eq!(project.read("out.txt"), "counted to 100\n");
    assert!(project.run(&[]).expect(0).names("executed").is_empty());
}

#[test]
fn an_orphan_ends_by_itself() {
    let project = slow(10_000);
    let mut child = project.start();
    until("some steps are done", || progress(&project) > 5);
    signal(&child, Signal::KILL);
    child.wait().unwrap();
    std::thread::sleep(Duration::from_millis(500));
    let (one, _) = (progress(&project), std::thread::sleep(Duration::from_millis(300)));
    assert_eq!(one, progress(&project), "the task went on without its parent");
}

#[test]
fn an_interrupt_checkpoints_and_exits_130() {
    let project = slow(10_000);
    let child = project.start();
    until("some steps are done", || progress(&project) > 5);
    signal(&child, Signal::INT);
    let ran = Project::wait(child).expect(130);
    assert_eq!(ran.last()["interrupted"], true);
    assert_eq!(ran.names("skipped"), ["slow"]);
    assert!(progress(&project) > 5, "its state is kept");
    let record = project.files(".flow/runs");
    assert_eq!(record.len(), 1);
}

fn misbehaving(how: &str) -> Project {
    Project::new(&format!(
        "flow: 1\nstages:\n  corpus: {{ use: fix.text, with: {{ path: a.txt }} }}\n  bad: {{ use: fix.misbehave, in: {{ text: corpus.train }}, with: {{ how: {how} }} }}\n  after: {{ use: fix.upper, in: {{ text: bad.first }} }}\n  other: {{ use: fix.slow, with: {{ steps: 1 }} }}\n"
    ))
}

/// The `stage_failed` event of a run that fails.
fn failure(project: &Project, more: &[&str]) -> serde_json::Value {
    let ran = project.run(more).expect(1);
    let line = ran.out.lines().find(|l| l.contains("stage_failed")).unwrap_or_else(|| panic!("{}", ran.out));
    serde_json::from_str(line).unwrap()
}

#[test]
fn a_failure_says_what_where_and_what_to_do() {
    let event = failure(&misbehaving("fail"), &[]);
    assert_eq!(event["message"], "row 7 of the text is bad");
    assert_eq!(event["help"], "repair row 7");
    assert_eq!(event["log"][0], "about to misbehave");
}

#[test]
fn a_crash_fails_the_stage_alone_with_its_last_words() {
    let event = failure(&misbehaving("abort"), &[]);
    assert!(event["message"].as_str().unwrap().contains("crashed (signal 6)"), "{event}");
    let log = event["log"].to_string();
    assert!(log.contains("about to misbehave") && log.contains("last words"), "{log}");
}

#[test]
fn a_panic_is_a_failure() {
    let event = failure(&misbehaving("panic"), &[]);
    assert!(event["message"].as_str().unwrap().contains("panicked: a bug"), "{event}");
}

#[test]
fn outputs_are_all_or_none() {
    let project = misbehaving("forget");
    let event = failure(&project, &[]);
    assert!(event["message"].as_str().unwrap().contains("without creating its output `second`"), "{event}");
    let stored = project.files(".flow/objects").into_iter().any(|p| fs::read_to_string(p).is_ok_and(|t| t == "first"));
    assert!(!stored, "the output that was written must not be in the store");
}

#[test]
fn a_task_that_writes_its_input_fails_and_the_input_is_made_again() {
    let project = misbehaving("scribble");
    let ran = project.run(&["bad"]);
    if ran.code == Some(0) {
        return; // the file system shares bytes without linking: the task had its own copy
    }
    assert!(ran.out.contains("the task changed its input"), "{}", ran.out);
    project.executed();
    project.run(&["corpus"]).expect(0);
    assert_eq!(project.executed(), ["corpus"]);
}

#[test]
fn a_failure_stops_its_dependants_and_keep_going_finishes_the_rest() {
    let project = misbehaving("fail");
    let ran = project.run(&["--keep-going"]).expect(1);
    assert_eq!(ran.names("failed"), ["bad"]);
    assert_eq!(ran.names("skipped"), ["after"]);
    assert_eq!(ran.names("executed"), ["corpus", "other"]);
}

#[test]
fn a_timeout_ends_a_task_and_retries_are_counted() {
    let project = Project::new("flow: 1\nstages:\n  slow: { use: fix.slow, with: { steps: 10000 }, timeout: 0.3, retries: 1 }\n");
    let event = failure(&project, &[]);
    assert!(event["message"].as_str().unwrap().contains("timed out after 0.3 s"), "{event}");
    assert_eq!(project.executed(), ["slow", "slow"]);
}
