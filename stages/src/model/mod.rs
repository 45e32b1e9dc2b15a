//! The decoder: its shape, its checkpoint, and the programs that train and run it.
//!
//! - [`config`]: one declaration of every tensor; [`graph`]: the forward pass as operations; `backward` and
//!   [`optimizer`]: the rest of a training step; [`trainer`]: a training session on a device.

mod backward;
pub mod config;
pub mod graph;
pub mod optimizer;
pub mod trainer;
