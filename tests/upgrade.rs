//! What an earlier `flow` left is read, or refused by version: a cache with runs, a lock file, traces, paid answers.

mod support;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;
use support::Ran;

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/a97e9d1").join(name)
}

fn copy(from: &Path, to: &Path) {
    if from.is_dir() {
        fs::create_dir_all(to).unwrap();
        for entry in fs::read_dir(from).unwrap() {
            let entry = entry.unwrap();
            copy(&entry.path(), &to.join(entry.file_name()));
        }
    } else {
        fs::copy(from, to).unwrap();
    }
}

/// A fixture's project, as the earlier version left it.
struct Old {
    dir: tempfile::TempDir,
}

impl Old {
    fn of(name: &str) -> Self {
        let old = Self { dir: tempfile::tempdir().unwrap() };
        copy(&fixture(name), old.dir.path());
        fs::create_dir(old.path(".git")).unwrap();
        if name == "upgrade" {
            fs::rename(old.path("cache"), old.path(".flow")).unwrap();
            // Git keeps no empty folder.
            for dir in ["tasks", "locks", "leases", "tmp"] {
                fs::create_dir_all(old.path(".flow").join(dir)).unwrap();
            }
            fs::rename(old.path("published"), old.path("out")).unwrap();
            copy(&Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/models/tiny-llama"), &old.path("m"));
        }
        old
    }
    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }
    fn flow(&self, args: &[&str]) -> Ran {
        let mut command = Command::new(env!("CARGO_BIN_EXE_flow"));
        command.args(args).current_dir(self.dir.path()).env("FLOW_DEVICE", "cpu").env("FLOW_CACHE_DIR", self.path(".flow"));
        Ran::of(&command.env_remove("FLOW_REMOTE").output().unwrap())
    }
    /// Revision of each kind, as the action entries hold them.
    fn revisions(&self) -> BTreeMap<String, u64> {
        let mut out = BTreeMap::new();
        for shard in fs::read_dir(self.path(".flow/actions")).unwrap().flatten() {
            for file in fs::read_dir(shard.path()).unwrap().flatten() {
                let entry: Value = serde_json::from_slice(&fs::read(file.path()).unwrap()).unwrap();
                out.insert(entry["kind"].as_str().unwrap().to_owned(), entry["parts"]["revision"].as_u64().unwrap());
            }
        }
        out
    }
}

/// Kinds whose recipe has changed since: their stages run again, and nothing else does.
fn raised(old: &Old) -> Vec<String> {
    let before = old.revisions();
    let kinds: Value = serde_json::from_str(&old.flow(&["kinds", "--json"]).expect(0).out).unwrap();
    let now = kinds.as_array().unwrap().iter().map(|k| (k["kind"].as_str().unwrap(), k["revision"].as_u64().unwrap()));
    now.filter(|(kind, revision)| before.get(*kind).is_some_and(|b| b != revision)).map(|(kind, _)| kind.to_owned()).collect()
}

#[test]
fn a_cache_serves_every_stage_whose_recipe_is_the_same() {
    let old = Old::of("upgrade");
    let raised = raised(&old);
    let ran = old.flow(&["run", "p.yaml", "--json"]).expect(0);
    let text = fs::read_to_string(old.path("p.yaml")).unwrap();
    let of_kind = |stage: &str, kind: &str| {
        let at = text.find(&format!("\n  {stage}:")).unwrap_or_else(|| panic!("no stage {stage}"));
        text[at..].split_once("use: ").is_some_and(|(_, rest)| rest.starts_with(kind))
    };
    for stage in ran.names("executed") {
        assert!(raised.iter().any(|kind| of_kind(&stage, kind)), "`{stage}` was executed, and raised are {raised:?}");
    }
    old.flow(&["verify"]).expect(0);
}

#[test]
fn what_it_published_is_taken_over_where_nobody_changed_it() {
    let old = Old::of("upgrade");
    old.flow(&["run", "p.yaml"]).expect(0);
    let record: Value = serde_json::from_slice(&fs::read(old.path(".flow-published.json")).unwrap()).unwrap();
    assert_eq!(record["places"].as_object().unwrap().keys().collect::<Vec<_>>(), ["out/folder", "out/note.txt"]);
    old.flow(&["run", "p.yaml", "--var", "word=other"]).expect(0);
    let changed = Old::of("upgrade");
    fs::write(changed.path("out/folder/mine"), "mine").unwrap();
    let ran = changed.flow(&["run", "p.yaml"]).expect(2);
    assert!(ran.err.contains("out/folder") && changed.path("out/folder/mine").exists(), "{}", ran.err);
}

#[test]
fn a_lock_is_kept_or_refused_by_name() {
    let old = Old::of("upgrade");
    let raised = raised(&old);
    let ran = old.flow(&["run", "p.yaml", "--locked", "--json"]);
    if raised.is_empty() {
        ran.expect(0);
    } else {
        let ran = ran.expect(1);
        assert!(ran.out.contains("flow lock"), "{}", ran.out);
    }
}

#[test]
fn traces_are_read() {
    let (projected, old) = (fixture("training/traces"), Old::of("upgrade"));
    old.flow(&["traces", "check", projected.to_str().unwrap()]).expect(0);
    old.flow(&["traces", "stats", projected.to_str().unwrap(), "--json"]).expect(0);
}

#[test]
fn paid_answers_are_not_asked_for_again() {
    let old = Old::of("asked");
    copy(&fixture("asked/answers"), &old.path(".flow/answers"));
    let ran = old.flow(&["run", "p.yaml", "--json"]).expect(0);
    assert_eq!(ran.names("executed"), ["baseline", "prompts", "teacher", "traces"]);
    let before = fs::read(fixture("asked/answers/00000.journal")).unwrap();
    assert!(fs::read(old.path(".flow/answers/00000.journal")).unwrap().starts_with(&before), "an answer was changed");
}
