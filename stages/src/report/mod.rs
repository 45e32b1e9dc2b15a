//! The verdict on a student and the report of a pipeline.
//!
//! The report goes from measurements to a page in three steps: `crate::measurements` reads what other stages measured, `page` with its
//! `sections` and `charts` computes what there is to show (`text` writes figures as a person reads them), and `templates`
//! makes the page of it. Tags are in `templates/` alone, where every text is escaped as it goes in.

pub mod criteria;
mod exit;
pub mod gate;

pub(crate) mod page;

mod charts;
mod sections;
mod templates;
mod text;

pub use criteria::{Criterion, Op};
