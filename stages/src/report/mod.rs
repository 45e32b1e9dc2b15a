//! The verdict on a student and the report of a pipeline.

mod criteria;
mod gate;
mod page;
mod parts;
mod sections;
mod svg;
mod text;

pub use criteria::{Criterion, Op};
pub use gate::{GateParams, GateStage};
pub use page::{ReportParams, ReportStage};
