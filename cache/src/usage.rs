//! What takes how much room.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use serde::Serialize;

use crate::action::ActionFile;
use crate::cache::Cache;
use crate::digest::Digest;
use crate::error::CacheError;
use crate::files::json_files;
use crate::gc::Amount;

/// The room that a cache takes, by what it is for.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Usage {
    /// Objects.
    pub objects: Amount,
    /// Action entries.
    pub actions: Amount,
    /// Run records.
    pub runs: Amount,
    /// Tasks in progress or failed.
    pub tasks: Amount,
    /// Paid teacher answers.
    pub answers: Amount,
    /// Temporary files.
    pub scraps: Amount,
    /// The index.
    pub index: Amount,
    /// Per stage name: bytes that its results reach, and bytes that only its results reach.
    pub stages: BTreeMap<String, (u64, u64)>,
}

impl Cache {
    /// Adds up what the cache holds.
    pub fn usage(&self) -> Result<Usage, CacheError> {
        let root = self.layout().root();
        let below = |names: &[&str]| {
            let mut amount = Amount::default();
            names.iter().for_each(|name| add(&root.join(name), &mut amount));
            amount
        };
        let mut usage = Usage {
            objects: below(&["objects"]),
            actions: below(&["actions"]),
            runs: below(&["runs"]),
            tasks: below(&["tasks"]),
            answers: below(&["answers"]),
            scraps: below(&["tmp"]),
            index: below(&["index.db", "index.db-wal", "index.db-shm"]),
            stages: BTreeMap::new(),
        };
        let mut reached: HashMap<Digest, (u64, BTreeSet<String>)> = HashMap::new();
        for path in json_files(&self.layout().actions(), 2)? {
            let Some(file) = ActionFile::read(&path)? else { continue };
            for artifact in file.entry.outputs.values() {
                let members = if artifact.tree { self.manifest(artifact).ok() } else { None };
                let digests = members.iter().flat_map(|m| m.entries()).map(|e| e.digest).chain([artifact.digest]);
                for digest in digests {
                    let size = || fs::metadata(self.layout().object(&digest)).map_or(0, |m| m.len());
                    let (_, stages) = reached.entry(digest).or_insert_with(|| (size(), BTreeSet::new()));
                    stages.insert(file.entry.provenance.stage.clone());
                }
            }
        }
        for (size, stages) in reached.into_values() {
            let only = stages.len() == 1;
            for stage in stages {
                let (all, own) = usage.stages.entry(stage).or_default();
                *all += size;
                *own += if only { size } else { 0 };
            }
        }
        Ok(usage)
    }
}

/// Adds the blocks that files take on disk.
fn add(path: &Path, amount: &mut Amount) {
    let Ok(meta) = fs::symlink_metadata(path) else { return };
    if !meta.is_dir() {
        return amount.add(meta.blocks() * 512);
    }
    for item in fs::read_dir(path).into_iter().flatten().flatten() {
        add(&item.path(), amount);
    }
}
