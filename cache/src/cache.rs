//! The whole: open, look up, run records.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use crate::action::{ActionEntry, ActionFile, FORMAT, Lookup};
use crate::digest::{ActionKey, Artifact, Digest};
use crate::error::CacheError;
use crate::files;
use crate::index::Index;
use crate::layout::Layout;
use crate::lease::Lease;
use crate::lock::KeyLock;
use crate::object::{Entered, ObjectState};
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
                if let Some(file) = read_action(&path)? {
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

    /// The entry of a key, without looking at its objects.
    pub fn entry(&self, key: &ActionKey) -> Result<Option<ActionEntry>, CacheError> {
        if let Some(text) = self.index.action(&key.0)?
            && let Ok(entry) = serde_json::from_str::<ActionEntry>(&text)
            && entry.format == FORMAT
        {
            return Ok(Some(entry));
        }
        let Some(file) = self.action_file(key)? else { return Ok(None) };
        self.index.set_action(&key.0, &summary(&file.entry)?)?;
        Ok(Some(file.entry))
    }

    /// Every entry of a kind, without looking at objects.
    pub fn entries_of(&self, kind: &str) -> Result<Vec<ActionEntry>, CacheError> {
        let entries = self.index.actions()?.into_iter().filter_map(|text| serde_json::from_str::<ActionEntry>(&text).ok());
        Ok(entries.filter(|e| e.format == FORMAT && e.kind == kind).collect())
    }

    /// What a key was made of.
    pub fn parts(&self, key: &ActionKey) -> Result<Option<serde_json::Value>, CacheError> {
        Ok(self.action_file(key)?.map(|file| file.parts))
    }

    fn action_file(&self, key: &ActionKey) -> Result<Option<ActionFile>, CacheError> {
        // A damaged entry, or one of another version, promises nothing: the action is simply not done.
        Ok(read_action(&self.layout.action(key))?.filter(|file| file.entry.key == *key))
    }

    /// Whether an action is done and all of its objects are good.
    pub fn lookup(&self, key: &ActionKey) -> Result<Lookup, CacheError> {
        self.look_up(key, None)
    }

    /// The same for a run, which relies on what it finds until the lease is dropped.
    pub fn lookup_leased(&self, key: &ActionKey, lease: &Lease) -> Result<Lookup, CacheError> {
        self.look_up(key, Some(lease))
    }

    fn look_up(&self, key: &ActionKey, lease: Option<&Lease>) -> Result<Lookup, CacheError> {
        let _no_collection = lease.map(|_| self.entering()).transpose()?;
        let Some(entry) = self.entry(key)? else { return Ok(Lookup::Miss) };
        if let Some(lease) = lease {
            lease.keep(key, entry.outputs.values())?;
        }
        let elsewhere = self.remote().is_some() && self.index.is_remote(&key.0)?;
        for (port, artifact) in &entry.outputs {
            if let Some((digest, state)) = self.check_artifact(artifact)? {
                if elsewhere && state == ObjectState::Missing {
                    continue;
                }
                return Ok(Lookup::Broken { port: port.clone(), digest, damaged: state == ObjectState::Damaged });
            }
        }
        Ok(Lookup::Hit(Box::new(entry)))
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

    /// Asks the remote cache for an action that is not known here. Its objects stay there until they are needed.
    pub fn lookup_remote(&self, key: &ActionKey, lease: &Lease) -> Result<Lookup, CacheError> {
        let Some(file) = self.remote().and_then(|r| r.action(key)) else { return Ok(Lookup::Miss) };
        let text = serde_json::to_string(&file).map_err(|e| CacheError::Format {
            what: "action entry",
            name: key.0.short(),
            why: e.to_string(),
        })?;
        // Marked first: an entry without its objects must never look like a whole one.
        self.index.set_remote(&key.0)?;
        files::write_renamed(&self.layout.tmp(), &self.layout.action(key), text.as_bytes())?;
        self.index.set_action(&key.0, &summary(&file.entry)?)?;
        self.lookup_leased(key, lease)
    }

    /// Brings every object of an artifact here, if one is missing.
    pub fn fetch(&self, artifact: &Artifact) -> Result<(), CacheError> {
        let mut entered = Entered::default();
        self.fetch_object(&artifact.digest, &mut entered)?;
        if artifact.tree {
            for entry in self.manifest(artifact)?.entries() {
                self.fetch_object(&entry.digest, &mut entered)?;
            }
        }
        self.settle(&[&entered])
    }

    fn fetch_object(&self, digest: &Digest, entered: &mut Entered) -> Result<(), CacheError> {
        if self.layout.object(digest).exists() {
            return Ok(());
        }
        match self.remote.get() {
            Some(remote) => remote.fetch(self, digest, entered).map_err(|why| CacheError::NotFetched { digest: *digest, why }),
            None => Err(CacheError::Damaged { digest: *digest }),
        }
    }

    /// Forgets what an action produced, so that it is made again.
    pub fn forget(&self, key: &ActionKey) -> Result<(), CacheError> {
        self.index.drop_remote(&key.0)?;
        files::remove_all(&self.layout.action(key))?;
        self.index.drop_action(&key.0)
    }

    /// Takes the lock of an action key, or says `None` when another task has it.
    pub fn try_lock(&self, key: &ActionKey) -> Result<Option<KeyLock>, CacheError> {
        KeyLock::try_take(&self.layout.lock(&key.0.hex()))
    }

    /// The path of a file artifact's bytes, checked.
    pub fn object_path(&self, artifact: &Artifact) -> Result<PathBuf, CacheError> {
        self.fetch(artifact)?;
        match self.check_object(&artifact.digest)? {
            ObjectState::Good => Ok(self.layout.object(&artifact.digest)),
            _ => Err(CacheError::Damaged { digest: artifact.digest }),
        }
    }

    /// Writes the record of a run.
    pub fn record_run(&self, id: &str, record: &serde_json::Value) -> Result<(), CacheError> {
        let text = format!("{record:#}");
        files::write_atomic(&self.layout.tmp(), &self.layout.runs().join(format!("{id}.json")), text.as_bytes())?;
        self.index.set_run(id, &text)
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

/// An entry as the index keeps it.
pub(crate) fn summary(entry: &ActionEntry) -> Result<String, CacheError> {
    serde_json::to_string(entry).map_err(|e| CacheError::Format { what: "action entry", name: entry.key.0.short(), why: e.to_string() })
}

pub(crate) fn read_action(path: &Path) -> Result<Option<ActionFile>, CacheError> {
    match fs::read(path) {
        Ok(bytes) => Ok(serde_json::from_slice::<ActionFile>(&bytes).ok().filter(|file| file.entry.format == FORMAT)),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(CacheError::io("read", path)(e)),
    }
}

/// All `*.json` files `depth` levels below `dir`.
pub(crate) fn json_files(dir: &Path, depth: usize) -> Result<Vec<PathBuf>, CacheError> {
    let mut found = Vec::new();
    for item in fs::read_dir(dir).map_err(CacheError::io("list", dir))? {
        let path = item.map_err(CacheError::io("list", dir))?.path();
        if depth > 1 && path.is_dir() {
            found.extend(json_files(&path, depth - 1)?);
        } else if path.extension().is_some_and(|e| e == "json") {
            found.push(path);
        }
    }
    Ok(found)
}
