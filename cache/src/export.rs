//! Artifacts outside the cache: copies, put in place at once, never linked to the store.

use std::fs;
use std::path::Path;

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
        if self.is_at(artifact, to) {
            return Ok(false);
        }
        // Two runs that publish to the same place take turns; the second finds what it wants there.
        let _turn = KeyLock::wait(&self.layout().lock(&format!("publish-{}", Digest::of(to.as_os_str().as_encoded_bytes()).hex())))?;
        let parent = files::parent(to);
        files::create_dir(parent)?;
        if self.is_at(artifact, to) {
            return Ok(false);
        }
        let temporary =
            tempfile::Builder::new().prefix(".flow-").tempdir_in(parent).map_err(CacheError::io("create a directory in", parent))?;
        let new = temporary.path().join("new");
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
            fs::rename(to, temporary.path().join("old")).map_err(CacheError::io("move aside", to))?;
        }
        fs::rename(&new, to).map_err(CacheError::io("rename to", to))?;
        files::remove_all(temporary.path())?;
        Ok(true)
    }

    fn is_at(&self, artifact: &Artifact, path: &Path) -> bool {
        self.digest_source(path).is_ok_and(|there| there.tree == artifact.tree && there.digest == artifact.digest)
    }
}
