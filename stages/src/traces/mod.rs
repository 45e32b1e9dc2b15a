//! Traces: what a teacher said about texts, token by token, in Parquet.
//!
//! A traces directory holds `sequences.parquet` (one row per sequence), row shards `rows-00000.parquet`, … (one row per
//! token, sequences in order, never split over shards), `tokens.parquet` (bytes of the teacher's ids, raw traces only) and
//! `meta.json`. Row `t` of a sequence holds the distribution
//! that token `t` was drawn from: it is the target of the logits at token `t − 1`, and of the last context token for
//! `t = 0`. [`TraceWriter`] and [`TraceReader`] stream, so that 40 M tokens need no more memory than 40 k.

mod bytes;
mod check;
mod convert;
pub mod foreign;
mod merge;
mod meta;
mod parquet;
mod reader;
mod rows;
mod schema;
mod tokens;
mod writer;

pub use bytes::ByteStrings;
pub use check::{Invalid, OTHER_FLOOR, OTHER_LEAST, Settled, settle};
pub use merge::{layout, merge};
pub use meta::{Layout, Sampling, TraceCounts, TraceMeta};
pub use reader::{Sequences, TraceReader};
pub(crate) use rows::CANDIDATES_OF_A_ROW;
pub use rows::{Origin, ProjectedRow, RawRow, SequenceRow, is_structural};
pub use schema::{Door, TraceRow, Unchecked};
pub use tokens::{CandidateBytes, TokenTable};
pub use writer::TraceWriter;
