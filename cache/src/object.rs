//! The store: objects enter by digest, and are checked before they are used.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use crate::cache::Cache;
use crate::digest::{Artifact, Digest};
use crate::error::CacheError;
use crate::files::{self, Stat};
use crate::manifest::{Entry, Manifest, check_path};
use crate::tree;

/// What was found under an object's name.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ObjectState {
    /// It holds what its name says.
    Good,
    /// There is no such object.
    Missing,
    /// It held other bytes, and was removed so that nobody is served them.
    Damaged,
}

/// Objects that are in the store and not known to be durable.
#[derive(Clone, Debug, Default)]
pub struct Entered {
    pub(crate) objects: BTreeSet<Digest>,
}

impl Cache {
    /// Checks one object: by its stat where that is what it was at the last verification, else by its bytes.
    pub(crate) fn check_object(&self, digest: &Digest) -> Result<ObjectState, CacheError> {
        let path = self.layout().object(digest);
        let meta = match fs::symlink_metadata(&path) {
            Ok(meta) => meta,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(ObjectState::Missing),
            Err(e) => return Err(CacheError::io("stat", &path)(e)),
        };
        let stat = Stat::of(&meta);
        if self.index.is_verified(digest, &stat)? {
            return Ok(ObjectState::Good);
        }
        if meta.is_file() && files::hash_file(&path)? == *digest {
            self.index.set_verified(digest, &stat)?;
            return Ok(ObjectState::Good);
        }
        tracing::warn!("object {} is damaged and was removed", digest.short());
        files::remove_all(&path)?;
        Ok(ObjectState::Damaged)
    }

    /// Checks every object of an artifact; gives the first that is not good.
    pub(crate) fn check_artifact(&self, artifact: &Artifact) -> Result<Option<(Digest, ObjectState)>, CacheError> {
        let state = self.check_object(&artifact.digest)?;
        if state != ObjectState::Good {
            return Ok(Some((artifact.digest, state)));
        }
        if artifact.tree {
            for entry in self.manifest(artifact)?.entries() {
                let state = self.check_object(&entry.digest)?;
                if state != ObjectState::Good {
                    return Ok(Some((entry.digest, state)));
                }
            }
        }
        Ok(None)
    }

    /// Every object of an artifact with the stat under which it was seen whole; `None` where one was not.
    pub fn sightings(&self, artifact: &Artifact) -> Result<Option<Vec<(Digest, Stat)>>, CacheError> {
        let Some(stat) = self.sighting(&artifact.digest)? else { return Ok(None) };
        let mut seen = vec![(artifact.digest, stat)];
        if artifact.tree {
            for entry in self.manifest(artifact)?.entries() {
                let Some(stat) = self.sighting(&entry.digest)? else { return Ok(None) };
                seen.push((entry.digest, stat));
            }
        }
        Ok(Some(seen))
    }

    fn sighting(&self, digest: &Digest) -> Result<Option<Stat>, CacheError> {
        match fs::symlink_metadata(self.layout().object(digest)).map(|m| Stat::of(&m)) {
            Ok(stat) if self.index.is_verified(digest, &stat)? => Ok(Some(stat)),
            _ => Ok(None),
        }
    }

    /// Whether an object is as it was at that sighting.
    pub fn is_unchanged(&self, digest: &Digest, seen: &Stat) -> bool {
        fs::symlink_metadata(self.layout().object(digest)).is_ok_and(|m| Stat::of(&m) == *seen)
    }

    /// The files of a directory artifact.
    pub fn manifest(&self, artifact: &Artifact) -> Result<Manifest, CacheError> {
        let path = self.layout().object(&artifact.digest);
        let text = fs::read_to_string(&path).map_err(CacheError::io("read", &path))?;
        Manifest::decode(&artifact.digest, &text)
    }

    /// Moves a file or a directory into the store, durably; the source is gone afterwards.
    pub fn put(&self, path: &Path) -> Result<Artifact, CacheError> {
        let mut entered = Entered::default();
        let artifact = self.enter(path, &mut entered)?;
        self.settle(&[&entered])?;
        Ok(artifact)
    }

    /// Moves a file or a directory into the store. Its objects can be read at once, and are durable when `entered`
    /// was committed ([`Cache::commit`]) or settled.
    pub fn enter(&self, path: &Path, entered: &mut Entered) -> Result<Artifact, CacheError> {
        let meta = fs::symlink_metadata(path).map_err(CacheError::io("stat", path))?;
        if meta.is_dir() {
            let mut entries = Vec::new();
            self.enter_tree(path, "", &mut entries, entered)?;
            files::remove_all(path)?;
            let manifest = Manifest::new(entries);
            let digest = self.enter_bytes(manifest.encode().as_bytes(), entered)?;
            return Ok(Artifact { digest, tree: true, size: manifest.size() });
        }
        if !meta.is_file() {
            return Err(not_storable(path));
        }
        let digest = self.enter_file(path, entered)?;
        Ok(Artifact { digest, tree: false, size: meta.len() })
    }

    fn enter_bytes(&self, bytes: &[u8], entered: &mut Entered) -> Result<Digest, CacheError> {
        let tmp = self.layout().tmp();
        let file = tempfile::NamedTempFile::new_in(&tmp).map_err(CacheError::io("create a file in", &tmp))?;
        fs::write(file.path(), bytes).map_err(CacheError::io("write", file.path()))?;
        self.enter_file(file.path(), entered)
    }

    fn enter_tree(&self, dir: &Path, prefix: &str, entries: &mut Vec<Entry>, entered: &mut Entered) -> Result<(), CacheError> {
        for item in fs::read_dir(dir).map_err(CacheError::io("list", dir))? {
            let path = item.map_err(CacheError::io("list", dir))?.path();
            let name = child_name(prefix, &path)?;
            let meta = fs::symlink_metadata(&path).map_err(CacheError::io("stat", &path))?;
            if meta.is_dir() {
                self.enter_tree(&path, &name, entries, entered)?;
            } else if meta.is_file() {
                let executable = meta.permissions().mode() & 0o100 != 0;
                entries.push(Entry { path: name, digest: self.enter_file(&path, entered)?, size: meta.len(), executable });
            } else {
                return Err(not_storable(&path));
            }
        }
        Ok(())
    }

    /// Hashes a file and gives it its final name.
    fn enter_file(&self, path: &Path, entered: &mut Entered) -> Result<Digest, CacheError> {
        files::set_mode(path, 0o444)?;
        let digest = files::hash_file(path)?;
        let target = self.layout().object(&digest);
        if let Some(stat) = self.present(&digest)? {
            fs::remove_file(path).map_err(CacheError::io("remove", path))?;
            if !self.index.is_verified(&digest, &stat)? {
                // Another task entered it a moment ago: it may not be durable yet.
                entered.objects.insert(digest);
            }
            return Ok(digest);
        }
        if let Err(e) = fs::rename(path, &target) {
            if e.kind() != io::ErrorKind::NotFound {
                return Err(CacheError::io("rename to", &target)(e));
            }
            files::create_dir(files::parent(&target))?;
            fs::rename(path, &target).map_err(CacheError::io("rename to", &target))?;
        }
        entered.objects.insert(digest);
        Ok(digest)
    }

    /// The stat of an object that is there and good.
    fn present(&self, digest: &Digest) -> Result<Option<Stat>, CacheError> {
        let path = self.layout().object(digest);
        let meta = match fs::symlink_metadata(&path) {
            Ok(meta) => meta,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(CacheError::io("stat", &path)(e)),
        };
        let stat = Stat::of(&meta);
        if self.index.is_verified(digest, &stat)? || (meta.is_file() && files::hash_file(&path)? == *digest) {
            return Ok(Some(stat));
        }
        tracing::warn!("object {} is damaged and was removed", digest.short());
        files::remove_all(&path)?;
        Ok(None)
    }

    /// The artifact that a file or directory outside the cache would be; unchanged files are not read again.
    pub fn digest_source(&self, path: &Path) -> Result<Artifact, CacheError> {
        let meta = tree::look(path)?;
        if !meta.is_dir() {
            let digest = self.digest_file(path, &meta)?;
            return Ok(Artifact { digest, tree: false, size: meta.len() });
        }
        let mut entries = Vec::new();
        for found in tree::files_below(path)? {
            check_path(&found.name).map_err(|why| CacheError::NotStorable { path: found.path.clone(), why })?;
            let executable = found.meta.permissions().mode() & 0o100 != 0;
            let digest = self.digest_file(&found.path, &found.meta)?;
            entries.push(Entry { path: found.name, digest, size: found.meta.len(), executable });
        }
        let manifest = Manifest::new(entries);
        Ok(Artifact { digest: Digest::of(manifest.encode().as_bytes()), tree: true, size: manifest.size() })
    }

    /// The digest of one source file, and whether it is executable.
    pub fn digest_source_file(&self, path: &Path) -> Result<(Digest, bool), CacheError> {
        let meta = tree::look(path)?;
        Ok((self.digest_file(path, &meta)?, meta.permissions().mode() & 0o100 != 0))
    }

    fn digest_file(&self, path: &Path, meta: &fs::Metadata) -> Result<Digest, CacheError> {
        use std::os::unix::ffi::OsStrExt;
        let absolute = std::path::absolute(path).map_err(CacheError::io("resolve", path))?;
        let name = absolute.as_os_str().as_bytes();
        let stat = Stat::of(meta);
        if let Some(digest) = self.index.source(name, &stat)? {
            return Ok(digest);
        }
        let digest = files::hash_file(path)?;
        if !stat.is_fresh() {
            self.index.set_source(name, &stat, &digest)?;
        }
        Ok(digest)
    }
}

fn child_name(prefix: &str, path: &Path) -> Result<String, CacheError> {
    let bad = |why: String| CacheError::NotStorable { path: path.to_owned(), why };
    let name = path.file_name().and_then(|n| n.to_str()).ok_or_else(|| bad("its name is not UTF-8".into()))?;
    let name = if prefix.is_empty() { name.to_owned() } else { format!("{prefix}/{name}") };
    check_path(&name).map_err(bad)?;
    Ok(name)
}

fn not_storable(path: &Path) -> CacheError {
    CacheError::NotStorable { path: path.to_owned(), why: "only files and directories can be kept (no links, sockets or devices)".into() }
}
