//! The decoder: its shape, its checkpoint, and the programs that train and run it.
//!
//! - [`config`]: one declaration of every tensor; [`graph`]: the forward pass as operations; `backward` and
//!   [`optimizer`]: the rest of a training step; [`trainer`]: a training session on a device.
//! - [`checkpoint`]: a model on disk, ours or Hugging Face's; [`ternary`]: codes of a linear for export and import.

mod backward;
pub mod checkpoint;
pub mod config;
pub mod graph;
pub(crate) mod import;
pub mod inference;
pub mod optimizer;
pub mod storage;
pub mod tensors;
pub mod ternary;
pub mod trainer;
