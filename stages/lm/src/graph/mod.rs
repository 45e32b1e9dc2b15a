//! The decoder as a program: one [`Graph`] of buffers, and its passes as lists of operations over them. Its `impl` is split
//! by pass:
//!
//! - [`tape`]: what goes in and what is kept; [`declare`]: parameters, batches and caches as buffers;
//! - `ternarise`: codes; `storage`: float16 in between; `linear`, `forward`, `backward`, `by_rows` (the loss of a large vocabulary); [`update`]: clip and optimizer.

pub(crate) mod backward;
pub(crate) mod by_rows;
pub mod declare;
mod forward;
mod linear;
pub mod storage;
pub mod tape;
mod ternarise;
pub mod update;

pub use declare::{Graph, HeldPacked, Hold, Packed, Tensor};
pub use storage::LossScale;
pub use tape::{Batch, Cache, Storage};
pub use update::{Moments, NewtonSchulz, Optimizer};
