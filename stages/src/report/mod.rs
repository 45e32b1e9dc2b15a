//! The verdict on a student and the report of a pipeline.

pub mod criteria;
mod exit;
pub mod gate;
pub(crate) mod page;
pub(crate) mod parts;
mod sections;
mod svg;
mod text;

pub use criteria::{Criterion, Op};
