//! Where each thing lives under the cache directory.

use std::path::{Path, PathBuf};

use crate::digest::{ActionKey, Digest};

/// The paths of one cache directory.
#[derive(Clone, Debug)]
pub struct Layout {
    root: PathBuf,
}

impl Layout {
    /// The layout under `root` (usually `.flow`).
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }
    /// The cache directory.
    pub fn root(&self) -> &Path {
        &self.root
    }
    /// `objects/ab/cdef…`.
    pub fn object(&self, digest: &Digest) -> PathBuf {
        let hex = digest.hex();
        self.root.join("objects").join(&hex[..2]).join(&hex[2..])
    }
    /// `actions/`.
    pub fn actions(&self) -> PathBuf {
        self.root.join("actions")
    }
    /// `actions/ab/cdef….json`.
    pub fn action(&self, key: &ActionKey) -> PathBuf {
        let hex = key.0.hex();
        self.actions().join(&hex[..2]).join(format!("{}.json", &hex[2..]))
    }
    /// `tasks/<key>/`, the directory of one execution.
    pub fn task(&self, key: &ActionKey) -> PathBuf {
        self.root.join("tasks").join(key.0.hex())
    }
    /// `answers/`: paid teacher answers, kept by what was asked; no collection takes them.
    pub fn answers(&self) -> PathBuf {
        self.root.join("answers")
    }
    /// `runs/`.
    pub fn runs(&self) -> PathBuf {
        self.root.join("runs")
    }
    /// `locks/<name>`.
    pub fn lock(&self, name: &str) -> PathBuf {
        self.root.join("locks").join(name)
    }
    /// `leases/`: what running processes rely on.
    pub fn leases(&self) -> PathBuf {
        self.root.join("leases")
    }
    /// `tmp/`: files on their way to their final name.
    pub fn tmp(&self) -> PathBuf {
        self.root.join("tmp")
    }
    /// `index.db`.
    pub fn index(&self) -> PathBuf {
        self.root.join("index.db")
    }
}
