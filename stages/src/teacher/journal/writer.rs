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
    /// Whether something that was not wholly written could not be cut off.
    torn: bool,
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
            let mut own = Self { end: shelf.segments[segment].read, path, file, segment, torn: false };
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

    /// Writes frames and syncs them; gives where they begin. After a failure the segment ends where it did before; where that
    /// fails too, what comes next goes behind what is torn, over which readers go on.
    fn commit(&mut self, bytes: &[u8]) -> std::io::Result<u64> {
        if self.torn {
            self.cut().or_else(|_| self.file.seek(SeekFrom::End(0)).map(|end| self.end = end))?;
            self.torn = false;
        }
        let start = self.end;
        let written = self.file.write_all(bytes).and_then(|()| self.file.sync_data());
        if let Err(e) = written {
            self.torn = self.cut().is_err();
            return Err(e);
        }
        self.end += bytes.len() as u64;
        Ok(start)
    }

    fn cut(&mut self) -> std::io::Result<()> {
        self.file.set_len(self.end)?;
        self.file.seek(SeekFrom::Start(self.end)).map(drop)
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
        let result = own.commit(&bytes).map_err(|e| format!("cannot write {}: {e}", own.path.display()));
        if let Ok(start) = result {
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
            let _ = w.done.send(result.clone().map(drop));
        }
        if own.end >= SEGMENT
            && let Ok(next) = Own::take(dir, shelf)
        {
            own = next;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsRawFd;

    use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, memfd_create};

    use super::super::AnswerKey;
    use super::super::frame::pack;
    use super::*;

    /// A file that may not shrink stands for a disk that refuses: what was torn stays, and what comes after it is found.
    #[test]
    fn what_follows_a_torn_frame_that_cannot_be_cut_is_found_again() {
        let mut file = File::from(memfd_create("journal", MemfdFlags::ALLOW_SEALING).expect("a file"));
        let path = PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd()));
        let frame = |n: u8| pack(&AnswerKey([n; 32]), format!("answer {n}").as_bytes(), 1).expect("packs");
        let torn = &frame(1)[..30];
        file.write_all(&[HEADER, torn].concat()).expect("writes");
        fcntl_add_seals(&file, SealFlags::SHRINK).expect("seals");
        let mut own = Own { path: path.clone(), file, segment: 0, end: HEADER.len() as u64, torn: true };
        assert_eq!(own.commit(&frame(2)).expect("writes"), (HEADER.len() + torn.len()) as u64);
        assert_eq!(own.commit(&frame(3)).expect("writes"), own.end - frame(3).len() as u64);
        let mut shelf = Shelf::default();
        shelf.catch_up(&path).expect("reads");
        let places = [1u8, 2, 3].map(|n| shelf.index.get(&AnswerKey([n; 32])).map(|p| p.at));
        assert_eq!(places, [None, Some((HEADER.len() + torn.len()) as u64), Some(own.end - frame(3).len() as u64)]);
        assert_eq!((shelf.damaged, shelf.segments[0].read), (1, own.end));
    }
}
