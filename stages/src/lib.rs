//! The built-in kinds of `flow`.
pub mod model;
