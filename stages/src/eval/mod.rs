//! Evaluation: bits per byte, agreement with the teacher, QEI from measured speed and memory; and the dry-run.

pub mod against;
pub mod compressors;
pub mod dryrun;
mod hosted;
pub mod quality;
pub mod sides;
pub mod speed;
pub mod student;
pub mod windows;
