//! Paid answers, kept by what was asked: append-only segments under the cache's `answers/`.
//!
//! A segment is the line `flow-answers 1` and frames: the letters `flA1`, length of the body (u32, little endian), the
//! first 16 bytes of blake3 over length and body, and the body: key (32 bytes), flags, milliseconds that the answer took
//! (u32), bytes of the answer, zstd where flag 1 is set. A process appends to a segment of its own, which it holds a
//! lock on; it takes over one that nobody holds, and cuts a torn last frame off first. Everybody reads all segments. A
//! damaged frame loses its own answer: reading goes on at the next whole one.
//!
//! A refused answer stays where it is; why it is refused lies under a key made of its own ([`AnswerKey::refusal`]), and
//! so does the answer that a person asked for in its place ([`AnswerKey::again`]).
//!
//! An answer counts when [`Journal::append`] returns: its frame is on disk then. Frames that wait are written and
//! synced together.

mod answer;
mod error;
mod frame;
mod shelf;
mod writer;

pub use answer::{AnswerKey, KeptAnswer};
pub use error::JournalError;

use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::thread::JoinHandle;

use tokio::sync::oneshot;

use frame::{PREFIX, checked, pack, unpack};
use shelf::Shelf;
use writer::{Own, Waiting, write};

/// An open journal.
pub struct Journal {
    dir: PathBuf,
    shelf: Arc<RwLock<Shelf>>,
    sender: Mutex<Option<Sender<Waiting>>>,
    writer: Mutex<Option<JoinHandle<()>>>,
}

impl Journal {
    /// Opens the journal in `dir`, made if it is missing.
    pub fn open(dir: &Path) -> Result<Self, JournalError> {
        std::fs::create_dir_all(dir).map_err(JournalError::io("cannot make", dir))?;
        let journal = Self { dir: dir.to_owned(), shelf: Arc::default(), sender: Mutex::new(None), writer: Mutex::new(None) };
        journal.refresh()?;
        Ok(journal)
    }

    /// How many answers are kept.
    pub fn len(&self) -> usize {
        self.shelf.read().unwrap_or_else(PoisonError::into_inner).index.len()
    }

    /// Whether nothing is kept.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Frames that were passed over because they are not what was written.
    pub fn damaged(&self) -> u64 {
        self.shelf.read().unwrap_or_else(PoisonError::into_inner).damaged
    }

    /// Whether an answer is kept.
    pub fn holds(&self, key: &AnswerKey) -> bool {
        self.shelf.read().unwrap_or_else(PoisonError::into_inner).index.contains_key(key)
    }

    /// Where the answer lies that counts: the last one that was asked for.
    pub fn latest(&self, key: AnswerKey) -> AnswerKey {
        let shelf = self.shelf.read().unwrap_or_else(PoisonError::into_inner);
        let again = |key: &AnswerKey| Some(key.again()).filter(|next| shelf.index.contains_key(next));
        std::iter::successors(Some(key), again).last().unwrap_or(key)
    }

    /// Reads what other processes have appended since.
    pub fn refresh(&self) -> Result<(), JournalError> {
        let mut names: Vec<PathBuf> = std::fs::read_dir(&self.dir)
            .and_then(|all| all.map(|e| e.map(|e| e.path())).collect::<Result<_, _>>())
            .map_err(JournalError::io("cannot read", &self.dir))?;
        names.retain(|p| p.extension().is_some_and(|e| e == "journal"));
        names.sort();
        let mut shelf = self.shelf.write().unwrap_or_else(PoisonError::into_inner);
        for path in names {
            shelf.catch_up(&path)?;
        }
        Ok(())
    }

    /// The answer to what was asked, if it is kept and whole.
    pub fn get(&self, key: &AnswerKey) -> Result<Option<KeptAnswer>, JournalError> {
        let shelf = self.shelf.read().unwrap_or_else(PoisonError::into_inner);
        let Some(place) = shelf.index.get(key) else { return Ok(None) };
        let segment = &shelf.segments[place.segment];
        let mut frame = vec![0; PREFIX + place.len as usize];
        segment.file.read_exact_at(&mut frame, place.at).map_err(JournalError::io("cannot read", &segment.path))?;
        let Some((_, body)) = checked(&frame) else {
            return Err(JournalError::Damaged { path: segment.path.clone(), at: place.at });
        };
        let unreadable = |source| JournalError::Unreadable { path: segment.path.clone(), at: place.at, source };
        unpack(body).map(Some).map_err(unreadable)
    }

    /// Appends an answer; it counts, and is on disk, when this returns.
    pub async fn append(&self, key: AnswerKey, body: &[u8], millis: u32) -> Result<(), JournalError> {
        let frame = pack(&key, body, millis).map_err(|source| JournalError::Unpackable { dir: self.dir.clone(), source })?;
        let (done, wait) = oneshot::channel();
        let gone = || JournalError::Gone(self.dir.clone());
        self.sender()?.send(Waiting { key, frame, done }).map_err(|_| gone())?;
        wait.await.map_err(|_| gone())?.map_err(JournalError::NotWritten)
    }

    /// The writer's inbox; the writer and its segment start with the first answer.
    fn sender(&self) -> Result<Sender<Waiting>, JournalError> {
        let mut slot = self.sender.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(sender) = slot.as_ref() {
            return Ok(sender.clone());
        }
        let own = Own::take(&self.dir, &self.shelf)?;
        let (sender, inbox) = channel();
        let (dir, shelf) = (self.dir.clone(), self.shelf.clone());
        let writer = std::thread::spawn(move || write(&dir, &shelf, own, &inbox));
        *self.writer.lock().unwrap_or_else(PoisonError::into_inner) = Some(writer);
        *slot = Some(sender.clone());
        Ok(sender)
    }
}

impl Drop for Journal {
    fn drop(&mut self) {
        self.sender.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(writer) = self.writer.lock().unwrap_or_else(PoisonError::into_inner).take() {
            // The writer ends with its inbox; what it could not write was told to whoever appended it.
            let _ = writer.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::frame::{HEADER, MAGIC};
    use super::*;

    fn key(n: u32) -> AnswerKey {
        AnswerKey(*blake3::hash(&n.to_le_bytes()).as_bytes())
    }
    fn body(n: u32) -> Vec<u8> {
        format!("answer {n} ").repeat(1 + n as usize % 200).into_bytes()
    }
    fn append(journal: &Journal, range: std::ops::Range<u32>) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().expect("runtime");
        runtime.block_on(async {
            for n in range {
                journal.append(key(n), &body(n), n).await.expect("append");
            }
        });
    }
    fn segment(dir: &Path, n: usize) -> PathBuf {
        dir.join(format!("{n:05}.journal"))
    }
    fn whole(journal: &Journal, range: std::ops::Range<u32>) {
        for n in range {
            assert_eq!(journal.get(&key(n)).expect("read"), Some(KeptAnswer { body: body(n), millis: n }), "{n}");
        }
    }

    #[test]
    fn answers_come_back_and_processes_do_not_share_a_segment() {
        let dir = tempfile::tempdir().expect("directory");
        let (one, two) = (Journal::open(dir.path()).expect("open"), Journal::open(dir.path()).expect("open"));
        append(&one, 0..300);
        append(&two, 300..400);
        append(&two, 0..3);
        assert!(segment(dir.path(), 1).is_file());
        assert_eq!((one.len(), two.len()), (300, 103));
        one.refresh().expect("refresh");
        two.refresh().expect("refresh");
        whole(&one, 0..400);
        whole(&two, 0..400);
        drop((one, two));
        let again = Journal::open(dir.path()).expect("open");
        append(&again, 400..401);
        whole(&again, 0..401);
        assert!(!segment(dir.path(), 2).exists(), "a segment that nobody holds is taken over");
    }

    #[test]
    fn the_last_answer_that_was_asked_for_counts() {
        let dir = tempfile::tempdir().expect("directory");
        let journal = Journal::open(dir.path()).expect("open");
        assert_eq!(journal.latest(key(0)), key(0));
        append(&journal, 0..1);
        let runtime = tokio::runtime::Builder::new_current_thread().build().expect("runtime");
        for next in [key(0).refusal(), key(0).again(), key(0).again().again()] {
            runtime.block_on(journal.append(next, b"x", 1)).expect("append");
        }
        assert_eq!(journal.latest(key(0)), key(0).again().again());
        assert_eq!(journal.latest(key(1)), key(1));
    }

    #[test]
    fn a_torn_end_is_cut_at_every_byte() {
        let dir = tempfile::tempdir().expect("directory");
        append(&Journal::open(dir.path()).expect("open"), 0..3);
        let path = segment(dir.path(), 0);
        let full = std::fs::read(&path).expect("segment");
        append(&Journal::open(dir.path()).expect("open"), 3..4);
        let longer = std::fs::read(&path).expect("segment");
        for cut in full.len()..longer.len() {
            for garbage in [&b""[..], &[0; 40], &[255; 90]] {
                std::fs::write(&path, [&longer[..cut], garbage].concat()).expect("write");
                let journal = Journal::open(dir.path()).expect("open");
                assert_eq!(journal.len(), 3);
                append(&journal, 7..8);
                whole(&journal, 0..3);
                drop(journal);
                let journal = Journal::open(dir.path()).expect("open");
                assert_eq!((journal.len(), journal.damaged()), (4, 0));
                whole(&journal, 7..8);
            }
        }
    }

    /// Each damaged frame of many loses its own answer, and the letters of a frame within an answer begin none.
    #[test]
    fn every_second_frame_may_be_damaged() {
        let dir = tempfile::tempdir().expect("directory");
        let journal = Journal::open(dir.path()).expect("open");
        let runtime = tokio::runtime::Builder::new_current_thread().build().expect("runtime");
        let body = |n: u32| [&MAGIC[..], &[1, 0, 0, 0], format!("{n}").as_bytes(), &MAGIC].concat();
        (0..200).for_each(|n| runtime.block_on(journal.append(key(n), &body(n), n)).expect("append"));
        drop(journal);
        let path = segment(dir.path(), 0);
        let mut bytes = std::fs::read(&path).expect("segment");
        let (mut at, mut n) = (HEADER.len(), 0);
        while at < bytes.len() {
            let len = u32::from_le_bytes([bytes[at + 4], bytes[at + 5], bytes[at + 6], bytes[at + 7]]) as usize;
            if n % 2 == 0 {
                bytes[at + 9] ^= 1;
            }
            (at, n) = (at + PREFIX + len, n + 1);
        }
        std::fs::write(&path, &bytes).expect("write");
        let journal = Journal::open(dir.path()).expect("open");
        assert_eq!((n, journal.len(), journal.damaged()), (200, 100, 100));
        (0..200).for_each(|n| assert_eq!(journal.get(&key(n)).expect("read").is_some(), n % 2 == 1, "{n}"));
    }

    #[test]
    fn a_changed_byte_loses_one_answer_and_a_stranger_is_left_alone() {
        let dir = tempfile::tempdir().expect("directory");
        append(&Journal::open(dir.path()).expect("open"), 0..5);
        let path = segment(dir.path(), 0);
        let mut bytes = std::fs::read(&path).expect("segment");
        bytes[HEADER.len() + PREFIX + 40] ^= 1;
        let third = (0..bytes.len() - 4).filter(|i| bytes[*i..].starts_with(&MAGIC)).nth(2).expect("a third frame");
        bytes[third + 6] ^= 1;
        std::fs::write(&path, &bytes).expect("write");
        std::fs::write(segment(dir.path(), 1), "somebody else's file, longer than a header").expect("write");
        let journal = Journal::open(dir.path()).expect("open");
        assert_eq!((journal.len(), journal.damaged()), (3, 2));
        append(&journal, 0..5);
        whole(&journal, 0..5);
    }
}
