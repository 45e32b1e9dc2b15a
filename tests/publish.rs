//! Publishing and getting replace only what `flow` put there and nobody changed since.

mod support;

use std::fs;
use std::os::unix::fs::symlink;

use support::{Project, Ran};

const PIPELINE: &str = r#"
flow: 1
vars: { word: one, folder: out/folder, file: out/file }
stages:
  f: { use: shell, with: { run: 'echo ${word} > "$out"' } }
  d: { use: shell, in: { f: f }, with: { run: 'mkdir -p "$out/sub"; cp "$f" "$out/sub/a"; echo b > "$out/b"' } }
  other: { use: shell, with: { run: 'cat a.txt more/*.txt > "$out"', files: [a.txt, 'more/*.txt'] } }
publish: { out/folder: d, out/file: f }
"#;

fn project() -> Project {
    let project = Project::new(PIPELINE);
    fs::create_dir(project.path("more")).unwrap();
    project.write("more/x.txt", "x\n");
    project
}

/// A project in which `to` is published from `port`.
fn publishing(to: &str, port: &str) -> Project {
    let project = project();
    let text = PIPELINE.replace("publish: { out/folder: d, out/file: f }", &format!("publish: {{ {to}: {port} }}"));
    project.write("p.yaml", &text);
    project
}

fn refused(ran: Ran, place: &str) {
    let ran = ran.expect(2);
    assert!(ran.err.contains(place) && ran.err.contains("path"), "{}", ran.err);
}

#[test]
fn what_flow_did_not_put_there_stays() {
    type Make = fn(&Project);
    let cases: [(&str, &str, Make); 9] = [
        ("results", "d", |p| {
            fs::create_dir(p.path("results")).unwrap();
            p.write("results/notes.txt", "mine");
        }),
        ("results", "f", |p| p.write("results", "mine")),
        ("results", "d", |p| p.write("results", "mine")),
        ("results", "f", |p| fs::create_dir(p.path("results")).unwrap()),
        ("results", "f", |p| symlink("a.txt", p.path("results")).unwrap()),
        ("results", "d", |p| symlink("nowhere", p.path("results")).unwrap()),
        ("p.yaml", "f", |_| ()),
        ("a.txt", "f", |_| ()),
        ("more", "d", |_| ()),
    ];
    for (to, port, make) in cases {
        let project = publishing(to, port);
        make(&project);
        let before = snapshot(&project);
        refused(project.run(&[]), to);
        assert_eq!(snapshot(&project), before, "{to}");
        assert!(
            !project.path(".flow/actions").exists() || project.files(".flow/actions").is_empty(),
            "a stage ran before {to} was refused"
        );
        refused(project.flow(&["plan", "p.yaml"]), to);
        let ran = project.flow(&["run", "p.yaml", "--overwrite", to]).expect(0);
        assert_ne!(snapshot(&project), before, "{to} was asked for: {}", ran.err);
    }
}

#[test]
fn version_control_caches_and_the_project_are_never_written() {
    for to in [".git", ".git/hooks", ".flow", ".flow/objects", ".flow-published.json", ".", "./.git"] {
        let project = publishing(to, "d");
        fs::write(project.path(".git/HEAD"), "ref").unwrap();
        refused(project.run(&[]), "is not written");
        refused(project.flow(&["run", "p.yaml", "--overwrite", to]), "is not written");
        assert_eq!(project.read(".git/HEAD"), "ref");
    }
    let project = publishing("link/hooks", "d");
    symlink(".git", project.path("link")).unwrap();
    refused(project.run(&[]), "link/hooks");
    let project = publishing("a.txt/below", "f");
    refused(project.run(&[]), "a.txt is not a folder");
    let project = publishing("out: d, out/x", "f");
    refused(project.run(&[]), "out/x");
}

/// Everything in the project but the cache and the record.
fn snapshot(project: &Project) -> Vec<(std::path::PathBuf, Option<Vec<u8>>)> {
    let ours =
        |p: &std::path::Path| p.starts_with(project.path(".flow")) || p.ends_with(".flow-published.json") || p.ends_with("executions");
    let mut all: Vec<_> = project.files("").into_iter().filter(|p| !ours(p)).map(|p| (p.clone(), fs::read(p).ok())).collect();
    all.sort();
    all
}

#[test]
fn one_difference_below_a_place_is_enough() {
    type Change = fn(&Project);
    let changes: [(&str, Change, &str); 8] = [
        ("added", |p| p.write("out/folder/sub/new", "mine"), "sub/new was added"),
        ("edited", |p| p.write("out/folder/b", "edited"), "b was changed"),
        ("deleted", |p| fs::remove_file(p.path("out/folder/b")).unwrap(), "b is gone"),
        (
            "linked",
            |p| {
                fs::rename(p.path("out/folder/b"), p.path("elsewhere")).unwrap();
                symlink("../../elsewhere", p.path("out/folder/b")).unwrap();
            },
            "b was changed",
        ),
        ("an empty folder", |p| fs::create_dir(p.path("out/folder/mine")).unwrap(), "mine/ was added"),
        ("a file's text", |p| p.write("out/file", "edited"), "it was changed"),
        (
            "a folder in a file's place",
            |p| {
                fs::remove_file(p.path("out/file")).unwrap();
                fs::create_dir(p.path("out/file")).unwrap();
            },
            "it is a folder now",
        ),
        (
            "a link in a file's place",
            |p| {
                fs::rename(p.path("out/file"), p.path("elsewhere")).unwrap();
                symlink("../elsewhere", p.path("out/file")).unwrap();
            },
            "it is a link now",
        ),
    ];
    for (what, change, said) in changes {
        let project = project();
        project.run(&[]).expect(0);
        project.run(&["--var", "word=two"]).expect(0);
        change(&project);
        let before = snapshot(&project);
        for more in [&["--var", "word=three"][..], &["--var", "word=two"]] {
            let ran = project.run(more).expect(2);
            assert!(ran.err.contains(said), "{what}: {}", ran.err);
            assert_eq!(snapshot(&project), before, "{what}");
        }
    }
}

#[test]
fn a_change_during_the_run_is_seen_before_the_rename() {
    let project = Project::new(
        "flow: 1\nvars: { word: one }\nstages:\n  f: { use: shell, with: { run: 'echo ${word} > \"$out\"; sleep 1' } }\npublish: { out: f }\n",
    );
    project.run(&[]).expect(0);
    let child = project.start_with(&["--var", "word=two"], &[]);
    std::thread::sleep(std::time::Duration::from_millis(300));
    project.write("out", "mine");
    let ran = Project::wait(child).expect(2);
    assert!(ran.out.contains("`out` is not written") && project.read("out") == "mine", "{}", ran.out);
}

#[test]
fn places_of_versions_without_a_record_are_adopted_where_they_are_theirs() {
    let project = project();
    project.run(&[]).expect(0);
    project.run(&["--var", "word=two"]).expect(0);
    fs::remove_file(project.path(".flow-published.json")).unwrap();
    // Of a recorded run, though not what is published now.
    project.run(&["--var", "word=three"]).expect(0);
    assert_eq!(project.read("out/file"), "three\n");
    // The same bytes as would be published, with no record of any run.
    fs::remove_file(project.path(".flow-published.json")).unwrap();
    fs::remove_dir_all(project.path(".flow")).unwrap();
    let ran = project.run(&["--var", "word=four"]).expect(2);
    let words = ran.err.split(|c: char| c.is_whitespace() || c == '│').filter(|w| !w.is_empty()).collect::<Vec<_>>().join(" ");
    assert!(words.contains("flow run p.yaml --overwrite out/folder --overwrite out/file"), "{}", ran.err);
    project.run(&["--var", "word=four", "--overwrite", "out/folder", "--overwrite", "out/file"]).expect(0);
    fs::remove_file(project.path(".flow-published.json")).unwrap();
    project.run(&["--var", "word=four"]).expect(0);
    assert!(project.path(".flow-published.json").exists());
    // The record outlives the cache.
    fs::remove_dir_all(project.path(".flow")).unwrap();
    project.run(&["--var", "word=five"]).expect(0);
    assert!(project.run(&["--overwrite", "out/nothing"]).expect(2).err.contains("nothing is published there"));
    // Named from another folder, or in another way.
    project.write("out/folder/mine", "mine");
    project.write("out/file", "mine");
    let over =
        |path: &str| project.flow_from("more", &["run", "../p.yaml", "--var", "word=six", "--overwrite", "out/file", "--overwrite", path]);
    over("../more/../out/folder/").expect(0);
    assert!(!project.path("out/folder/mine").exists());
    project.write(".flow-published.json", "{}");
    let ran = project.run(&["--var", "word=six"]).expect(2);
    assert!(ran.err.contains("not a record") && ran.err.contains("move it away"), "{}", ran.err);
}

#[test]
fn a_second_get_replaces_what_the_first_put_there() {
    let project = project();
    project.run(&[]).expect(0);
    project.flow(&["get", "p.yaml", "d", "--to", "got"]).expect(0);
    project.run(&["--var", "word=two"]).expect(0);
    let again = ["get", "p.yaml", "d", "--var", "word=two", "--to", "got"];
    project.flow(&again).expect(0);
    assert_eq!(project.read("got/sub/a"), "two\n");
    project.write("got/mine", "mine");
    refused(project.flow(&["get", "p.yaml", "d", "--var", "word=one", "--to", "got"]), "mine was added");
    for to in ["more", "a.txt", "p.yaml", ".git"] {
        refused(project.flow(&["get", "p.yaml", "f", "--to", to]), to);
    }
    project.flow(&[&again[..], &["--overwrite", "got"]].concat()).expect(0);
    assert!(!project.path("got/mine").exists());
    for to in ["../got/", "./../more/../got"] {
        project.write("got/b", "mine");
        refused(project.flow_from("more", &["get", "../p.yaml", "d", "--to", to]), to);
        project.flow_from("more", &["get", "../p.yaml", "d", "--to", to, "--overwrite", to]).expect(0);
    }
    // A person's own copy of a result is theirs.
    fs::copy(project.path("out/file"), project.path("mine")).unwrap();
    refused(project.flow(&["get", "p.yaml", "f", "--var", "word=one", "--to", "mine"]), "mine");
    // Refused before anything is made; `..` of what is not there is what it reads.
    for (to, made) in [("p.yaml/x", "p.yaml/x"), (".git/n1/n2/x", ".git/n1")] {
        project.flow(&["get", "p.yaml", "f", "--var", "word=two", "--to", to]).expect(2);
        assert!(!project.path(made).exists(), "{to}");
    }
    project.flow(&["get", "p.yaml", "f", "--var", "word=two", "--to", "nowhere/../straight"]).expect(0);
    assert!(project.path("straight").exists() && !project.path("nowhere").exists());
    let elsewhere = tempfile::tempdir().unwrap();
    let to = elsewhere.path().join("copy");
    for _ in 0..2 {
        project.flow(&["get", "p.yaml", "f", "--var", "word=two", "--to", to.to_str().unwrap()]).expect(0);
    }
    fs::write(&to, "mine").unwrap();
    refused(project.flow(&["get", "p.yaml", "f", "--var", "word=two", "--to", to.to_str().unwrap()]), "copy");
    refused(project.flow(&["run", "p.yaml", "--profile", "p.yaml"]), "p.yaml");
    project.flow(&["run", "p.yaml", "--var", "word=two", "--profile", "trace.json"]).expect(0);
    project.flow(&["run", "p.yaml", "--var", "word=two", "--profile", "trace.json"]).expect(0);
}

#[test]
fn a_slash_at_the_end_of_a_place_changes_nothing() {
    let project = publishing("pf/", "f");
    project.run(&[]).expect(0);
    assert_eq!(project.read("pf"), "one\n");
    let project = publishing("pd/", "d");
    fs::create_dir(project.path("real")).unwrap();
    symlink("real", project.path("pd")).unwrap();
    refused(project.run(&[]), "pd");
}

#[test]
fn a_lock_on_the_project_that_somebody_holds_stops_nothing() {
    let project = project();
    let root = fs::File::open(project.path("")).unwrap();
    rustix::fs::flock(&root, rustix::fs::FlockOperation::LockExclusive).unwrap();
    project.run(&[]).expect(0);
    assert_eq!(project.read("out/file"), "one\n");
    assert!(!project.path(".flow-published.lock").exists());
}

#[test]
fn what_is_of_another_run_is_said() {
    let project = project();
    project.run(&[]).expect(0);
    let ran = project.flow(&["run", "p.yaml", "f", "--var", "word=two"]).expect(0);
    assert!(ran.err.contains("of another run: out/folder (d.out, run "), "{}", ran.err);
    assert!(!ran.err.contains("out/file ("), "{}", ran.err);
    let status = project.flow(&["status", "p.yaml", "--var", "word=two"]).expect(0);
    assert!(status.out.contains("of another run: out/folder"), "{}", status.out);
    let status = project.flow(&["status", "p.yaml"]).expect(0);
    assert!(status.out.contains("of another run: out/file (f.out") && !status.out.contains("out/folder ("), "{}", status.out);
    let json = project.flow(&["status", "p.yaml", "--json"]).expect(0).last();
    assert_eq!(json["of_another_run"][0]["path"], "out/file");
    // Also by a run that has nothing to do, and did not have to say it when it last ran.
    project.run(&[]).expect(0);
    project.flow(&["run", "p.yaml", "f"]).expect(0);
    project.flow(&["run", "p.yaml", "d", "--var", "word=two"]).expect(0);
    let ran = project.flow(&["run", "p.yaml", "f"]).expect(0);
    assert!(ran.err.contains("of another run: out/folder"), "{}", ran.err);
    assert_eq!(project.run(&["--var", "word=two"]).expect(0).err.matches("of another run").count(), 0);
}
