//! What can go wrong in the cache.

use std::path::{Path, PathBuf};

use crate::digest::Digest;

/// A failure of the cache or of the file system under it.
#[derive(Debug, thiserror::Error)]
pub enum CacheError {
    /// The file system refused.
    #[error("{doing} {path}: {source}", path = path.display())]
    Io {
        /// What was being done.
        doing: &'static str,
        /// To which path.
        path: PathBuf,
        /// Why it failed.
        source: std::io::Error,
    },
    /// SQLite refused.
    #[error("cache index {path}: {source} (it can be deleted: it is rebuilt from the cache's files)", path = path.display())]
    Index {
        /// The index file.
        path: PathBuf,
        /// Why it failed.
        source: rusqlite::Error,
    },
    /// An object is missing or holds other bytes than its name says.
    #[error("object {digest} is missing or damaged; run the pipeline again to make it anew")]
    Damaged {
        /// The object's name.
        digest: Digest,
    },
    /// Another process does what only one may do at a time.
    #[error("{what}; try again when it is done")]
    Busy {
        /// What goes on.
        what: &'static str,
    },
    /// A remote cache that cannot be meant.
    #[error("remote cache `{url}`: {why} (expected s3://bucket/prefix, gs://…, az://…, https://… or file:///folder)")]
    BadRemote {
        /// What was given.
        url: String,
        /// Why not.
        why: String,
    },
    /// An object that the remote cache promised could not be brought here.
    #[error("object {digest} could not be fetched from the remote cache: {source}", digest = digest.short())]
    NotFetched {
        /// The object's name.
        digest: Digest,
        /// Why not.
        source: FetchError,
    },
    /// A file that an artifact cannot hold.
    #[error("{path}: {why}", path = path.display())]
    NotStorable {
        /// The file.
        path: PathBuf,
        /// Why not.
        why: String,
    },
    /// A manifest or an action entry that is not in its format.
    #[error("{what} {name}: {why}")]
    Format {
        /// Manifest or action entry.
        what: &'static str,
        /// Its name.
        name: String,
        /// Why not.
        why: String,
    },
}

/// Why an object could not be brought here from a remote cache.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    /// It made trouble before, and is left alone.
    #[error("{0}")]
    LeftAlone(String),
    /// It has no such object.
    #[error("the remote cache has its entry and not the object")]
    Missing,
    /// What it has under that name is something else.
    #[error("the remote cache holds other bytes under its name")]
    OtherBytes,
    /// It did not answer, or refused.
    #[error("{0}")]
    Refused(String),
    /// The file for it could not be created here.
    #[error("create a file in {tmp}: {source}", tmp = tmp.display())]
    Create {
        /// The folder.
        tmp: PathBuf,
        /// Why it failed.
        source: std::io::Error,
    },
    /// The file for it could not be opened or finished here.
    #[error("{0}")]
    File(#[source] std::io::Error),
    /// What came could not be written here.
    #[error("write a fetched object: {0}")]
    Write(#[source] std::io::Error),
    /// It came, and could not enter the store.
    #[error("{0}")]
    Enter(#[source] Box<CacheError>),
}

impl CacheError {
    /// Adds to an I/O error what was being done to which path.
    pub fn io(doing: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io { doing, path, source }
    }
}
