//! Artifacts as inputs of a task, and their check afterwards.
//!
//! A file artifact is read where it lies in the store. A directory artifact is built from its manifest: by
//! reflink, else hard link, else copy.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use crate::cache::Cache;
use crate::digest::{Artifact, Digest};
use crate::error::CacheError;
use crate::files::{self, Stat};

/// The inputs of one task, to be given back with [`Cache::release`].
#[derive(Debug, Default)]
pub struct Materialised {
    /// Directories that were built.
    dirs: Vec<PathBuf>,
    /// Objects that the task can reach, as they were when it began, and whether they gained links.
    seen: BTreeMap<Digest, (Stat, bool)>,
}

impl Cache {
    /// Where a task reads an artifact: a file in the store itself, a directory at `path`.
    pub fn place_of(&self, artifact: &Artifact, path: PathBuf) -> PathBuf {
        if artifact.tree { path } else { self.layout().object(&artifact.digest) }
    }

    /// Makes artifacts readable at their places ([`Self::place_of`]), read-only. They must have been looked up.
    pub fn materialise(&self, inputs: &[(Artifact, PathBuf)]) -> Result<Materialised, CacheError> {
        let mut made = Materialised::default();
        let mut linked = BTreeSet::new();
        for (artifact, path) in inputs {
            self.fetch(artifact)?;
            if !artifact.tree {
                made.seen.insert(artifact.digest, (self.object_stat(&artifact.digest)?, false));
                continue;
            }
            made.dirs.push(path.clone());
            files::create_dir(path)?;
            let mut folders = vec![path.clone()];
            for entry in self.manifest(artifact)?.entries() {
                let file = path.join(&entry.path);
                let folder = files::parent(&file).to_owned();
                if !folders.contains(&folder) {
                    files::create_dir(&folder)?;
                    folders.push(folder);
                }
                self.place(&entry.digest, &file, entry.executable, &mut linked)?;
            }
            for folder in folders {
                files::set_mode(&folder, 0o555)?;
            }
        }
        // Linking itself moves ctime, so the state to compare with is taken when all links are made.
        for digest in linked {
            made.seen.insert(digest, (self.object_stat(&digest)?, true));
        }
        Ok(made)
    }

    fn place(&self, digest: &Digest, to: &Path, executable: bool, linked: &mut BTreeSet<Digest>) -> Result<(), CacheError> {
        let object = self.layout().object(digest);
        if executable {
            // The exec bit belongs to the name in the directory, not to the shared object.
            return files::copy(&object, to, 0o555);
        }
        if files::reflink(&object, to, 0o444) {
            return Ok(());
        }
        if fs::hard_link(&object, to).is_ok() {
            linked.insert(*digest);
            return Ok(());
        }
        files::copy(&object, to, 0o444)
    }

    fn object_stat(&self, digest: &Digest) -> Result<Stat, CacheError> {
        let path = self.layout().object(digest);
        fs::metadata(&path).map(|m| Stat::of(&m)).map_err(CacheError::io("stat", &path))
    }

    /// Takes the inputs of a task away and names the objects that it changed; those are removed from the store.
    pub fn release(&self, inputs: Materialised) -> Result<Vec<Digest>, CacheError> {
        let mut changed = Vec::new();
        let mut moved = Vec::new();
        for (digest, (before, linked)) in &inputs.seen {
            let path = self.layout().object(digest);
            match fs::metadata(&path).map(|m| Stat::of(&m)) {
                Ok(now) if now == *before => moved.extend(linked.then_some(*digest)),
                // Another task that links the same object moves its ctime too: only the bytes tell.
                Ok(_) if files::hash_file(&path)? == *digest => {
                    files::set_mode(&path, 0o444)?;
                    moved.push(*digest);
                }
                Ok(_) => {
                    files::remove_all(&path)?;
                    changed.push(*digest);
                }
                Err(_) => changed.push(*digest),
            }
        }
        for dir in &inputs.dirs {
            files::remove_all(dir)?;
        }
        for digest in moved {
            if let Ok(stat) = self.object_stat(&digest) {
                self.index.set_verified(&digest, &stat)?;
            }
        }
        Ok(changed)
    }
}

/// Copies a file from outside the cache to a new file of a task: by reflink, else byte by byte; writable, and
/// executable where it was.
pub fn files_copy(from: &Path, to: &Path) -> Result<(), CacheError> {
    use std::os::unix::fs::PermissionsExt;
    let mode = fs::metadata(from).map_err(CacheError::io("stat", from))?.permissions().mode();
    files::copy(from, to, if mode & 0o100 != 0 { 0o755 } else { 0o644 })
}
