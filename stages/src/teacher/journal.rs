//! Paid answers, kept by what was asked: append-only segments under the cache's `answers/`.
//!
//! A segment is the line `flow-answers 1` and frames: the letters `flA1`, length of the body (u32, little endian), the
//! first 16 bytes of blake3 over length and body, and the body: key (32 bytes), flags, milliseconds that the answer took
//! (u32), bytes of the answer, zstd where flag 1 is set. A process appends to a segment of its own, which it holds a
//! lock on; it takes over one that nobody holds, and cuts a torn last frame off first. Everybody reads all segments. A
//! damaged frame loses its own answer: reading goes on at the next whole one.
//!
//! An answer counts when [`Journal::append`] returns: its frame is on disk then. Frames that wait are written and
//! synced together.

use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::thread::JoinHandle;

use flow_engine::plugin::StageError;
use rustix::fs::{FlockOperation, flock};
use tokio::sync::oneshot;

const HEADER: &[u8] = b"flow-answers 1\n";
/// Where a frame may begin.
const MAGIC: [u8; 4] = *b"flA1";
/// Magic, length and checksum before a frame's body.
const PREFIX: usize = 4 + 4 + 16;
/// Key, flags and milliseconds before an answer.
const FIXED: usize = 32 + 1 + 4;
/// A frame beyond this is damage, not an answer.
const MOST: u32 = 1 << 30;
/// A segment that has grown beyond this is left for reading.
const SEGMENT: u64 = 256 << 20;
/// Answers from this size on are compressed.
const COMPRESSED: usize = 512;
const ZSTD: u8 = 1;

/// Digest of what was asked.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct AnswerKey(pub [u8; 32]);

/// A kept answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kept {
    /// The body as the server sent it.
    pub body: Vec<u8>,
    /// How long the request took.
    pub millis: u32,
}

#[derive(Clone, Copy)]
struct Place {
    segment: usize,
    at: u64,
    len: u32,
}

struct Segment {
    path: PathBuf,
    file: File,
    /// What has been read of it.
    read: u64,
}

#[derive(Default)]
struct Shelf {
    index: HashMap<AnswerKey, Place>,
    segments: Vec<Segment>,
    /// Frames in the middle of a segment that are not what was written.
    damaged: u64,
}

struct Waiting {
    key: AnswerKey,
    frame: Vec<u8>,
    done: oneshot::Sender<Result<(), String>>,
}

/// An open journal.
pub struct Journal {
    dir: PathBuf,
    shelf: Arc<RwLock<Shelf>>,
    sender: Mutex<Option<Sender<Waiting>>>,
    writer: Mutex<Option<JoinHandle<()>>>,
}

fn failed(doing: &str, path: &Path, error: &std::io::Error) -> StageError {
    StageError::io(doing, path, error).help("answers that were stored before are safe; make room or repair the disk and run again")
}

impl Journal {
    /// Opens the journal in `dir`, made if it is missing.
    pub fn open(dir: &Path) -> Result<Self, StageError> {
        std::fs::create_dir_all(dir).map_err(|e| failed("cannot make", dir, &e))?;
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

    /// Reads what other processes have appended since.
    pub fn refresh(&self) -> Result<(), StageError> {
        let mut names: Vec<PathBuf> = std::fs::read_dir(&self.dir)
            .and_then(|all| all.map(|e| e.map(|e| e.path())).collect::<Result<_, _>>())
            .map_err(|e| failed("cannot read", &self.dir, &e))?;
        names.retain(|p| p.extension().is_some_and(|e| e == "journal"));
        names.sort();
        let mut shelf = self.shelf.write().unwrap_or_else(PoisonError::into_inner);
        for path in names {
            shelf.catch_up(&path)?;
        }
        Ok(())
    }

    /// The answer to what was asked, if it is kept and whole.
    pub fn get(&self, key: &AnswerKey) -> Result<Option<Kept>, StageError> {
        let shelf = self.shelf.read().unwrap_or_else(PoisonError::into_inner);
        let Some(place) = shelf.index.get(key) else { return Ok(None) };
        let segment = &shelf.segments[place.segment];
        let mut frame = vec![0; PREFIX + place.len as usize];
        segment.file.read_exact_at(&mut frame, place.at).map_err(|e| failed("cannot read", &segment.path, &e))?;
        let Some((_, body)) = checked(&frame) else {
            return Err(StageError::new(format!("{}: the answer at byte {} is damaged", segment.path.display(), place.at))
                .help("run again: a damaged answer is passed over when the journal is opened, and asked for once more"));
        };
        unpack(body).map(Some).map_err(|e| StageError::new(format!("{}: the answer at byte {}: {e}", segment.path.display(), place.at)))
    }

    /// Appends an answer; it counts, and is on disk, when this returns.
    pub async fn append(&self, key: AnswerKey, body: &[u8], millis: u32) -> Result<(), StageError> {
        let frame = pack(&key, body, millis).map_err(|e| StageError::new(format!("{}: {e}", self.dir.display())))?;
        let (done, wait) = oneshot::channel();
        self.sender()?
            .send(Waiting { key, frame, done })
            .map_err(|_| StageError::new(format!("{}: the journal's writer is gone", self.dir.display())))?;
        match wait.await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(message)) => {
                Err(StageError::new(message).help("answers that were stored before are safe; make room or repair the disk and run again"))
            }
            Err(_) => Err(StageError::new(format!("{}: the journal's writer is gone", self.dir.display()))),
        }
    }

    /// The writer's inbox; the writer and its segment start with the first answer.
    fn sender(&self) -> Result<Sender<Waiting>, StageError> {
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

impl Shelf {
    /// Reads a segment from where it was left.
    fn catch_up(&mut self, path: &Path) -> Result<usize, StageError> {
        let n = match self.segments.iter().position(|s| s.path == path) {
            Some(n) => n,
            None => {
                let file = File::open(path).map_err(|e| failed("cannot open", path, &e))?;
                self.segments.push(Segment { path: path.to_owned(), file, read: 0 });
                self.segments.len() - 1
            }
        };
        let from = self.segments[n].read;
        if from > 0 && self.segments[n].file.metadata().is_ok_and(|m| m.len() <= from) {
            return Ok(n);
        }
        let mut file = self.segments[n].file.try_clone().map_err(|e| failed("cannot open", path, &e))?;
        file.seek(SeekFrom::Start(from)).map_err(|e| failed("cannot read", path, &e))?;
        let length = file.metadata().map_err(|e| failed("cannot read", path, &e))?.len();
        let mut scan = Scan { file: std::io::BufReader::with_capacity(1 << 20, file), at: from, length, damaged: 0 };
        if from == 0 && !scan.header().map_err(|e| failed("cannot read", path, &e))? {
            return Ok(n);
        }
        while let Some((key, at, len)) = scan.next().map_err(|e| failed("cannot read", path, &e))? {
            // The first answer stays: what was made of it once is made of it again.
            self.index.entry(key).or_insert(Place { segment: n, at, len });
        }
        self.segments[n].read = scan.at;
        self.damaged += scan.damaged;
        Ok(n)
    }
}

/// Walks the frames of a segment.
struct Scan {
    file: std::io::BufReader<File>,
    /// End of the last whole frame.
    at: u64,
    length: u64,
    damaged: u64,
}

impl Scan {
    fn header(&mut self) -> std::io::Result<bool> {
        let mut head = vec![0; HEADER.len()];
        if self.length < HEADER.len() as u64 {
            return Ok(false);
        }
        self.file.read_exact(&mut head)?;
        self.at = HEADER.len() as u64;
        Ok(head == HEADER)
    }

    /// The next whole frame: key, place and length of the body.
    fn next(&mut self) -> std::io::Result<Option<(AnswerKey, u64, u32)>> {
        let mut prefix = [0; PREFIX];
        if let Some(len) = self.prefix(&mut prefix)? {
            let mut frame = prefix.to_vec();
            frame.resize(PREFIX + len as usize, 0);
            self.file.read_exact(&mut frame[PREFIX..])?;
            if let Some((key, _)) = checked(&frame) {
                return Ok(Some(self.step(key, self.at, len)));
            }
        }
        self.behind_damage()
    }

    fn step(&mut self, key: AnswerKey, start: u64, len: u32) -> (AnswerKey, u64, u32) {
        self.at = start + PREFIX as u64 + u64::from(len);
        (key, start, len)
    }

    /// Length of the frame that begins here, if one may.
    fn prefix(&mut self, prefix: &mut [u8; PREFIX]) -> std::io::Result<Option<u32>> {
        if self.at + (PREFIX + FIXED) as u64 > self.length {
            return Ok(None);
        }
        self.file.read_exact(prefix)?;
        let len = length_of(prefix);
        Ok(Some(len).filter(|len| prefix.starts_with(&MAGIC) && self.at + PREFIX as u64 + u64::from(*len) <= self.length))
    }

    /// The first whole frame after a place where none begins; nothing where the segment is torn there.
    fn behind_damage(&mut self) -> std::io::Result<Option<(AnswerKey, u64, u32)>> {
        if self.at >= self.length {
            return Ok(None);
        }
        let mut rest = vec![0; (self.length - self.at) as usize];
        self.file.seek(SeekFrom::Start(self.at))?;
        self.file.read_exact(&mut rest)?;
        for i in (1..rest.len().saturating_sub(PREFIX + FIXED)).filter(|i| rest[*i..].starts_with(&MAGIC)) {
            let len = length_of(&rest[i..]);
            let Some(frame) = rest.get(i..i + PREFIX + len as usize) else { continue };
            if let Some((key, _)) = checked(frame) {
                self.damaged += 1;
                let found = self.step(key, self.at + i as u64, len);
                self.file.seek(SeekFrom::Start(self.at))?;
                return Ok(Some(found));
            }
        }
        Ok(None)
    }
}

/// Length of the body of the frame that begins with these bytes.
fn length_of(prefix: &[u8]) -> u32 {
    u32::from_le_bytes([prefix[4], prefix[5], prefix[6], prefix[7]])
}

fn checksum(length: &[u8], body: &[u8]) -> [u8; 16] {
    let mut hash = blake3::Hasher::new();
    hash.update(length).update(body);
    let mut sum = [0; 16];
    sum.copy_from_slice(&hash.finalize().as_bytes()[..16]);
    sum
}

/// Key and rest of a frame that is what was written.
fn checked(frame: &[u8]) -> Option<(AnswerKey, &[u8])> {
    let (prefix, body) = frame.split_at_checked(PREFIX)?;
    if body.len() < FIXED || !prefix.starts_with(&MAGIC) || prefix[8..] != checksum(&prefix[4..8], body) {
        return None;
    }
    let mut key = [0; 32];
    key.copy_from_slice(&body[..32]);
    Some((AnswerKey(key), &body[32..]))
}

fn pack(key: &AnswerKey, body: &[u8], millis: u32) -> std::io::Result<Vec<u8>> {
    let packed = if body.len() >= COMPRESSED { Some(zstd::bulk::compress(body, 1)?) } else { None };
    let (flags, bytes) = packed.as_deref().map_or((0, body), |p| (ZSTD, p));
    let len = u32::try_from(FIXED + bytes.len()).ok().filter(|n| *n <= MOST);
    let len = len.ok_or_else(|| std::io::Error::other("an answer of more than 1 GiB"))?.to_le_bytes();
    let mut frame = Vec::with_capacity(PREFIX + FIXED + bytes.len());
    frame.extend_from_slice(&MAGIC);
    frame.extend_from_slice(&len);
    frame.extend_from_slice(&[0; 16]);
    frame.extend_from_slice(&key.0);
    frame.push(flags);
    frame.extend_from_slice(&millis.to_le_bytes());
    frame.extend_from_slice(bytes);
    let sum = checksum(&len, &frame[PREFIX..]);
    frame[8..PREFIX].copy_from_slice(&sum);
    Ok(frame)
}

/// Flags, milliseconds and answer after a frame's key.
fn unpack(rest: &[u8]) -> std::io::Result<Kept> {
    let millis = u32::from_le_bytes([rest[1], rest[2], rest[3], rest[4]]);
    let bytes = &rest[5..];
    let body = if rest[0] & ZSTD == 0 { bytes.to_vec() } else { zstd::decode_all(bytes)? };
    Ok(Kept { body, millis })
}

/// The segment that this process appends to.
struct Own {
    path: PathBuf,
    file: File,
    /// Its place in the shelf.
    segment: usize,
    end: u64,
}

impl Own {
    /// Takes over a segment that nobody holds and that has room, or starts one.
    fn take(dir: &Path, shelf: &RwLock<Shelf>) -> Result<Self, StageError> {
        for n in 0.. {
            let path = dir.join(format!("{n:05}.journal"));
            let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path);
            let file = file.map_err(|e| failed("cannot open", &path, &e))?;
            match flock(&file, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => {}
                Err(e) if e == rustix::io::Errno::WOULDBLOCK || e == rustix::io::Errno::INTR => continue,
                Err(e) => return Err(failed("cannot lock", &path, &e.into())),
            }
            if file.metadata().map_err(|e| failed("cannot read", &path, &e))?.len() >= SEGMENT {
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
        Err(StageError::new(format!("{}: no room for another segment", dir.display())))
    }

    /// Cuts a torn end, writes the header of a new segment, and makes its name durable.
    fn begin(&mut self, dir: &Path) -> Result<(), StageError> {
        let doing = |e: &std::io::Error| failed("cannot write", &self.path, e);
        self.file.set_len(self.end).map_err(|e| doing(&e))?;
        self.file.seek(SeekFrom::Start(self.end)).map_err(|e| doing(&e))?;
        if self.end == 0 {
            self.file.write_all(HEADER).map_err(|e| doing(&e))?;
            self.end = HEADER.len() as u64;
        }
        self.file.sync_all().map_err(|e| doing(&e))?;
        File::open(dir).and_then(|d| d.sync_all()).map_err(|e| failed("cannot sync", dir, &e))
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
fn write(dir: &Path, shelf: &RwLock<Shelf>, mut own: Own, inbox: &Receiver<Waiting>) {
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

#[cfg(test)]
mod tests {
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
            assert_eq!(journal.get(&key(n)).expect("read"), Some(Kept { body: body(n), millis: n }), "{n}");
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
