//! Looking up: which action is done, where its objects are, and what the remote cache has of it.

use std::path::PathBuf;

use crate::action::{ActionEntry, ActionFile, FORMAT, Lookup, summary};
use crate::cache::Cache;
use crate::digest::{ActionKey, Artifact, Digest};
use crate::error::{CacheError, FetchError};
use crate::files;
use crate::lease::Lease;
use crate::object::{Entered, ObjectState};
use crate::remote::Remote;

impl Cache {
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
        Ok(ActionFile::read(&self.layout().action(key))?.filter(|file| file.entry.key == *key))
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
        files::write_renamed(&self.layout().tmp(), &self.layout().action(key), text.as_bytes())?;
        self.index.set_action(&key.0, &summary(&file.entry)?)?;
        self.lookup_leased(key, lease)
    }

    /// Brings every object of an artifact here, if one is missing.
    pub fn fetch(&self, artifact: &Artifact) -> Result<(), CacheError> {
        let mut entered = Entered::default();
        self.fetch_object(&artifact.digest, artifact.object_size(), &mut entered)?;
        if artifact.tree {
            for entry in self.manifest(artifact)?.entries() {
                self.fetch_object(&entry.digest, Some(entry.size), &mut entered)?;
            }
        }
        self.settle(&[&entered])
    }

    /// Whether every object of an artifact is here: nothing is asked of a remote cache.
    pub fn is_here(&self, artifact: &Artifact) -> Result<bool, CacheError> {
        let there = |digest: &Digest| self.layout().object(digest).exists();
        if !there(&artifact.digest) {
            return Ok(false);
        }
        Ok(!artifact.tree || self.manifest(artifact)?.entries().iter().all(|entry| there(&entry.digest)))
    }

    fn fetch_object(&self, digest: &Digest, size: Option<u64>, entered: &mut Entered) -> Result<(), CacheError> {
        if self.layout().object(digest).exists() {
            return Ok(());
        }
        match self.remote.get() {
            Some(remote) => {
                self.fetch_from(remote, (digest, size), entered).map_err(|source| CacheError::NotFetched { digest: *digest, source })
            }
            None => Err(CacheError::Damaged { digest: *digest }),
        }
    }

    /// Takes an object from a remote cache into the store.
    pub(crate) fn fetch_from(
        &self,
        remote: &Remote,
        (digest, size): (&Digest, Option<u64>),
        entered: &mut Entered,
    ) -> Result<(), FetchError> {
        let file = remote.fetch(digest, size, &self.layout().tmp())?;
        self.enter(file.path(), entered).map_err(|e| FetchError::Enter(Box::new(e)))?;
        Ok(())
    }

    /// Forgets what an action produced, so that it is made again.
    pub fn forget(&self, key: &ActionKey) -> Result<(), CacheError> {
        self.index.drop_remote(&key.0)?;
        files::remove_all(&self.layout().action(key))?;
        self.index.drop_action(&key.0)
    }

    /// The path of a file artifact's bytes, checked.
    pub fn object_path(&self, artifact: &Artifact) -> Result<PathBuf, CacheError> {
        self.fetch(artifact)?;
        match self.check_object(&artifact.digest)? {
            ObjectState::Good => Ok(self.layout().object(&artifact.digest)),
            _ => Err(CacheError::Damaged { digest: artifact.digest }),
        }
    }
}
