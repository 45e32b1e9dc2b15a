//! What the stages do with a teacher behind an API: collect its answers as traces, lock its baseline.

pub mod baseline;
pub mod collect;
mod refusals;
mod rows;
mod scores;
mod text;

pub use collect::short;
pub use rows::rows_of;

use flow_engine::plugin::{StageError, TaskContext};

use super::http::ask::Asker;
use super::http::spec::{Limits, Spec};

/// The hosted teacher on a task's port, ready to be asked; `None` where the port holds a model.
pub fn open(ctx: &TaskContext) -> Result<Option<Asker>, StageError> {
    let Some(spec) = Spec::read(ctx.input("teacher")?)? else { return Ok(None) };
    let limits = Limits::of(ctx.operational("teacher"))?;
    Asker::open(ctx, &spec, &limits).map(Some)
}
