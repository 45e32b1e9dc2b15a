//! The cache itself: opening it, its records of runs and memos. What it does with objects and actions stands in the files above this
//! one, each with its own part of `impl Cache`.

use std::fs;
use std::path::Path;
use std::sync::{Arc, OnceLock};

use crate::action::{ActionFile, summary};
use crate::digest::{ActionKey, Digest};
use crate::error::CacheError;
use crate::files::{self, json_files};
use crate::index::Index;
use crate::layout::Layout;
use crate::lock::KeyLock;
use crate::remote::Remote;

/// One cache directory, shared by any number of processes on this machine.
pub struct Cache {
    layout: Layout,
    pub(crate) index: Index,
    pub(crate) remote: OnceLock<Arc<Remote>>,
}

impl Cache {
    /// Opens the cache at `root`, making it where it is absent and its index where that is missing or corrupt.
    pub fn open(root: &Path) -> Result<Self, CacheError> {
        files::create_dir(root)?;
        let root = root.canonicalize().map_err(CacheError::io("resolve", root))?;
        let layout = Layout::new(root);
        if let Some(index) = Index::open(&layout.index())? {
            return Ok(Self { layout, index, remote: OnceLock::new() });
        }
        for dir in ["objects", "actions", "tasks", "runs", "locks", "leases", "tmp"] {
            files::create_dir(&layout.root().join(dir))?;
        }
        let _guard = KeyLock::wait(&layout.lock("index"))?;
        // Whoever held the lock before may have made it.
        if let Some(index) = Index::open(&layout.index())? {
            return Ok(Self { layout, index, remote: OnceLock::new() });
        }
        let index = Index::create(&layout.index())?;
        let cache = Self { layout, index, remote: OnceLock::new() };
        cache.rebuild()?;
        Ok(cache)
    }

    /// Where things are.
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// Fills an empty index from action entries and run records; files that cannot be read are passed over.
    fn rebuild(&self) -> Result<(), CacheError> {
        self.index.batch(|| {
            for path in json_files(&self.layout.actions(), 2)? {
                if let Some(file) = ActionFile::read(&path)? {
                    self.index.set_action(&file.entry.key.0, &summary(&file.entry)?)?;
                }
            }
            let mut runs = json_files(&self.layout.runs(), 1)?;
            runs.sort();
            for path in runs {
                let (Ok(text), Some(id)) = (fs::read_to_string(&path), path.file_stem().and_then(|s| s.to_str())) else { continue };
                let Ok(record) = serde_json::from_str::<serde_json::Value>(&text) else { continue };
                self.index.set_run(id, &text)?;
                let project = record["pipeline"].as_str().unwrap_or_default();
                for stage in record["stages"].as_array().into_iter().flatten() {
                    if let (Some(name), Some(key)) = (stage["stage"].as_str(), stage["key"].as_str().and_then(|k| k.parse().ok()))
                        && matches!(stage["state"].as_str(), Some("executed" | "reused"))
                    {
                        self.index.set_latest(project, name, &key)?;
                    }
                }
            }
            Ok(())
        })
    }

    /// Uses a remote cache from now on.
    pub fn set_remote(&self, remote: Arc<Remote>) {
        // A cache has one remote; the first stays.
        let _ = self.remote.set(remote);
    }

    /// The remote cache, while it can be used.
    pub fn remote(&self) -> Option<&Arc<Remote>> {
        self.remote.get().filter(|r| r.trouble().is_none())
    }

    /// Why the remote cache is not used any more, if something went wrong with it.
    pub fn trouble(&self) -> Option<String> {
        self.remote.get().and_then(|r| r.trouble())
    }

    /// Takes the lock of an action key, or says `None` when another task has it.
    pub fn try_lock(&self, key: &ActionKey) -> Result<Option<KeyLock>, CacheError> {
        KeyLock::try_take(&self.layout.lock(&key.0.hex()))
    }

    /// Writes the record of a run.
    pub fn record_run(&self, id: &str, record: &impl serde::Serialize) -> Result<(), CacheError> {
        let path = self.layout.runs().join(format!("{id}.json"));
        let unwritten = |e: serde_json::Error| CacheError::io("write", &path)(e.into());
        files::write_atomic(&self.layout.tmp(), &path, &serde_json::to_vec_pretty(record).map_err(unwritten)?)?;
        self.index.set_run(id, &serde_json::to_string(record).map_err(unwritten)?)
    }

    /// The last `limit` run records, newest first.
    pub fn runs(&self, limit: usize) -> Result<Vec<serde_json::Value>, CacheError> {
        Ok(self.index.runs(limit)?.iter().filter_map(|text| serde_json::from_str(text).ok()).collect())
    }

    /// The last `limit` run records of one pipeline (its file, absolute), newest first; `usize::MAX` for all.
    pub fn runs_of(&self, pipeline: &str, limit: usize) -> Result<Vec<serde_json::Value>, CacheError> {
        Ok(self.index.runs_of(pipeline, limit)?.iter().filter_map(|text| serde_json::from_str(text).ok()).collect())
    }

    /// The record of one run.
    pub fn run(&self, id: &str) -> Result<Option<serde_json::Value>, CacheError> {
        Ok(self.index.run(id)?.and_then(|text| serde_json::from_str(&text).ok()))
    }

    /// The key under which a stage of a pipeline was last made or reused.
    pub fn latest(&self, pipeline: &str, stage: &str) -> Result<Option<ActionKey>, CacheError> {
        Ok(self.index.latest(pipeline, stage)?.map(ActionKey))
    }

    /// Remembers under which keys the stages of a pipeline were made or reused.
    pub fn set_latest<'a>(&self, pipeline: &str, stages: impl IntoIterator<Item = (&'a str, ActionKey)>) -> Result<(), CacheError> {
        self.index.batch(|| stages.into_iter().try_for_each(|(stage, key)| self.index.set_latest(pipeline, stage, &key.0)))
    }

    /// Something worked out earlier that can always be worked out again.
    pub fn memo(&self, name: &Digest) -> Result<Option<Vec<u8>>, CacheError> {
        self.index.memo(name)
    }

    /// Keeps something that can always be worked out again.
    pub fn set_memo(&self, name: &Digest, body: &[u8]) -> Result<(), CacheError> {
        self.index.set_memo(name, body)
    }

    /// Removes a file or directory of the cache, read-only parts included; absent is fine.
    pub fn remove(&self, path: &Path) -> Result<(), CacheError> {
        files::remove_all(path)
    }
}
