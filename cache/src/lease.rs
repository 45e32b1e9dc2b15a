//! What a running process relies on, said in a file that other processes read before they remove anything.
//!
//! `leases/<name>` is locked (`flock`) while its process lives; it holds 65-byte records: the action key, an
//! artifact's digest, and 1 where that is a directory. A process says what it needs, and looks whether it is there or
//! brings it in, while it holds `leases.lock` shared; who removes something reads the leases and removes while it
//! holds that lock alone. So either the one finds the object missing, or the other finds the record.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};

use crate::cache::Cache;
use crate::digest::{ActionKey, Artifact, Digest};
use crate::error::CacheError;
use crate::files;

const RECORD: usize = 65;

/// A live lease; dropping it ends it.
#[derive(Debug)]
pub struct Lease {
    path: PathBuf,
    file: Mutex<File>,
}

impl Lease {
    /// Says that this process relies on what `key` produced.
    pub fn keep<'a>(&self, key: &ActionKey, artifacts: impl Iterator<Item = &'a Artifact>) -> Result<(), CacheError> {
        let mut records = Vec::new();
        for artifact in artifacts {
            records.extend_from_slice(key.0.bytes());
            records.extend_from_slice(artifact.digest.bytes());
            records.push(u8::from(artifact.tree));
        }
        self.file.lock().unwrap_or_else(PoisonError::into_inner).write_all(&records).map_err(CacheError::io("write", &self.path))
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path);
    }
}

/// Held from before objects are looked at or enter the store until a lease names them: a collection waits for it.
#[derive(Debug)]
pub struct Entering {
    _file: File,
}

/// One record of a lease.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct LeaseRecord {
    /// The action.
    pub key: ActionKey,
    /// The artifact's digest.
    pub digest: Digest,
    /// Whether it is a directory.
    pub tree: bool,
}

impl Cache {
    /// Begins a lease under a name that no other process has.
    pub fn lease(&self, name: &str) -> Result<Lease, CacheError> {
        files::create_dir(&self.layout().leases())?;
        let path = self.layout().leases().join(name);
        let file = OpenOptions::new().append(true).create(true).open(&path).map_err(CacheError::io("open", &path))?;
        // A collection that looks at the file this moment lets go of it at once.
        file.lock().map_err(CacheError::io("lock", &path))?;
        Ok(Lease { path, file: Mutex::new(file) })
    }

    /// Keeps collections out while objects enter and are named in a lease; any number of tasks may do so at once.
    pub fn entering(&self) -> Result<Entering, CacheError> {
        self.enter_lock(File::lock_shared)
    }

    /// Keeps objects from entering.
    pub(crate) fn no_entering(&self) -> Result<Entering, CacheError> {
        self.enter_lock(File::lock)
    }

    fn enter_lock(&self, lock: impl Fn(&File) -> io::Result<()>) -> Result<Entering, CacheError> {
        let path = self.layout().leases().with_extension("lock");
        let file = OpenOptions::new().append(true).create(true).open(&path).map_err(CacheError::io("open", &path))?;
        lock(&file).map_err(CacheError::io("lock", &path))?;
        Ok(Entering { _file: file })
    }

    /// What all live leases keep; the files of dead processes are removed.
    pub fn leased(&self) -> Result<Vec<LeaseRecord>, CacheError> {
        let dir = self.layout().leases();
        let mut kept = Vec::new();
        let Ok(items) = fs::read_dir(&dir) else { return Ok(kept) };
        for item in items {
            let path = item.map_err(CacheError::io("list", &dir))?.path();
            let Ok(mut file) = File::open(&path) else { continue };
            if file.try_lock_shared().is_ok() {
                // A lease that begins at this moment has no record yet, and its owner holds the file by now.
                if file.metadata().is_ok_and(|m| m.len() > 0) {
                    let _ = fs::remove_file(&path);
                }
                continue;
            }
            let mut bytes = Vec::new();
            file.read_to_end(&mut bytes).map_err(CacheError::io("read", &path))?;
            for record in bytes.chunks_exact(RECORD) {
                let digest = |at: usize| {
                    let mut bytes = [0; 32];
                    bytes.copy_from_slice(&record[at..at + 32]);
                    Digest::from_bytes(bytes)
                };
                kept.push(LeaseRecord { key: ActionKey(digest(0)), digest: digest(32), tree: record[64] != 0 });
            }
        }
        Ok(kept)
    }
}
