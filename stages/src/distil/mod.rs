//! From a teacher's rows to a student's training: projection onto its tokens, and windows of what comes out.
//!
//! - [`first_token`], `buckets`: which student token a text begins with, mass by it; `byte_aligned`, [`first_subtoken`]: the two
//!   rules; [`sequence`]: a whole sequence; [`stats`]: what is counted; [`survey`]: what a person asks of traces;
//! - [`tau`]: the one place where rows are tempered; [`windows`]: rows as training windows, shard by shard.

mod buckets;
mod byte_aligned;
pub mod first_subtoken;
pub mod first_token;
pub mod import;
pub mod project;
pub mod sequence;
pub mod stats;
pub mod survey;
pub mod tau;
pub mod windows;

pub use buckets::{Buckets, Cut};
pub use first_subtoken::first_subtoken;
pub use first_token::FirstToken;
pub use sequence::{Projector, Rule};
pub use stats::{OtherBin, Tally, TraceStats};
pub use survey::{BadRow, Survey, head, survey};
pub use tau::{Distillation, KdScale};
