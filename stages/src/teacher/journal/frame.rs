//! Frames: how an answer lies in a segment, and how a segment is walked.

use std::fs::File;
use std::io::{BufReader, Read, Seek, SeekFrom};

use super::answer::{AnswerKey, KeptAnswer};

/// First line of a segment.
pub(super) const HEADER: &[u8] = b"flow-answers 1\n";
/// Where a frame may begin.
pub(super) const MAGIC: [u8; 4] = *b"flA1";
/// Magic, length and checksum before a frame's body.
pub(super) const PREFIX: usize = 4 + 4 + 16;
/// Key, flags and milliseconds before an answer.
const FIXED: usize = 32 + 1 + 4;
/// What is looked through at once for the next frame behind a damaged one.
const PIECE: usize = 64 << 10;
/// An answer beyond this is refused.
const MOST: u32 = 1 << 30;
/// Answers from this size on are compressed.
const COMPRESSED: usize = 512;
const ZSTD: u8 = 1;

/// Walks the frames of a segment.
pub(super) struct Scan {
    pub file: BufReader<File>,
    /// End of the last whole frame.
    pub at: u64,
    pub length: u64,
    /// Frames that were passed over.
    pub damaged: u64,
}

impl Scan {
    pub fn header(&mut self) -> std::io::Result<bool> {
        let mut head = vec![0; HEADER.len()];
        if self.length < HEADER.len() as u64 {
            return Ok(false);
        }
        self.file.read_exact(&mut head)?;
        self.at = HEADER.len() as u64;
        Ok(head == HEADER)
    }

    /// The next whole frame: key, place and length of the body.
    pub fn next(&mut self) -> std::io::Result<Option<(AnswerKey, u64, u32)>> {
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
        let mut from = self.at + 1;
        while let Some(at) = self.magic_from(from)? {
            let mut prefix = [0; PREFIX];
            if at + (PREFIX + FIXED) as u64 > self.length {
                break;
            }
            self.file.seek(SeekFrom::Start(at))?;
            self.file.read_exact(&mut prefix)?;
            let len = length_of(&prefix);
            if at + PREFIX as u64 + u64::from(len) <= self.length {
                let mut frame = prefix.to_vec();
                frame.resize(PREFIX + len as usize, 0);
                self.file.read_exact(&mut frame[PREFIX..])?;
                if let Some((key, _)) = checked(&frame) {
                    self.damaged += 1;
                    return Ok(Some(self.step(key, at, len)));
                }
            }
            from = at + 1;
        }
        Ok(None)
    }

    /// The next place from which a frame may begin, piece by piece: no more is read than lies before it.
    fn magic_from(&mut self, mut from: u64) -> std::io::Result<Option<u64>> {
        let mut piece = vec![0; PIECE];
        while from + MAGIC.len() as u64 <= self.length {
            let n = PIECE.min((self.length - from) as usize);
            self.file.seek(SeekFrom::Start(from))?;
            self.file.read_exact(&mut piece[..n])?;
            if let Some(i) = piece[..n].windows(MAGIC.len()).position(|w| w == MAGIC) {
                return Ok(Some(from + i as u64));
            }
            from += (n - MAGIC.len() + 1) as u64;
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
pub(super) fn checked(frame: &[u8]) -> Option<(AnswerKey, &[u8])> {
    let (prefix, body) = frame.split_at_checked(PREFIX)?;
    if body.len() < FIXED || !prefix.starts_with(&MAGIC) || prefix[8..] != checksum(&prefix[4..8], body) {
        return None;
    }
    let mut key = [0; 32];
    key.copy_from_slice(&body[..32]);
    Some((AnswerKey(key), &body[32..]))
}

pub(super) fn pack(key: &AnswerKey, body: &[u8], millis: u32) -> std::io::Result<Vec<u8>> {
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
pub(super) fn unpack(rest: &[u8]) -> std::io::Result<KeptAnswer> {
    let millis = u32::from_le_bytes([rest[1], rest[2], rest[3], rest[4]]);
    let bytes = &rest[5..];
    let body = if rest[0] & ZSTD == 0 { bytes.to_vec() } else { zstd::decode_all(bytes)? };
    Ok(KeptAnswer { body, millis })
}
