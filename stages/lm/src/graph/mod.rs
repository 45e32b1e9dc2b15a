//! The decoder as a program: one [`Graph`] of buffers, and its passes as lists of operations over them. Its `impl` is split
//! by pass:
//!
//! - [`tape`]: what goes in and what is kept; [`declare`]: parameters, batches and caches as buffers;
//! - `storage`: float16 in between; `forward`, `backward`; [`update`]: clip and optimizer.

pub(crate) mod backward;
pub mod declare;
mod forward;
pub mod storage;
pub mod tape;
pub mod update;

pub use declare::{Graph, Hold, Tensor};
pub use storage::LossScale;
pub use tape::{Batch, Cache, Storage};
pub use update::{Moments, NewtonSchulz, Optimizer};
