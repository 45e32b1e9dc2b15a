//! Ids of tokens.

use std::fmt;

use bytemuck::{Pod, Zeroable};
use serde::{Deserialize, Serialize};

/// A token's place in a vocabulary. In files it is a number.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Pod, Zeroable, Serialize, Deserialize)]
#[serde(transparent)]
pub struct TokenId(pub u32);

impl TokenId {
    /// As an index into tables of the vocabulary.
    pub fn index(self) -> usize {
        self.0 as usize
    }
    /// As files of traces and labels of a loss hold it, where −1 is no token.
    pub fn signed(self) -> i32 {
        self.0 as i32
    }
    /// Ids as the words of a device's buffer.
    pub fn words(ids: &[TokenId]) -> &[u32] {
        bytemuck::cast_slice(ids)
    }
    /// Words of a device's buffer as ids.
    pub fn of_words(words: Vec<u32>) -> Vec<TokenId> {
        bytemuck::cast_vec(words)
    }
}

impl fmt::Display for TokenId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}
