//! Artifacts outside the cache: copies, put in place at once, never linked to the store.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use crate::cache::Cache;
use crate::digest::{Artifact, Digest};
use crate::error::CacheError;
use crate::files;
use crate::lock::KeyLock;

impl Cache {
    /// Copies an artifact to `to`; says whether anything had to be written. What is there is replaced if `allow`, asked
    /// immediately before, agrees.
    pub fn export<E: From<CacheError>>(&self, artifact: &Artifact, to: &Path, allow: impl FnOnce() -> Result<(), E>) -> Result<bool, E> {
        self.fetch(artifact)?;
        if let Some((digest, _)) = self.check_artifact(artifact)? {
            return Err(CacheError::Damaged { digest }.into());
        }
        if self.is_at(artifact, to) && !Aside::path(to, 0).exists() {
            return Ok(false);
        }
        // Two runs that publish to the same place take turns; the second finds what it wants there.
        let _turn = KeyLock::wait(&self.layout().lock(&format!("publish-{}", Digest::of(to.as_os_str().as_encoded_bytes()).hex())))?;
        let parent = files::parent(to);
        files::create_dir(parent)?;
        let aside = Aside::beside(to)?;
        if self.is_at(artifact, to) {
            return Ok(false);
        }
        let new = aside.path.join("new");
        if artifact.tree {
            files::create_dir(&new)?;
            for entry in self.manifest(artifact)?.entries() {
                let file = new.join(&entry.path);
                files::create_dir(files::parent(&file))?;
                files::copy(&self.layout().object(&entry.digest), &file, if entry.executable { 0o755 } else { 0o644 })?;
            }
        } else {
            files::copy(&self.layout().object(&artifact.digest), &new, 0o644)?;
        }
        allow()?;
        // A rename replaces a file by a file at once; anything else has to step aside first.
        let step_aside = artifact.tree || to.is_dir();
        if step_aside && fs::symlink_metadata(to).is_ok() {
            fs::rename(to, aside.path.join("old")).map_err(CacheError::io("move aside", to))?;
        }
        fs::rename(&new, to).map_err(CacheError::io("rename to", to))?;
        Ok(true)
    }

    /// Whether a path holds the artifact.
    fn is_at(&self, artifact: &Artifact, path: &Path) -> bool {
        self.digest_source(path).is_ok_and(|there| there.tree == artifact.tree && there.digest == artifact.digest)
    }
}

/// A folder beside a place, in which the new bytes wait and the old ones step aside. Its name follows from the place, so that
/// what a killed process left is found and removed by the next one that writes there.
struct Aside {
    path: PathBuf,
    /// Held while the folder is in use: another process does not take it for a leftover.
    _lock: File,
}

impl Aside {
    /// Processes that may write to one place at the same time.
    const MOST: u32 = 1000;

    fn path(place: &Path, n: u32) -> PathBuf {
        let name = Digest::of(place.file_name().unwrap_or_default().as_encoded_bytes()).short();
        files::parent(place).join(format!(".flow-{name}.{n}"))
    }

    fn beside(place: &Path) -> Result<Self, CacheError> {
        for path in (0..Self::MOST).map(|n| Self::path(place, n)) {
            match fs::create_dir(&path) {
                Err(e) if e.kind() != io::ErrorKind::AlreadyExists => return Err(CacheError::io("create directory", &path)(e)),
                _ => {}
            }
            // Another process may hold it, or have removed it since; a link of that name is nobody's leftover.
            let Ok(lock) = File::open(&path) else { continue };
            let held = lock.try_lock().is_ok();
            let same = |there: fs::Metadata| lock.metadata().is_ok_and(|held| (held.dev(), held.ino()) == (there.dev(), there.ino()));
            if !held || !fs::symlink_metadata(&path).is_ok_and(same) {
                continue;
            }
            for item in fs::read_dir(&path).map_err(CacheError::io("list", &path))? {
                files::remove_all(&item.map_err(CacheError::io("list", &path))?.path())?;
            }
            return Ok(Self { path, _lock: lock });
        }
        Err(CacheError::Busy { what: "too many processes write to the same place" })
    }
}

impl Drop for Aside {
    fn drop(&mut self) {
        // What cannot be removed now is removed by the next one that writes here.
        let _ = files::remove_all(&self.path);
    }
}
