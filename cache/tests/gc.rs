//! Collection, verification, pins: nothing that someone relies on goes, whoever runs beside.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use flow_cache::action::FORMAT;
use flow_cache::{ActionEntry, ActionKey, ActionProvenance, Artifact, Cache, Commit, Digest, Entered, GcOptions, Lease, Lookup, Pin};
use serde_json::json;

fn key(name: &str) -> ActionKey {
    ActionKey(Digest::of(name.as_bytes()))
}

/// An action `name` whose output is a file, or a directory of three, of `text`.
fn made(cache: &Cache, dir: &Path, name: &str, text: &str, tree: bool) -> Artifact {
    made_under(cache, dir, name, text, tree, None)
}

/// The same, as a run does: named in its lease before a collection can see it.
fn made_under(cache: &Cache, dir: &Path, name: &str, text: &str, tree: bool, lease: Option<&Lease>) -> Artifact {
    let path = dir.join(name);
    if tree {
        fs::create_dir_all(&path).unwrap();
        for n in 0..3 {
            fs::write(path.join(n.to_string()), format!("{text}{n}")).unwrap();
        }
    } else {
        fs::write(&path, text).unwrap();
    }
    let mut entered = Entered::default();
    let entering = cache.entering().unwrap();
    let artifact = cache.enter(&path, &mut entered).unwrap();
    if let Some(lease) = lease {
        lease.keep(&key(name), [&artifact].into_iter()).unwrap();
    }
    drop(entering);
    let provenance = ActionProvenance { stage: name.into(), ..Default::default() };
    let entry =
        ActionEntry { format: FORMAT, key: key(name), kind: "k".into(), outputs: BTreeMap::from([("out".into(), artifact)]), provenance };
    cache.commit(&[Commit { entry, parts: json!({}), entered }]).unwrap();
    artifact
}

fn record(cache: &Cache, id: &str, pipeline: &str, names: &[&str]) {
    let stages: Vec<_> = names.iter().map(|n| json!({ "stage": n, "state": "executed", "key": key(n) })).collect();
    cache.record_run(id, &json!({ "id": id, "pipeline": pipeline, "started": 1.0, "stages": stages })).unwrap();
}

fn options(keep_runs: usize) -> GcOptions {
    GcOptions { max_size: None, keep_runs, dry_run: false }
}

fn hit(cache: &Cache, name: &str) -> bool {
    matches!(cache.lookup(&key(name)).unwrap(), Lookup::Hit(_))
}

#[test]
fn recent_runs_pins_and_leases_keep_the_rest_goes() {
    let dir = tempfile::tempdir().unwrap();
    let cache = Cache::open(&dir.path().join(".flow")).unwrap();
    for (i, name) in ["old", "new", "pinned", "leased", "locked", "orphan"].into_iter().enumerate() {
        made(&cache, dir.path(), name, name, i % 2 == 0);
    }
    record(&cache, "1", "/p", &["old"]);
    record(&cache, "2", "/p", &["new"]);
    cache.record_run("3", &json!({ "id": "3", "pipeline": "/p", "like": "2", "stages": [] })).unwrap();
    cache.pin(&Pin { name: "p".into(), key: key("pinned"), pipeline: "/p".into(), stage: "pinned".into(), at: 0 }).unwrap();
    let lease = cache.lease("run").unwrap();
    assert!(matches!(cache.lookup_leased(&key("leased"), &lease).unwrap(), Lookup::Hit(_)));
    let lock = cache.try_lock(&key("locked")).unwrap();

    let before = cache.verify(2).unwrap();
    let planned = cache.gc(&GcOptions { dry_run: true, ..options(1) }).unwrap();
    assert_eq!((planned.actions, planned.kept_actions, planned.runs), (2, 4, 1), "{planned:?}");
    assert_eq!(cache.verify(2).unwrap().objects, before.objects, "a dry run removes nothing");
    let report = cache.gc(&options(1)).unwrap();
    assert_eq!((report.actions, report.objects, report.held_actions), (2, planned.objects, 3));
    for (name, stays) in [("old", false), ("orphan", false), ("new", true), ("pinned", true), ("leased", true), ("locked", true)] {
        assert_eq!(hit(&cache, name), stays, "{name}");
    }
    assert_eq!(cache.runs(10).unwrap().len(), 2);
    drop((lease, lock));
    assert!(cache.unpin("p").unwrap() && !cache.unpin("p").unwrap());
    let report = cache.gc(&options(1)).unwrap();
    assert_eq!(report.kept_actions, 1);
    let after = cache.verify(2).unwrap();
    assert!(after.damaged.is_empty() && after.missing.is_empty() && after.broken.is_empty(), "{after:?}");
}

#[test]
fn a_size_evicts_the_least_recently_used() {
    let dir = tempfile::tempdir().unwrap();
    let cache = Cache::open(&dir.path().join(".flow")).unwrap();
    for (i, name) in ["a", "b", "c", "d"].into_iter().enumerate() {
        made(&cache, dir.path(), name, &format!("{name}{}", "x".repeat(999)), false);
        let stages = json!([{ "stage": name, "state": "executed", "key": key(name) }]);
        cache.record_run(&format!("r{i}"), &json!({ "pipeline": format!("/{name}"), "started": i, "stages": stages })).unwrap();
    }
    let report = cache.gc(&GcOptions { max_size: Some(2500), ..options(9) }).unwrap();
    assert_eq!((report.actions, report.kept_objects.bytes, report.fits), (2, 2000, true));
    assert_eq!(["a", "b", "c", "d"].map(|n| hit(&cache, n)), [false, false, true, true]);
}

#[test]
fn verification_finds_what_no_stat_tells() {
    let dir = tempfile::tempdir().unwrap();
    let cache = Cache::open(&dir.path().join(".flow")).unwrap();
    let good = made(&cache, dir.path(), "good", "good", false);
    let tree = made(&cache, dir.path(), "tree", "tree", true);
    let bad = made(&cache, dir.path(), "bad", "bad", false);
    fs::remove_file(cache.layout().object(&Digest::of(b"tree1"))).unwrap();
    let path = cache.layout().object(&bad.digest);
    fs::remove_file(&path).unwrap();
    fs::write(&path, "rot").unwrap();
    fs::write(cache.layout().action(&key("good")), "{ not an entry").unwrap();
    let report = cache.verify(3).unwrap();
    assert_eq!((report.damaged.as_slice(), report.missing.as_slice()), ([bad.digest].as_slice(), [Digest::of(b"tree1")].as_slice()));
    assert_eq!(report.bad_entries.len(), 1);
    let mut stages: Vec<_> = report.broken.into_iter().map(|(_, stage)| stage).collect();
    stages.sort();
    assert_eq!(stages, ["bad", "tree"]);
    assert!(cache.layout().object(&good.digest).exists() && cache.layout().object(&tree.digest).exists());
}

#[test]
fn a_runner_beside_collections_never_misses_what_it_was_promised() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join(".flow");
    let cache = Cache::open(&root).unwrap();
    let stop = AtomicBool::new(false);
    let (collections, hits, misses) = (AtomicUsize::new(0), AtomicUsize::new(0), AtomicUsize::new(0));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let collector = Cache::open(&root).unwrap();
            while !stop.load(Ordering::Relaxed) {
                collector.gc(&options(0)).unwrap();
                collections.fetch_add(1, Ordering::Relaxed);
            }
        });
        for runner in 0..2 {
            let (root, base, stop, hits, misses) = (&root, dir.path(), &stop, &hits, &misses);
            scope.spawn(move || {
                let cache = Cache::open(root).unwrap();
                let mut round = 0;
                while !stop.load(Ordering::Relaxed) {
                    round += 1;
                    let lease = cache.lease(&format!("r{runner}-{round}")).unwrap();
                    for n in 0..6 {
                        let name = format!("a{n}");
                        match cache.lookup_leased(&key(&name), &lease).unwrap() {
                            Lookup::Hit(entry) => {
                                hits.fetch_add(1, Ordering::Relaxed);
                                let artifact = entry.outputs["out"];
                                let place = cache.place_of(&artifact, base.join(format!("in-{runner}-{round}-{n}")));
                                let placed = cache.materialise(&[(artifact, place)]).unwrap();
                                assert_eq!(cache.release(placed).unwrap(), []);
                            }
                            _ => {
                                misses.fetch_add(1, Ordering::Relaxed);
                                let Some(_lock) = cache.try_lock(&key(&name)).unwrap() else { continue };
                                let scratch = base.join(format!("out-{runner}-{round}-{n}"));
                                fs::create_dir_all(&scratch).unwrap();
                                made_under(&cache, &scratch, &name, &name, n % 2 == 0, Some(&lease));
                            }
                        }
                    }
                }
            });
        }
        let began = Instant::now();
        while began.elapsed() < Duration::from_secs(3) {
            std::thread::sleep(Duration::from_millis(50));
        }
        stop.store(true, Ordering::Relaxed);
    });
    let counts = [&collections, &hits, &misses].map(|c| c.load(Ordering::Relaxed));
    assert!(counts.iter().all(|c| *c > 10), "collections, hits, misses: {counts:?}");
    drop(cache);
}
