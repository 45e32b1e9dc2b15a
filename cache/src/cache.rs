//! The whole: open, look up, commit.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::action::{ActionEntry, FORMAT, Lookup};
use crate::digest::{ActionKey, Artifact};
use crate::error::CacheError;
use crate::files;
use crate::index::{Found, Index};
use crate::layout::Layout;
use crate::lock::KeyLock;
use crate::object::ObjectState;

/// One cache directory, shared by any number of processes on this machine.
pub struct Cache {
    layout: Layout,
    pub(crate) index: Index,
}

impl Cache {
    /// Opens the cache at `root`, making it where it is absent and its index where that is missing or corrupt.
    pub fn open(root: &Path) -> Result<Self, CacheError> {
        files::create_dir(root)?;
        let root = root.canonicalize().map_err(CacheError::io("resolve", root))?;
        let layout = Layout::new(root);
        for dir in ["objects", "actions", "tasks", "runs", "locks", "tmp"] {
            files::create_dir(&layout.root().join(dir))?;
        }
        let guard = KeyLock::wait(&layout.lock("index"))?;
        let (index, found) = Index::open(&layout.index())?;
        let cache = Self { layout, index };
        if found == Found::Empty {
            cache.rebuild()?;
        }
        drop(guard);
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
                let Ok(text) = fs::read_to_string(&path) else { continue };
                if let Ok(entry) = serde_json::from_str::<ActionEntry>(&text) {
                    self.index.set_action(&entry.key.0.hex(), &text)?;
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
                    if let (Some(name), Some(key)) = (stage["stage"].as_str(), stage["key"].as_str())
                        && matches!(stage["state"].as_str(), Some("executed" | "reused"))
                    {
                        self.index.set_latest(project, name, key)?;
                    }
                }
            }
            Ok(())
        })
    }

    /// The entry of a key, without looking at its objects.
    pub fn entry(&self, key: &ActionKey) -> Result<Option<ActionEntry>, CacheError> {
        let hex = key.0.hex();
        if let Some(text) = self.index.action(&hex)?
            && let Ok(entry) = serde_json::from_str::<ActionEntry>(&text)
            && entry.format == FORMAT
        {
            return Ok(Some(entry));
        }
        let path = self.layout.action(key);
        let text = match fs::read_to_string(&path) {
            Ok(text) => text,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(CacheError::io("read", &path)(e)),
        };
        match serde_json::from_str::<ActionEntry>(&text) {
            Ok(entry) if entry.format == FORMAT && entry.key == *key => {
                self.index.set_action(&hex, &text)?;
                Ok(Some(entry))
            }
            // A damaged entry, or one of another version, promises nothing: the action is simply not done.
            _ => Ok(None),
        }
    }

    /// Whether an action is done and all of its objects are good.
    pub fn lookup(&self, key: &ActionKey) -> Result<Lookup, CacheError> {
        let Some(entry) = self.entry(key)? else { return Ok(Lookup::Miss) };
        for (port, artifact) in &entry.outputs {
            if let Some((digest, state)) = self.check_artifact(artifact)? {
                return Ok(Lookup::Broken { port: port.clone(), digest, damaged: state == ObjectState::Damaged });
            }
        }
        Ok(Lookup::Hit(Box::new(entry)))
    }

    /// Records what an action produced: first the file, which is the truth, then the index row.
    pub fn commit(&self, entry: &ActionEntry) -> Result<(), CacheError> {
        let text = serde_json::to_string_pretty(entry).map_err(|e| CacheError::Format {
            what: "action entry",
            name: entry.key.0.short(),
            why: e.to_string(),
        })?;
        files::write_atomic(&self.layout.tmp(), &self.layout.action(&entry.key), text.as_bytes())?;
        self.index.set_action(&entry.key.0.hex(), &text)
    }

    /// Forgets what an action produced, so that it is made again.
    pub fn forget(&self, key: &ActionKey) -> Result<(), CacheError> {
        files::remove_all(&self.layout.action(key))?;
        self.index.drop_action(&key.0.hex())
    }

    /// Takes the lock of an action key, or says `None` when another task has it.
    pub fn try_lock(&self, key: &ActionKey) -> Result<Option<KeyLock>, CacheError> {
        KeyLock::try_take(&self.layout.lock(&key.0.hex()))
    }

    /// The path of a file artifact's bytes, checked.
    pub fn object_path(&self, artifact: &Artifact) -> Result<PathBuf, CacheError> {
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

    /// The key under which a stage of a pipeline was last made or reused.
    pub fn latest(&self, pipeline: &str, stage: &str) -> Result<Option<ActionKey>, CacheError> {
        Ok(self.index.latest(pipeline, stage)?.and_then(|hex| hex.parse().ok()))
    }

    /// Remembers under which key a stage of a pipeline was made or reused.
    pub fn set_latest(&self, pipeline: &str, stage: &str, key: &ActionKey) -> Result<(), CacheError> {
        self.index.set_latest(pipeline, stage, &key.0.hex())
    }

    /// Removes a file or directory of the cache, read-only parts included; absent is fine.
    pub fn remove(&self, path: &Path) -> Result<(), CacheError> {
        files::remove_all(path)
    }
}

/// All `*.json` files `depth` levels below `dir`.
fn json_files(dir: &Path, depth: usize) -> Result<Vec<PathBuf>, CacheError> {
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
