//! What a process knows of the segments.

use std::collections::HashMap;
use std::fs::File;
use std::io::{BufReader, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use super::answer::AnswerKey;
use super::error::JournalError;
use super::frame::Scan;

/// Where a frame lies.
#[derive(Clone, Copy)]
pub(super) struct Place {
    pub segment: usize,
    pub at: u64,
    pub len: u32,
}

/// A file of frames.
pub(super) struct Segment {
    pub path: PathBuf,
    pub file: File,
    /// What has been read of it.
    pub read: u64,
}

/// All segments, and where each answer lies.
#[derive(Default)]
pub(super) struct Shelf {
    pub index: HashMap<AnswerKey, Place>,
    pub segments: Vec<Segment>,
    /// Frames in the middle of a segment that are not what was written.
    pub damaged: u64,
}

impl Shelf {
    /// Reads a segment from where it was left.
    pub fn catch_up(&mut self, path: &Path) -> Result<usize, JournalError> {
        let n = match self.segments.iter().position(|s| s.path == path) {
            Some(n) => n,
            None => {
                let file = File::open(path).map_err(JournalError::io("cannot open", path))?;
                self.segments.push(Segment { path: path.to_owned(), file, read: 0 });
                self.segments.len() - 1
            }
        };
        let from = self.segments[n].read;
        if from > 0 && self.segments[n].file.metadata().is_ok_and(|m| m.len() <= from) {
            return Ok(n);
        }
        let mut file = self.segments[n].file.try_clone().map_err(JournalError::io("cannot open", path))?;
        file.seek(SeekFrom::Start(from)).map_err(JournalError::io("cannot read", path))?;
        let length = file.metadata().map_err(JournalError::io("cannot read", path))?.len();
        let mut scan = Scan { file: BufReader::with_capacity(1 << 20, file), at: from, length, damaged: 0 };
        if from == 0 && !scan.header().map_err(JournalError::io("cannot read", path))? {
            return Ok(n);
        }
        while let Some((key, at, len)) = scan.next().map_err(JournalError::io("cannot read", path))? {
            // The first answer stays: what was made of it once is made of it again.
            self.index.entry(key).or_insert(Place { segment: n, at, len });
        }
        self.segments[n].read = scan.at;
        self.damaged += scan.damaged;
        Ok(n)
    }
}
