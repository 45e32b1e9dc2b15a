//! Traces: what a teacher said about texts, token by token, in Parquet.
//!
//! A traces directory holds `sequences.parquet` (one row per sequence), row shards `rows-00000.parquet`, … (one row per
//! token, sequences in order, never split over shards), `tokens.parquet` (bytes of the teacher's ids, raw traces only) and
//! `meta.json`. Row `t` of a sequence holds the distribution
//! that token `t` was drawn from: it is the target of the logits at token `t − 1`, and of the last context token for
//! `t = 0`. [`TraceWriter`] and [`TraceReader`] stream, so that 40 M tokens need no more memory than 40 k.

mod check;
pub mod foreign;
mod merge;
mod meta;
mod parquet;
mod reader;
mod schema;
mod tokens;
mod writer;

pub use check::{Invalid, OTHER_FLOOR, OTHER_LEAST, Settled, settle};
pub use merge::{layout, merge};
pub use meta::{Layout, Sampling, TraceCounts, TraceMeta};
pub use reader::{Sequences, TraceReader};
pub use schema::{Door, TraceRow, Unchecked};
pub use tokens::{CandidateBytes, TokenTable};
pub use writer::TraceWriter;

use serde::{Deserialize, Serialize};

/// Candidates that sizes given in rows allow for: of wider rows (`method: full`) fewer are held at once.
pub(crate) const CANDIDATES_OF_A_ROW: usize = 64;

/// Where the tokens of a sequence come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Source {
    /// Given text that the teacher scored.
    Text,
    /// The teacher's own continuation of a prompt.
    Sample,
    /// The student's continuation, scored by the teacher.
    OnPolicy,
}

impl Source {
    /// Name in the `source` column.
    pub fn name(self) -> &'static str {
        match self {
            Source::Text => "text",
            Source::Sample => "sample",
            Source::OnPolicy => "on_policy",
        }
    }
    fn parse(name: &str) -> Option<Self> {
        [Source::Text, Source::Sample, Source::OnPolicy].into_iter().find(|s| s.name() == name)
    }
}

/// One sequence: what stands before its rows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SequenceRow {
    /// Prompt, or window of the text.
    pub prompt_idx: i64,
    /// Sample of that prompt.
    pub sample_idx: i32,
    /// Where its tokens come from.
    pub source: Source,
    /// Bytes before the first row, as the template rendered them; empty: the sequence starts at BOS.
    pub context: Vec<u8>,
    /// Student ids of `context`, without BOS; projected traces only.
    pub context_ids: Option<Vec<i32>>,
    /// `stop`, `length`, `text`, or `error: …`.
    pub finish_reason: String,
}

/// One step of a teacher.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct RawRow {
    /// Teacher id of the drawn token, −1 where the teacher tells none.
    pub sample_id: i32,
    /// Bytes of the drawn token; empty where it ends the sequence (EOS).
    pub sample_bytes: Vec<u8>,
    /// Teacher ids by falling logprob; −1 where the teacher tells none.
    pub topk_ids: Vec<i32>,
    /// Their bytes; empty for EOS.
    pub topk_bytes: CandidateBytes,
    /// Their logprobs at temperature 1, falling.
    pub topk_logprobs: Vec<f32>,
    /// log of the mass outside the Top-K.
    pub other_logprob: f32,
    /// Log-sum-exp of logprob/τ over the tail, at each τ of the metadata.
    pub other_lse: Option<Vec<f32>>,
}

/// One row that trains a student.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ProjectedRow {
    /// Student id of this position's token: the CE target.
    pub sample_id: i32,
    /// Its text (byte-aligned), or the teacher token's text (first sub-token).
    pub sample_text: String,
    /// Student ids by falling logprob.
    pub topk_ids: Vec<i32>,
    /// Their logprobs at temperature 1.
    pub topk_logprobs: Vec<f32>,
    /// log of the mass outside them.
    pub other_logprob: f32,
    /// Log-sum-exp of logprob/τ over the tail, where projection left it exact.
    pub other_lse: Option<Vec<f32>>,
    /// Whether the token is structural.
    pub is_struct: bool,
    /// Weight of the KL at this row: 0 for a quarantined row, which keeps its position and its CE.
    pub kd_weight: f32,
}

/// Many short byte strings in two allocations.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ByteStrings {
    data: Vec<u8>,
    ends: Vec<u32>,
}

impl ByteStrings {
    /// Room for `n` strings.
    pub fn with_capacity(n: usize) -> Self {
        Self { data: Vec::with_capacity(n * 5), ends: Vec::with_capacity(n) }
    }
    /// Appends one.
    pub fn push(&mut self, bytes: &[u8]) {
        self.data.extend_from_slice(bytes);
        self.ends.push(self.data.len() as u32);
    }
    /// How many.
    pub fn len(&self) -> usize {
        self.ends.len()
    }
    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }
    /// String `i`.
    pub fn get(&self, i: usize) -> &[u8] {
        let start = if i == 0 { 0 } else { self.ends[i - 1] as usize };
        &self.data[start..self.ends[i] as usize]
    }
    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = &[u8]> {
        (0..self.len()).map(|i| self.get(i))
    }
}

impl<'a> FromIterator<&'a [u8]> for ByteStrings {
    fn from_iter<T: IntoIterator<Item = &'a [u8]>>(items: T) -> Self {
        let mut all = Self::default();
        items.into_iter().for_each(|b| all.push(b));
        all
    }
}

/// Whether a token is structural: its text holds one of `{ } [ ] : , "` or a code fence.
pub fn is_structural(text: &str) -> bool {
    text.bytes().any(|b| matches!(b, b'{' | b'}' | b'[' | b']' | b':' | b',' | b'"')) || text.contains("```")
}

#[cfg(test)]
mod tests {
    #[test]
    fn structural_tokens() {
        for (text, wanted) in [(" {", true), ("\",", true), ("a:b", true), ("```json", true), ("``", false), (" word", false), ("", false)]
        {
            assert_eq!(super::is_structural(text), wanted, "{text}");
        }
    }
}
