//! `flow run` and what looks at its results, over small stages.

mod support;

use std::fs;
use std::os::unix::fs::PermissionsExt;

use support::Project;

const PIPELINE: &str = "\
flow: 1
name: fixture
vars: { tau: 1.5 }
stages:
  corpus: { use: fix.text, with: { path: a.txt, holdout: 0.1 } }
  loud: { use: fix.upper, in: { text: corpus.train }, with: { tau: \"${tau}\" } }
  words: { use: fix.words, in: { text: loud } }
  split: { use: fix.split, in: { words: words } }
  figures: { use: fix.measure, in: { text: split } }
  report: { use: fix.join, in: { parts: [loud, words, figures] } }
targets: [report]
publish: { out/page.txt: report, out/words: words }
";

const ALL: [&str; 6] = ["corpus", "figures", "loud", "report", "split", "words"];

fn made() -> Project {
    let project = Project::new(PIPELINE);
    let ran = project.run(&[]).expect(0);
    assert_eq!(ran.names("executed"), ALL);
    assert_eq!(project.executed().len(), 6);
    project
}

/// A run that must execute exactly these stages.
fn executes(project: &Project, args: &[&str], stages: &[&str]) {
    let planned: Vec<String> = {
        let plan = project.run(&[&["--dry-run"], args].concat()).expect(0).last();
        assert_eq!(plan["event"], "planned");
        plan["execute"].as_array().unwrap().iter().map(|e| e["stage"].as_str().unwrap().to_owned()).collect()
    };
    let ran = project.run(args).expect(0);
    assert_eq!(ran.names("executed"), stages);
    let mut noted = project.executed();
    noted.sort();
    assert_eq!(noted, stages);
    assert!(stages.iter().all(|s| planned.iter().any(|p| p == s)), "the plan {planned:?} lacks some of {stages:?}");
}

#[test]
fn a_first_run_makes_everything_and_a_second_nothing() {
    let project = made();
    assert!(project.read("out/page.txt").contains("== words.words Words"));
    assert!(project.path("out/words/H/HELLO").is_file());
    let ran = project.run(&[]).expect(0);
    let last = ran.last();
    assert_eq!((last["event"].as_str(), last["ok"].as_bool()), (Some("run_finished"), Some(true)));
    assert!(ran.names("executed").is_empty());
    assert_eq!(ran.names("reused"), ALL);
    assert!(last["seconds"].as_f64().unwrap() < 0.3);
    assert!(project.executed().is_empty());
    assert!(project.files(".flow/tasks").is_empty(), "task directories are gone after success");
}

#[test]
fn the_report_knows_how_its_inputs_came_to_be() {
    let page = made().read("out/page.txt");
    assert!(page.contains("-- loud a fixture Some(1.5)"), "{page}");
    assert!(page.contains("-- corpus cpu None"), "{page}");
}

#[test]
fn comments_order_names_defaults_and_settings_execute_nothing() {
    let project = made();
    let same = PIPELINE
        .replace("name: fixture", "# a comment\nname: fixture")
        .replace("{ path: a.txt, holdout: 0.1 }", "{ readers: 7, holdout: 0.1, path: ./a.txt }")
        .replace(
            "with: { tau: \"${tau}\" } }",
            "with: { tau: 1.50, suffix: \"\" }, retries: 2, timeout: 10m, labels: { a: b }, resources: { cpu: 1 } }",
        )
        .replace("words:", "parole:")
        .replace("in: { words: words }", "in: { words: parole }")
        .replace("in: { parole: words }", "in: { words: parole }")
        .replace("[loud, words, figures]", "[loud, parole, figures]")
        .replace("out/parole: words", "out/words: parole");
    assert_ne!(same, PIPELINE);
    project.write("p.yaml", &same);
    let ran = project.run(&[]).expect(0);
    assert!(ran.names("executed").is_empty(), "{:?}", ran.names("executed"));
    assert!(ran.names("reused").contains(&"parole".to_owned()));
    assert!(project.executed().is_empty());
}

#[test]
fn a_variable_executes_what_follows_from_it() {
    let project = made();
    let explained = project.flow(&["explain", "p.yaml", "loud", "--var", "tau=1.75"]).expect(0).out;
    assert!(explained.contains("`with.tau` 1.5 → 1.75"), "{explained}");
    let explained = project.flow(&["explain", "p.yaml", "words", "--var", "tau=1.75"]).expect(0).out;
    assert!(explained.contains("input `text` may change: stage `loud` will run"), "{explained}");
    // The loud text does not depend on tau: nothing after it runs.
    executes(&project, &["--var", "tau=1.75"], &["loud"]);
    executes(&project, &["--set", "stages.loud.with.suffix=\" NEW\""], &["figures", "loud", "report", "split", "words"]);
    executes(&project, &[], &[]);
}

#[test]
fn a_source_that_changes_without_effect_stops_early() {
    let project = made();
    project.write("a.txt", "hello world of text   \nsecond line here\t\n");
    let causes = project.run(&["--dry-run"]).expect(0).last();
    assert_eq!(causes["execute"][0]["causes"][0], "source file a.txt changed");
    executes(&project, &[], &["corpus"]);
    project.write("a.txt", "zebras eat of text\nsecond line here\n");
    let ran = project.run(&[]).expect(0);
    assert_eq!(project.executed().len(), 6);
    let started = ran.out.lines().find(|l| l.contains("stage_started") && l.contains("\"loud\"")).unwrap();
    assert!(started.contains("input `text` changed: stage `corpus` re-ran"), "{started}");
}

#[test]
fn targets_select() {
    let project = Project::new(PIPELINE);
    assert_eq!(project.run(&["loud"]).expect(0).names("executed"), ["corpus", "loud"]);
    assert!(!project.path("out").exists(), "what was not made is not published");
    let wrong = project.run(&["lout"]).expect(2);
    assert!(wrong.err.contains("no stage `lout`") && wrong.err.contains("did you mean `loud`?"), "{}", wrong.err);
}

#[test]
fn a_damaged_object_is_made_again() {
    let project = made();
    let text = project.path("page.copy");
    project.flow(&["get", "p.yaml", "loud", "--to", text.to_str().unwrap()]).expect(0);
    let loud = project.read("page.copy");
    let object = project.files(".flow/objects").into_iter().find(|p| fs::read_to_string(p).is_ok_and(|t| t == loud)).unwrap();
    fs::set_permissions(&object, fs::Permissions::from_mode(0o644)).unwrap();
    fs::write(&object, loud.to_lowercase()).unwrap();
    let ran = project.run(&[]).expect(0);
    assert_eq!(ran.names("executed"), ["loud"]);
    assert!(ran.out.contains("output `text` is damaged in the cache"), "{}", ran.out);
    project.flow(&["get", "p.yaml", "loud", "--to", text.to_str().unwrap()]).expect(0);
    assert_eq!(project.read("page.copy"), loud);
}

#[test]
fn a_missing_object_is_made_again() {
    let project = made();
    fs::remove_dir_all(project.path(".flow/objects")).unwrap();
    let ran = project.run(&[]).expect(0);
    assert_eq!(ran.names("executed"), ALL);
    assert!(ran.out.contains("is missing in the cache"), "{}", ran.out);
}

#[test]
fn the_index_can_be_lost() {
    let project = made();
    for name in ["index.db", "index.db-wal", "index.db-shm"] {
        let _ = fs::remove_file(project.path(".flow").join(name));
    }
    executes(&project, &[], &[]);
    let explained = project.flow(&["explain", "p.yaml", "loud", "--var", "tau=9"]).expect(0).out;
    assert!(explained.contains("`with.tau` 1.5 → 9"), "history is rebuilt too: {explained}");
}

#[test]
fn a_gate_that_refuses_lets_everything_be_made_and_exits_3() {
    let gate = "  gate: { use: fix.gate, in: { text: corpus.train }, with: { at_least: 1000 } }\ntargets: [report, gate]";
    let project = Project::new(&PIPELINE.replace("targets: [report]", gate));
    let first = project.run(&[]).expect(3);
    assert_eq!((first.last()["ok"].as_bool(), first.names("refused")), (Some(false), vec!["gate".to_owned()]));
    assert!(project.path("out/page.txt").exists());
    let again = project.run(&[]).expect(3);
    assert!(again.names("executed").is_empty());
    let open = project.run(&["--set", "stages.gate.with.at_least=1"]).expect(0);
    assert_eq!(open.names("executed"), ["gate"]);
}

#[test]
fn a_threads_change_re_measures_and_nothing_else() {
    let project = Project::new(PIPELINE);
    project.run(&["--threads", "1"]).expect(0);
    project.executed();
    executes(&project, &["--threads", "2"], &["figures", "report"]);
}

#[test]
fn the_table_ends_with_headline_and_published_paths() {
    let project = made();
    let text = project.flow(&["run", "p.yaml"]).expect(0).out;
    assert!(text.contains("0 executed, 6 reused"), "{text}");
    assert!(text.contains("\nparts  3\n"), "{text}");
    assert!(text.contains("out/page.txt"), "{text}");
}

#[test]
fn looking_does_not_execute() {
    let project = made();
    let status = project.flow(&["status", "p.yaml", "--var", "tau=9"]).expect(0).out;
    assert!(status.contains("corpus   up to date") && status.contains("loud     stale       `with.tau` 1.5 → 9"), "{status}");
    assert!(project.flow(&["graph", "p.yaml", "--format", "dot"]).expect(0).out.contains("\"loud\" -> \"words\" [label=\"text\"]"));
    assert!(project.flow(&["graph", "p.yaml"]).expect(0).out.contains("loud -->|text| words"));
    assert!(project.flow(&["kinds"]).expect(0).out.contains("fix.upper"));
    let kind = project.flow(&["kinds", "fix.upper"]).expect(0).out;
    assert!(kind.contains("tau") && kind.contains("default 1.3"), "{kind}");
    assert!(project.flow(&["log", "p.yaml"]).expect(0).out.contains("6 executed"));
    let schema: serde_json::Value = serde_json::from_str(&project.flow(&["schema"]).expect(0).out).unwrap();
    assert!(schema["$defs"]["fix.upper"]["properties"]["tau"].is_object());
    let stale = project.flow(&["get", "p.yaml", "loud", "--var", "tau=9", "--to", "x"]).expect(2);
    assert!(stale.err.contains("out of date"), "{}", stale.err);
    assert!(project.executed().is_empty());
}

#[test]
fn bad_input_touches_no_cache() {
    let project = Project::new("flow: 1\nstages:\n  a: { use: fix.uper }\n");
    let ran = project.run(&[]).expect(2);
    assert!(ran.err.contains("did you mean `fix.upper`?"), "{}", ran.err);
    assert_eq!(ran.last()["event"], "error");
    assert!(!project.path(".flow").exists());
    project.flow(&["run", "nowhere.yaml"]).expect(2);
    project.flow(&["run", "p.yaml", "--bogus"]).expect(2);
    fs::write(project.path("p.yaml"), b"flow: 1\nname: \xff\n").unwrap();
    let ran = project.run(&[]).expect(2);
    assert!(ran.err.contains("not UTF-8 at byte 14 (line 2)"), "{}", ran.err);
}

#[test]
fn a_cache_that_cannot_be_is_an_environment_error() {
    let project = Project::new(PIPELINE);
    project.write("file", "");
    project.run(&["--cache-dir", "file/cache"]).expect(4);
}
