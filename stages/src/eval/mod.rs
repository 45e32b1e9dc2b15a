//! Evaluation: bits per byte, agreement with the teacher, QEI from measured speed and memory; and the dry-run.

pub mod against;
pub mod baseline;
pub mod compressors;
pub mod dryrun;
mod hosted;
pub mod quality;
pub mod speed;
pub mod student;
