//! `.flow-published.json` in the project root: what `flow` put where, so that it replaces nothing else. It does not depend on
//! the cache: a cache may be deleted, and what was published is still known.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use flow_cache::{CacheError, KeyLock};
use serde::{Deserialize, Serialize};

use super::place::State;

/// Name of the record.
pub const NAME: &str = ".flow-published.json";
/// Held by the process whose turn it is.
pub(super) const LOCK: &str = ".flow-published.lock";
const FORMAT: u32 = 1;

/// What was put at one place.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Put {
    /// The artifact, `stage.port`.
    pub from: String,
    /// Pipeline file, below the root.
    pub pipeline: String,
    /// The run that put it there.
    pub run: String,
    /// What it is. Two while one takes the place of the other, so that a kill in between leaves nothing unknown.
    pub states: Vec<State>,
}

/// The whole record.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Record {
    flow: u32,
    /// Place (below the root, else absolute) → what was put there.
    pub places: BTreeMap<String, Put>,
}

/// Why the record of a project is not read, or not changed.
#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    /// It cannot be read.
    #[error("read {}: {source}", path.display())]
    Read {
        /// The record.
        path: PathBuf,
        /// Why not.
        source: BadRecord,
    },
    /// What is put out cannot be recorded.
    #[error("record what is published in {}: {source}", path.display())]
    Change {
        /// The record.
        path: PathBuf,
        /// Why not.
        source: BadRecord,
    },
}

/// What is wrong with the record.
#[derive(Debug, thiserror::Error)]
pub enum BadRecord {
    /// The file system refused.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// Something else has its name.
    #[error("not a record of what flow published ({0}); {MOVE}")]
    Other(#[source] serde_json::Error),
    /// Another version of flow wrote it.
    #[error("format {0}, and this flow reads {FORMAT}; {MOVE}")]
    Format(u32),
}

const MOVE: &str = "move it away to start a new record (published places are then adopted or refused)";

impl Record {
    /// Reads the record of a project; a project without one has nothing published.
    pub fn read(root: &Path) -> Result<Self, RecordError> {
        Self::load(root).map_err(|source| RecordError::Read { path: root.join(NAME), source })
    }

    fn load(root: &Path) -> Result<Self, BadRecord> {
        let bytes = match fs::read(root.join(NAME)) {
            Ok(bytes) => bytes,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Self::default()),
            Err(e) => return Err(e.into()),
        };
        let record: Self = serde_json::from_slice(&bytes).map_err(BadRecord::Other)?;
        if record.flow == FORMAT { Ok(record) } else { Err(BadRecord::Format(record.flow)) }
    }

    /// Replaces the record, durably.
    fn write(&mut self, root: &Path) -> io::Result<()> {
        self.flow = FORMAT;
        let text = serde_json::to_vec_pretty(self)?;
        let readable = fs::Permissions::from_mode(0o644);
        let mut file = tempfile::Builder::new().prefix(".flow-published-").permissions(readable).tempfile_in(root)?;
        file.write_all(&text)?;
        file.write_all(b"\n")?;
        file.as_file().sync_all()?;
        file.persist(root.join(NAME)).map_err(|e| e.error)?;
        File::open(root)?.sync_all()
    }

    /// Waits until no other process publishes in this project. What is checked, put and recorded while it is held belongs
    /// together. A file of its own: the project's folder may be locked by whoever started this process.
    pub fn turn(root: &Path) -> Result<KeyLock, CacheError> {
        KeyLock::wait(&root.join(LOCK))
    }

    /// Changes the record; the caller holds its turn.
    pub fn change(root: &Path, with: impl FnOnce(&mut Self)) -> Result<(), RecordError> {
        let change = || -> Result<(), BadRecord> {
            let mut record = Self::load(root)?;
            with(&mut record);
            Ok(record.write(root)?)
        };
        change().map_err(|source| RecordError::Change { path: root.join(NAME), source })
    }
}

/// How a place is called in the record: relative to the root where it lies below.
pub fn name_of(root: &Path, place: &Path) -> String {
    let place = place.strip_prefix(root).unwrap_or(place);
    place.components().collect::<PathBuf>().to_string_lossy().into_owned()
}
