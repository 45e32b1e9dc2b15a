//! The canonical description of a directory artifact.
//!
//! One header line, then one line per file, sorted by path bytes:
//! `<blake3 hex> <size> <x|-> <path>`. Empty directories are not kept.

use std::fmt::Write;
use std::path::{Component, Path};

use crate::digest::Digest;
use crate::error::CacheError;

const HEADER: &str = "flow-manifest 1\n";

/// One file of a directory artifact.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Entry {
    /// Path inside the directory, `/` between parts.
    pub path: String,
    /// Digest of its bytes.
    pub digest: Digest,
    /// Bytes.
    pub size: u64,
    /// Whether it is executable.
    pub executable: bool,
}

/// All files of a directory artifact.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Manifest {
    entries: Vec<Entry>,
}

impl Manifest {
    /// A manifest of `entries` in canonical order.
    pub fn new(mut entries: Vec<Entry>) -> Self {
        entries.sort_by(|a, b| a.path.as_bytes().cmp(b.path.as_bytes()));
        Self { entries }
    }
    /// The files in order.
    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }
    /// Bytes of all files.
    pub fn size(&self) -> u64 {
        self.entries.iter().map(|e| e.size).sum()
    }
    /// The bytes whose digest names the directory.
    pub fn encode(&self) -> String {
        let mut out = String::from(HEADER);
        for e in &self.entries {
            let flag = if e.executable { 'x' } else { '-' };
            let _ = writeln!(out, "{} {} {flag} {}", e.digest, e.size, e.path);
        }
        out
    }
    /// Reads what [`Self::encode`] wrote; refuses anything else, paths that leave the directory included.
    pub fn decode(name: &Digest, text: &str) -> Result<Self, CacheError> {
        let bad = |why: String| CacheError::Format { what: "manifest", name: name.short(), why };
        let body = text.strip_prefix(HEADER).ok_or_else(|| bad("no `flow-manifest 1` header".into()))?;
        let mut entries = Vec::new();
        for line in body.lines() {
            let mut parts = line.splitn(4, ' ');
            let mut part = || parts.next().ok_or_else(|| bad(format!("short line `{line}`")));
            let digest = part()?.parse().map_err(|e| bad(format!("{e}")))?;
            let size = part()?.parse().map_err(|e| bad(format!("size in `{line}`: {e}")))?;
            let executable = match part()? {
                "x" => true,
                "-" => false,
                other => return Err(bad(format!("flag `{other}`"))),
            };
            let path = part()?.to_owned();
            check_path(&path).map_err(bad)?;
            entries.push(Entry { path, digest, size, executable });
        }
        let manifest = Self::new(entries);
        if manifest.encode() == text { Ok(manifest) } else { Err(bad("not in canonical form".into())) }
    }
}

/// Refuses paths that a manifest line cannot hold or that lead out of the directory.
pub fn check_path(path: &str) -> Result<(), String> {
    if path.is_empty() || path.contains('\n') {
        return Err(format!("file name {path:?} cannot be kept in a directory artifact"));
    }
    if Path::new(path).components().all(|c| matches!(c, Component::Normal(_))) {
        Ok(())
    } else {
        Err(format!("path {path:?} leaves the directory"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(path: &str) -> Entry {
        Entry { path: path.into(), digest: Digest::of(path.as_bytes()), size: 3, executable: path.ends_with(".sh") }
    }

    #[test]
    fn order_of_files_does_not_matter_and_decoding_gives_back() {
        let a = Manifest::new(vec![entry("b/c"), entry("a.sh"), entry("b c")]);
        let b = Manifest::new(vec![entry("b c"), entry("b/c"), entry("a.sh")]);
        assert_eq!(a.encode(), b.encode());
        let name = Digest::of(a.encode().as_bytes());
        assert_eq!(Manifest::decode(&name, &a.encode()).unwrap(), a);
    }

    #[test]
    fn paths_cannot_leave() {
        let name = Digest::of(b"");
        for path in ["../x", "/x", "a/../../x"] {
            let text = format!("{HEADER}{} 1 - {path}\n", Digest::of(b"x"));
            assert!(Manifest::decode(&name, &text).is_err(), "{path}");
        }
    }
}
