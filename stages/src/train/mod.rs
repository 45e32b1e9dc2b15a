//! Training: windows of tokens with targets, the recipe, the loop with checkpoints, and the kinds that use them.

pub mod distillation;
pub mod loader;
pub mod recipe;
mod run;
pub mod shape;
pub mod skipped;
pub mod start;
pub mod state;
pub mod student;
pub mod teacher;
pub mod validation;
pub mod windows;

pub use run::{Job, Trained, device_error, initial_values, train};
