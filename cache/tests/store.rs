//! What the cache promises: nothing damaged is served, nothing served can be damaged, everything can be rebuilt.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use flow_cache::action::FORMAT;
use flow_cache::{ActionEntry, ActionKey, ActionProvenance, Artifact, Cache, Commit, Digest, Entered, Lookup};

fn key(name: &str) -> ActionKey {
    ActionKey(Digest::of(name.as_bytes()))
}

fn entry(name: &str, outputs: &[(&str, Artifact)]) -> ActionEntry {
    ActionEntry {
        format: FORMAT,
        key: key(name),
        kind: "test".into(),
        outputs: outputs.iter().map(|(p, a)| ((*p).to_owned(), *a)).collect::<BTreeMap<_, _>>(),
        provenance: ActionProvenance::default(),
    }
}

fn commit(cache: &Cache, entry: ActionEntry) {
    cache.commit(&[Commit { entry, parts: serde_json::json!({}), entered: Entered::default() }]).unwrap();
}

struct Fixture {
    dir: tempfile::TempDir,
}

impl Fixture {
    fn new() -> Self {
        Self { dir: tempfile::tempdir().unwrap() }
    }
    fn open(&self) -> Cache {
        Cache::open(&self.dir.path().join(".flow")).unwrap()
    }
    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }
    fn file(&self, name: &str, text: &str) -> PathBuf {
        let path = self.path(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, text).unwrap();
        path
    }
    fn tree(&self, name: &str) -> PathBuf {
        self.file(&format!("{name}/a.txt"), "a");
        self.file(&format!("{name}/deep/b.txt"), "b");
        let script = self.file(&format!("{name}/deep/run.sh"), "#!/bin/sh\n");
        fs::set_permissions(script, fs::Permissions::from_mode(0o755)).unwrap();
        self.path(name)
    }
}

fn overwrite(path: &Path, text: &str) {
    fs::set_permissions(path, fs::Permissions::from_mode(0o644)).unwrap();
    fs::write(path, text).unwrap();
}

#[test]
fn a_file_enters_under_its_digest_and_read_only() {
    let fixture = Fixture::new();
    let cache = fixture.open();
    let source = fixture.file("x", "hello");
    let artifact = cache.put(&source).unwrap();
    assert_eq!(artifact, Artifact { digest: Digest::of(b"hello"), tree: false, size: 5 });
    assert!(!source.exists(), "it was moved");
    let object = cache.object_path(&artifact).unwrap();
    assert_eq!(fs::read_to_string(&object).unwrap(), "hello");
    assert_eq!(fs::metadata(&object).unwrap().permissions().mode() & 0o777, 0o444);
}

#[test]
fn a_directory_is_named_by_what_it_holds() {
    let fixture = Fixture::new();
    let cache = fixture.open();
    let before = cache.digest_source(&fixture.tree("one")).unwrap();
    let one = cache.put(&fixture.path("one")).unwrap();
    let two = cache.put(&fixture.tree("two")).unwrap();
    assert_eq!(one, two);
    assert_eq!(before, one, "a directory outside has the same name as inside");
    fs::create_dir_all(fixture.path("three")).unwrap();
    let out = fixture.path("out");
    export(&cache, &one, &out).unwrap();
    assert_eq!(fs::read_to_string(out.join("deep/b.txt")).unwrap(), "b");
    assert_ne!(fs::metadata(out.join("deep/run.sh")).unwrap().permissions().mode() & 0o100, 0);
    assert_eq!(fs::metadata(out.join("a.txt")).unwrap().permissions().mode() & 0o100, 0);
}

#[test]
fn links_are_refused() {
    let fixture = Fixture::new();
    let cache = fixture.open();
    fixture.tree("t");
    std::os::unix::fs::symlink("/etc/hostname", fixture.path("t/link")).unwrap();
    let error = cache.put(&fixture.path("t")).unwrap_err().to_string();
    assert!(error.contains("link") && error.contains("only files and directories"), "{error}");
}

#[test]
fn a_damaged_object_is_never_served() {
    let fixture = Fixture::new();
    let cache = fixture.open();
    let artifact = cache.put(&fixture.file("x", "hello")).unwrap();
    commit(&cache, entry("k", &[("out", artifact)]));
    assert!(matches!(cache.lookup(&key("k")).unwrap(), Lookup::Hit(_)));

    let object = cache.object_path(&artifact).unwrap();
    let modified = fs::metadata(&object).unwrap().modified().unwrap();
    overwrite(&object, "jello");
    // Same size, and the modification time set back: the change time still tells.
    fs::File::options().write(true).open(&object).unwrap().set_modified(modified).unwrap();
    match cache.lookup(&key("k")).unwrap() {
        Lookup::Broken { port, damaged: true, .. } => assert_eq!(port, "out"),
        other => panic!("{other:?}"),
    }
    assert!(!object.exists(), "it was taken out of the store");
    assert!(matches!(cache.lookup(&key("k")).unwrap(), Lookup::Broken { damaged: false, .. }));
    assert!(export(&cache, &artifact, &fixture.path("copy")).is_err());

    cache.put(&fixture.file("x", "hello")).unwrap();
    assert!(matches!(cache.lookup(&key("k")).unwrap(), Lookup::Hit(_)), "making it again heals");
}

#[test]
fn damage_inside_a_directory_is_found() {
    let fixture = Fixture::new();
    let cache = fixture.open();
    let artifact = cache.put(&fixture.tree("t")).unwrap();
    commit(&cache, entry("k", &[("out", artifact)]));
    let member = cache.layout().object(&Digest::of(b"b"));
    overwrite(&member, "c");
    assert!(matches!(cache.lookup(&key("k")).unwrap(), Lookup::Broken { damaged: true, .. }));
}

#[test]
fn an_entry_that_is_cut_off_promises_nothing() {
    let fixture = Fixture::new();
    let cache = fixture.open();
    let artifact = cache.put(&fixture.file("x", "hello")).unwrap();
    commit(&cache, entry("k", &[("out", artifact)]));
    let file = cache.layout().action(&key("k"));
    let text = fs::read_to_string(&file).unwrap();
    fs::write(&file, &text[..text.len() / 2]).unwrap();
    drop(cache);
    fs::remove_file(fixture.path(".flow/index.db")).unwrap();
    assert!(matches!(fixture.open().lookup(&key("k")).unwrap(), Lookup::Miss));
}

#[test]
fn the_index_is_rebuilt_from_files() {
    let fixture = Fixture::new();
    let cache = fixture.open();
    let artifact = cache.put(&fixture.file("x", "hello")).unwrap();
    commit(&cache, entry("k", &[("out", artifact)]));
    let record = serde_json::json!({
        "pipeline": "/p.yaml", "stages": [{ "stage": "s", "state": "executed", "key": key("k") }, { "stage": "bad", "state": "failed" }]
    });
    cache.record_run("r1", &record).unwrap();
    drop(cache);
    for damage in ["missing", "garbage"] {
        for suffix in ["", "-wal", "-shm"] {
            let _ = fs::remove_file(fixture.path(&format!(".flow/index.db{suffix}")));
        }
        if damage == "garbage" {
            fs::write(fixture.path(".flow/index.db"), vec![0x5a; 20_000]).unwrap();
        }
        let cache = fixture.open();
        assert!(matches!(cache.lookup(&key("k")).unwrap(), Lookup::Hit(_)), "{damage}");
        assert_eq!(cache.latest("/p.yaml", "s").unwrap(), Some(key("k")), "{damage}");
        assert_eq!(cache.latest("/p.yaml", "bad").unwrap(), None);
        assert_eq!(cache.runs(10).unwrap(), std::slice::from_ref(&record), "{damage}");
    }
}

#[test]
fn one_holder_per_key_and_a_dropped_lock_is_free() {
    let fixture = Fixture::new();
    let (a, b) = (fixture.open(), fixture.open());
    let held = a.try_lock(&key("k")).unwrap().unwrap();
    assert!(b.try_lock(&key("k")).unwrap().is_none());
    assert!(b.try_lock(&key("other")).unwrap().is_some());
    drop(held);
    let again = b.try_lock(&key("k")).unwrap();
    assert!(again.is_some());
    assert!(a.try_lock(&key("k")).unwrap().is_none());
}

#[test]
fn inputs_are_read_only_and_a_changed_one_is_found_and_taken_out() {
    let fixture = Fixture::new();
    let cache = fixture.open();
    let file = cache.put(&fixture.file("x", "hello")).unwrap();
    let tree = cache.put(&fixture.tree("t")).unwrap();
    let dir = fixture.path("in");
    let inputs = [(file, dir.join("text")), (tree, dir.join("tree")), (file, dir.join("again"))];
    let text = cache.place_of(&file, dir.join("text"));

    let placed = cache.materialise(&inputs).unwrap();
    assert_eq!(fs::metadata(&text).unwrap().permissions().mode() & 0o222, 0);
    assert_eq!(fs::read_to_string(dir.join("tree/deep/b.txt")).unwrap(), "b");
    assert_ne!(fs::metadata(dir.join("tree/deep/run.sh")).unwrap().permissions().mode() & 0o100, 0);
    assert_eq!(cache.release(placed).unwrap(), []);
    assert!(!dir.join("tree").exists());
    cache.object_path(&file).unwrap();

    let placed = cache.materialise(&inputs).unwrap();
    overwrite(&text, "jello");
    let changed = cache.release(placed).unwrap();
    assert_eq!(changed, [file.digest]);
    assert!(cache.object_path(&file).is_err(), "the damaged object is gone");
}

#[test]
fn a_copy_outside_is_no_link_and_an_identical_one_is_left_alone() {
    let fixture = Fixture::new();
    let cache = fixture.open();
    let artifact = cache.put(&fixture.file("x", "hello")).unwrap();
    let out = fixture.path("out/file");
    assert!(export(&cache, &artifact, &out).unwrap());
    assert_eq!(fs::metadata(&out).unwrap().nlink(), 1);
    assert!(!export(&cache, &artifact, &out).unwrap(), "nothing to do");
    fs::write(&out, "changed by hand").unwrap();
    cache.object_path(&artifact).unwrap();
    assert!(export(&cache, &artifact, &out).unwrap());
    assert_eq!(fs::read_to_string(&out).unwrap(), "hello");

    let tree = cache.put(&fixture.tree("t")).unwrap();
    assert!(export(&cache, &tree, &out).unwrap(), "a directory replaces a file");
    assert!(!export(&cache, &tree, &out).unwrap());
    assert!(export(&cache, &artifact, &out).unwrap(), "and a file a directory");
    // What a killed process left beside the place goes, also where there is nothing to write.
    for written in [false, true] {
        let name = flow_cache::Digest::of(out.file_name().unwrap().as_encoded_bytes()).short();
        let left = out.parent().unwrap().join(format!(".flow-{name}.0"));
        std::fs::create_dir_all(left.join("old/deep")).unwrap();
        std::fs::write(left.join("old/deep/file"), "of a killed process").unwrap();
        assert_eq!(export(&cache, if written { &tree } else { &artifact }, &out).unwrap(), written);
        assert!(!left.exists());
    }
    assert_eq!(fs::read_dir(fixture.path("out")).unwrap().count(), 1, "no temporary names stay");
}

#[test]
fn a_source_that_changed_has_another_digest_at_once() {
    let fixture = Fixture::new();
    let cache = fixture.open();
    let source = fixture.file("s", "aaaa");
    let one = cache.digest_source(&source).unwrap();
    fs::write(&source, "bbbb").unwrap();
    assert_ne!(one, cache.digest_source(&source).unwrap());
}

/// An export that may replace whatever is there.
fn export(cache: &Cache, artifact: &Artifact, to: &std::path::Path) -> Result<bool, flow_cache::CacheError> {
    cache.export(artifact, to, || Ok(()))
}
