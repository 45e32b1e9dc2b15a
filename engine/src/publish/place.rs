//! What lies at a place outside the cache, file by file, without following a link.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::Path;

use flow_cache::manifest::{Entry, Manifest};
use flow_cache::{Artifact, Cache, CacheError, Digest};
use serde::{Deserialize, Serialize};

/// A file or a folder as it was seen or put there.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "type")]
pub enum State {
    /// A file.
    File {
        /// Digest of its bytes.
        digest: Digest,
    },
    /// A folder.
    Folder {
        /// Digest of its manifest; `None` where it holds what no artifact can.
        digest: Option<Digest>,
        /// Path below the folder → digest of a file (` x` after it where it is executable), or what else is there.
        files: BTreeMap<String, String>,
    },
    /// A link, a pipe, a socket: nothing that an artifact is put out as.
    Other {
        /// In words.
        what: String,
    },
}

/// How often a place is read again that is gone while it is read: it is replaced in one step.
const TRIES: usize = 10;

impl State {
    /// What an artifact is when it is put out.
    pub fn of_artifact(cache: &Cache, artifact: &Artifact) -> Result<Self, CacheError> {
        if !artifact.tree {
            return Ok(Self::File { digest: artifact.digest });
        }
        let manifest = cache.manifest(artifact)?;
        let files = manifest.entries().iter().map(|e| (e.path.clone(), shown(&e.digest, e.executable)));
        Ok(Self::Folder { digest: Some(artifact.digest), files: files.collect() })
    }

    /// What lies at a path; `None` where nothing does. What another process replaces meanwhile is read once more.
    pub fn at(cache: &Cache, path: &Path) -> Result<Option<Self>, CacheError> {
        let mut tries = 0;
        loop {
            match Self::read(cache, path) {
                Err(CacheError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound && tries < TRIES => tries += 1,
                read => return read,
            }
        }
    }

    fn read(cache: &Cache, path: &Path) -> Result<Option<Self>, CacheError> {
        let meta = match fs::symlink_metadata(path) {
            Ok(meta) => meta,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(CacheError::io("read", path)(e)),
        };
        if meta.is_file() {
            return Ok(Some(Self::File { digest: cache.digest_source_file(path)?.0 }));
        }
        if !meta.is_dir() {
            return Ok(Some(Self::Other { what: in_words(&meta).into() }));
        }
        let mut folder = Folder::default();
        folder.read(cache, path, "")?;
        let digest = (!folder.odd).then(|| Digest::of(Manifest::new(folder.entries).encode().as_bytes()));
        Ok(Some(Self::Folder { digest, files: folder.files }))
    }

    /// Whether it is that artifact and nothing else.
    pub fn is(&self, artifact: &Artifact) -> bool {
        match self {
            Self::File { digest } => !artifact.tree && *digest == artifact.digest,
            Self::Folder { digest, .. } => artifact.tree && *digest == Some(artifact.digest),
            Self::Other { .. } => false,
        }
    }

    /// The digest of the artifact that it would be.
    pub fn digest(&self) -> Option<Digest> {
        match self {
            Self::File { digest } => Some(*digest),
            Self::Folder { digest, .. } => *digest,
            Self::Other { .. } => None,
        }
    }

    /// What a person would call it.
    pub fn what(&self) -> &str {
        match self {
            Self::File { .. } => "a file",
            Self::Folder { .. } => "a folder",
            Self::Other { what } => what,
        }
    }

    /// How it differs from what was put there, in words.
    pub fn difference(&self, put: &Self) -> Option<String> {
        match (self, put) {
            (now, put) if now == put => None,
            (Self::Folder { files: now, .. }, Self::Folder { files: before, .. }) => {
                let added = now.iter().find(|(name, _)| !before.contains_key(*name));
                let gone = before.iter().find(|(name, _)| !now.contains_key(*name));
                let other = now.iter().find(|(name, is)| before.get(*name).is_some_and(|was| was != *is));
                Some(match (added, gone, other) {
                    (Some((name, _)), ..) => format!("{name} was added"),
                    (_, Some((name, _)), _) => format!("{name} is gone"),
                    (_, _, Some((name, _))) => format!("{name} was changed"),
                    _ => "it was changed".into(),
                })
            }
            (Self::File { .. }, Self::File { .. }) => Some("it was changed".into()),
            (now, _) => Some(format!("it is {} now", now.what())),
        }
    }
}

fn shown(digest: &Digest, executable: bool) -> String {
    if executable { format!("{digest} x") } else { digest.to_string() }
}

fn in_words(meta: &fs::Metadata) -> &'static str {
    if meta.is_symlink() { "a link" } else { "neither a file nor a folder" }
}

#[derive(Default)]
struct Folder {
    files: BTreeMap<String, String>,
    entries: Vec<Entry>,
    /// Whether something is there that no artifact holds: a link, an empty folder, a name that is no UTF-8.
    odd: bool,
}

impl Folder {
    fn read(&mut self, cache: &Cache, dir: &Path, prefix: &str) -> Result<(), CacheError> {
        use std::os::unix::fs::PermissionsExt;
        let before = self.files.len();
        for item in fs::read_dir(dir).map_err(CacheError::io("list", dir))? {
            let path = item.map_err(CacheError::io("list", dir))?.path();
            let last = path.file_name().unwrap_or_default();
            let name = format!("{prefix}{}", last.to_string_lossy());
            let meta = fs::symlink_metadata(&path).map_err(CacheError::io("read", &path))?;
            self.odd |= last.to_str().is_none();
            if meta.is_dir() {
                self.read(cache, &path, &format!("{name}/"))?;
            } else if meta.is_file() {
                let executable = meta.permissions().mode() & 0o100 != 0;
                let digest = cache.digest_source_file(&path)?.0;
                self.files.insert(name.clone(), shown(&digest, executable));
                self.entries.push(Entry { path: name, digest, size: meta.len(), executable });
            } else {
                self.odd = true;
                self.files.insert(name, in_words(&meta).into());
            }
        }
        if self.files.len() == before && !prefix.is_empty() {
            self.odd = true;
            self.files.insert(prefix.to_owned(), "an empty folder".into());
        }
        Ok(())
    }
}
