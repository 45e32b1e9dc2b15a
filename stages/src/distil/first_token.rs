//! The student's first token of a teacher token's bytes, remembered: every row asks for the same few thousand.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::sync::{PoisonError, RwLock};

use crate::traces::TokenTable;
use flow_lm::tokenizer::{TokenId, Tokenizer};

/// Shards of the memory, so that two threads seldom wait for each other.
const SHARDS: usize = 16;

/// No token: the bytes cannot be written in the student's vocabulary.
const NONE: u32 = u32::MAX;

/// Not asked for yet.
const UNKNOWN: u32 = u32::MAX - 1;

type Map = HashMap<Box<[u8]>, u32, BuildHasherDefault<Fnv>>;

/// First student token by bytes.
pub struct FirstToken<'a> {
    student: &'a Tokenizer,
    shards: Vec<RwLock<Map>>,
    /// The same by the teacher's ids, for candidates that begin where their token does: most of them.
    by_id: Vec<AtomicU32>,
}

impl<'a> FirstToken<'a> {
    /// An empty memory over a tokenizer.
    pub fn new(student: &'a Tokenizer) -> Self {
        Self { student, shards: (0..SHARDS).map(|_| RwLock::default()).collect(), by_id: Vec::new() }
    }
    /// The memory with room for the ids of a table: `of_id` is then asked for its tokens only.
    pub fn with_ids(mut self, table: &TokenTable) -> Self {
        self.by_id = (0..table.id_limit()).map(|_| AtomicU32::new(UNKNOWN)).collect();
        self
    }
    /// The tokenizer.
    pub fn student(&self) -> &'a Tokenizer {
        self.student
    }
    /// First id of the encoding of `bytes`, those of the teacher's token `teacher_id`.
    pub fn of_id(&self, teacher_id: i32, bytes: &[u8]) -> Option<TokenId> {
        let Some(place) = usize::try_from(teacher_id).ok().and_then(|id| self.by_id.get(id)) else { return self.of(bytes) };
        // Whoever comes first computes the same value.
        let mut id = place.load(Relaxed);
        if id == UNKNOWN {
            id = self.of(bytes).map_or(NONE, |id| id.0);
            place.store(id, Relaxed);
        }
        (id != NONE).then_some(TokenId(id))
    }
    /// First id of the encoding of `bytes`.
    pub fn of(&self, bytes: &[u8]) -> Option<TokenId> {
        let mut hasher = Fnv::default();
        hasher.write(bytes);
        let shard = &self.shards[(hasher.finish() >> 32) as usize % SHARDS];
        let found = shard.read().unwrap_or_else(PoisonError::into_inner).get(bytes).copied();
        let id = found.unwrap_or_else(|| {
            let id = self.student.encode_bytes(bytes).first().map_or(NONE, |id| id.0);
            shard.write().unwrap_or_else(PoisonError::into_inner).insert(bytes.into(), id);
            id
        });
        (id != NONE).then_some(TokenId(id))
    }
}

/// FNV-1a: keys are a handful of bytes, and no stranger chooses them to collide.
struct Fnv(u64);

impl Default for Fnv {
    fn default() -> Self {
        Self(0xcbf2_9ce4_8422_2325)
    }
}

impl Hasher for Fnv {
    fn finish(&self) -> u64 {
        self.0 ^ (self.0 >> 29)
    }
    fn write(&mut self, bytes: &[u8]) {
        for b in bytes {
            self.0 = (self.0 ^ u64::from(*b)).wrapping_mul(0x0000_0100_0000_01b3);
        }
    }
}
