//! `verify`: every object read again and compared with its name.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::{AtomicUsize, Ordering};

use serde::Serialize;

use crate::action::ActionFile;
use crate::cache::Cache;
use crate::digest::{ActionKey, Digest};
use crate::error::CacheError;
use crate::files::{self, Stat, json_files};
use crate::object::Entered;

/// What a verification found.
#[derive(Clone, Debug, Default, Serialize)]
pub struct VerifyReport {
    /// Objects that were read.
    pub objects: u64,
    /// Bytes of them.
    pub bytes: u64,
    /// Objects that held other bytes; they were removed.
    pub damaged: Vec<Digest>,
    /// Objects that an action entry names and that are not there.
    pub missing: Vec<Digest>,
    /// Objects that were brought back.
    pub healed: Vec<Digest>,
    /// Files of action entries that could not be read; they were removed.
    pub bad_entries: Vec<String>,
    /// Actions whose result is not whole: key and stage; they run again when they are wanted.
    pub broken: Vec<(ActionKey, String)>,
}

impl Cache {
    /// Reads every object and every action entry. What is damaged or missing is brought back from the remote cache, if
    /// one is set and has it; what was left there until it is needed is not missing.
    pub fn verify(&self, threads: usize) -> Result<VerifyReport, CacheError> {
        let objects = self.objects()?;
        let next = AtomicUsize::new(0);
        let report = Mutex::new(VerifyReport::default());
        let failure = Mutex::new(None);
        std::thread::scope(|scope| {
            for _ in 0..threads.max(1) {
                scope.spawn(|| {
                    while let Some((digest, path)) = objects.get(next.fetch_add(1, Ordering::Relaxed)) {
                        match self.read_again(digest, path) {
                            Ok(seen) => {
                                let mut report = report.lock().unwrap_or_else(PoisonError::into_inner);
                                report.objects += 1;
                                match seen {
                                    Some(bytes) => report.bytes += bytes,
                                    None => report.damaged.push(*digest),
                                }
                            }
                            Err(e) => *failure.lock().unwrap_or_else(PoisonError::into_inner) = Some(e),
                        }
                    }
                });
            }
        });
        if let Some(e) = failure.into_inner().unwrap_or_else(PoisonError::into_inner) {
            return Err(e);
        }
        let mut report = report.into_inner().unwrap_or_else(PoisonError::into_inner);
        report.damaged.sort();
        self.verify_entries(&mut report)?;
        Ok(report)
    }

    /// The size of an object that is good; one that is not is removed.
    fn read_again(&self, digest: &Digest, path: &std::path::Path) -> Result<Option<u64>, CacheError> {
        let before = match fs::symlink_metadata(path) {
            Ok(meta) => Stat::of(&meta),
            // A collection took it away meanwhile.
            Err(_) => return Ok(Some(0)),
        };
        if files::hash_file(path)? == *digest {
            self.index.set_verified(digest, &before)?;
            return Ok(Some(before.size));
        }
        files::remove_all(path)?;
        self.index.drop_verified(digest)?;
        Ok(None)
    }

    fn verify_entries(&self, report: &mut VerifyReport) -> Result<(), CacheError> {
        let mut known: BTreeMap<Digest, bool> = BTreeMap::new();
        let mut missing = BTreeSet::new();
        for path in json_files(&self.layout().actions(), 2)? {
            let Some(file) = ActionFile::read(&path)?.filter(|f| self.layout().action(&f.entry.key) == path) else {
                report.bad_entries.push(path.display().to_string());
                files::remove_all(&path)?;
                continue;
            };
            let elsewhere = self.remote().is_some() && self.index.is_remote(&file.entry.key.0)?;
            let mut there = |digest: &Digest, size: Option<u64>, report: &mut VerifyReport| {
                if elsewhere && !report.damaged.contains(digest) {
                    return true;
                }
                *known.entry(*digest).or_insert_with(|| {
                    if self.layout().object(digest).exists() {
                        return true;
                    }
                    let healed = self.bring_back(digest, size);
                    if healed {
                        report.healed.push(*digest);
                    } else {
                        missing.insert(*digest);
                    }
                    healed
                })
            };
            let mut whole = true;
            for artifact in file.entry.outputs.values() {
                whole &= there(&artifact.digest, artifact.object_size(), report);
                if artifact.tree
                    && let Ok(manifest) = self.manifest(artifact)
                {
                    for entry in manifest.entries() {
                        whole &= there(&entry.digest, Some(entry.size), report);
                    }
                }
            }
            if !whole {
                report.broken.push((file.entry.key, file.entry.provenance.stage));
            }
        }
        report.missing = missing.into_iter().filter(|d| !report.damaged.contains(d)).collect();
        Ok(())
    }

    fn bring_back(&self, digest: &Digest, size: Option<u64>) -> bool {
        let mut entered = Entered::default();
        self.remote().is_some_and(|r| self.fetch_from(r, (digest, size), &mut entered).is_ok()) && self.settle(&[&entered]).is_ok()
    }
}
