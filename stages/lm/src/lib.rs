//! A language model as a library: loaded, run and trained on any device of [`flow_shaders`]. It knows no pipeline and no
//! task. In reading order:
//!
//! - [`config`]: the shape of a model, the one declaration from which everything else follows;
//! - [`format`](mod@format): models in files; [`tokenizer`]: text as tokens;
//! - [`graph`]: the model as a program; [`infer`]: running it, sequences in slots that come and go; [`train`]: a step, and the loop;
//! - [`error`]: what can go wrong; [`rng`]: seeded randomness.

#![deny(missing_docs)]

pub mod config;
pub mod error;
pub mod format;
pub mod graph;
pub mod infer;
pub mod rng;
pub mod tokenizer;
pub mod train;

pub use error::{Error, Result};
