//! What an action key produced: the file that is the truth, and the answer to a look-up.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::digest::{ActionKey, Artifact, Digest};
use crate::error::CacheError;

/// Version of the action entry's format.
pub const FORMAT: u32 = 1;

/// The outputs of one successful execution.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ActionEntry {
    /// [`FORMAT`].
    pub format: u32,
    /// The action key.
    pub key: ActionKey,
    /// The kind that ran.
    pub kind: String,
    /// Output port → artifact.
    pub outputs: BTreeMap<String, Artifact>,
    /// How it came to be.
    pub provenance: ActionProvenance,
}

/// `actions/ab/cdef….json`: an entry and what its key was made of, so that `explain` can compare.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ActionFile {
    /// The entry.
    #[serde(flatten)]
    pub entry: ActionEntry,
    /// The parts of the key.
    pub parts: Value,
}

impl ActionFile {
    /// The file at a path; `None` where none is, or one that is damaged or of another version, which promises nothing.
    pub(crate) fn read(path: &Path) -> Result<Option<Self>, CacheError> {
        match fs::read(path) {
            Ok(bytes) => Ok(serde_json::from_slice::<Self>(&bytes).ok().filter(|file| file.entry.format == FORMAT)),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(CacheError::io("read", path)(e)),
        }
    }
}

/// An entry as the index keeps it.
pub(crate) fn summary(entry: &ActionEntry) -> Result<String, CacheError> {
    serde_json::to_string(entry).map_err(|e| CacheError::Format { what: "action entry", name: entry.key.0.short(), why: e.to_string() })
}

/// How an execution went: recorded, never part of a key.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ActionProvenance {
    /// Name of the stage in its pipeline.
    pub stage: String,
    /// Wall seconds.
    pub seconds: f64,
    /// Unix seconds at its end.
    pub finished: u64,
    /// Device that computed.
    pub device: String,
    /// Last value of every metric.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub metrics: BTreeMap<String, f64>,
    /// Warnings that a later run which reuses the result repeats.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
}

/// The answer to "is this action done already?".
#[derive(Clone, Debug)]
pub enum Lookup {
    /// Done, and all of its objects are good.
    Hit(Box<ActionEntry>),
    /// Never done, as far as this cache knows.
    Miss,
    /// Done once, but an object of an output is missing or damaged; it must be made again.
    Broken {
        /// Output port.
        port: String,
        /// The object.
        digest: Digest,
        /// Damaged if true, missing if false.
        damaged: bool,
    },
}
