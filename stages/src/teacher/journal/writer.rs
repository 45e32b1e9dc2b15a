//! The one process that appends to a segment.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::mpsc::Receiver;
use std::sync::{PoisonError, RwLock};

use tokio::sync::oneshot;

use super::answer::AnswerKey;
use super::error::JournalError;
use super::frame::{HEADER, PREFIX};
use super::shelf::{Place, Shelf};

/// A segment that has grown beyond this is left for reading.
const SEGMENT: u64 = 256 << 20;

/// A frame on its way to the disk.
pub(super) struct Waiting {
    pub key: AnswerKey,
    pub frame: Vec<u8>,
    pub done: oneshot::Sender<Result<(), String>>,
}

/// The segment that this process appends to.
pub(super) struct Own {
    path: PathBuf,
    file: File,
    /// Its place in the shelf.
    segment: usize,
    end: u64,
}

impl Own {
    /// Takes over a segment that nobody holds and that has room, or starts one.
    pub fn take(dir: &Path, shelf: &RwLock<Shelf>) -> Result<Self, JournalError> {
        for n in 0.. {
            let path = dir.join(format!("{n:05}.journal"));
            let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path);
            let file = file.map_err(JournalError::io("cannot open", &path))?;
            match file.try_lock() {
                Ok(()) => {}
                Err(TryLockError::WouldBlock) => continue,
                Err(TryLockError::Error(e)) => return Err(JournalError::io("cannot lock", &path)(e)),
            }
            if file.metadata().map_err(JournalError::io("cannot read", &path))?.len() >= SEGMENT {
                continue;
            }
            let mut shelf = shelf.write().unwrap_or_else(PoisonError::into_inner);
            let segment = shelf.catch_up(&path)?;
            let mut own = Self { end: shelf.segments[segment].read, path, file, segment };
            if own.end == 0 && own.file.metadata().is_ok_and(|m| m.len() > HEADER.len() as u64) {
                // Not ours, or damaged at its very start: nothing is cut that might be an answer.
                continue;
            }
            own.begin(dir)?;
            shelf.segments[segment].read = own.end;
            return Ok(own);
        }
        Err(JournalError::NotWritten(format!("{}: no room for another segment", dir.display())))
    }

    /// Cuts a torn end, writes the header of a new segment, and makes its name durable.
    fn begin(&mut self, dir: &Path) -> Result<(), JournalError> {
        let doing = |e| JournalError::io("cannot write", &self.path)(e);
        self.file.set_len(self.end).map_err(doing)?;
        self.file.seek(SeekFrom::Start(self.end)).map_err(doing)?;
        if self.end == 0 {
            self.file.write_all(HEADER).map_err(doing)?;
            self.end = HEADER.len() as u64;
        }
        self.file.sync_all().map_err(doing)?;
        File::open(dir).and_then(|d| d.sync_all()).map_err(JournalError::io("cannot sync", dir))
    }

    /// Writes frames and syncs them; after a failure the segment ends where it did before.
    fn commit(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        let written = self.file.write_all(bytes).and_then(|()| self.file.sync_data());
        if written.is_err() {
            self.file.set_len(self.end)?;
            self.file.seek(SeekFrom::Start(self.end))?;
        } else {
            self.end += bytes.len() as u64;
        }
        written
    }
}

/// Takes whatever waits, writes and syncs it at once, puts it on the shelf, and tells who waited.
pub(super) fn write(dir: &Path, shelf: &RwLock<Shelf>, mut own: Own, inbox: &Receiver<Waiting>) {
    let mut bytes = Vec::new();
    while let Ok(first) = inbox.recv() {
        let mut group = vec![first];
        group.extend(inbox.try_iter().take(65_535));
        bytes.clear();
        group.iter().for_each(|w| bytes.extend_from_slice(&w.frame));
        let start = own.end;
        let result = own.commit(&bytes).map_err(|e| format!("cannot write {}: {e}", own.path.display()));
        if result.is_ok() {
            let mut shelf = shelf.write().unwrap_or_else(PoisonError::into_inner);
            let mut at = start;
            for w in &group {
                let place = Place { segment: own.segment, at, len: (w.frame.len() - PREFIX) as u32 };
                shelf.index.entry(w.key).or_insert(place);
                at += w.frame.len() as u64;
            }
            shelf.segments[own.segment].read = own.end;
        }
        for w in group {
            // Who no longer waits was interrupted; the answer is kept all the same.
            let _ = w.done.send(result.clone());
        }
        if own.end >= SEGMENT
            && let Ok(next) = Own::take(dir, shelf)
        {
            own = next;
        }
    }
}
