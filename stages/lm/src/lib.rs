//! A language model as a library: loaded, run and trained on any device of [`flow_shaders`]. It knows no pipeline and no
//! task. In reading order:
//!
//! - [`config`]: the shape of a model, the one declaration from which everything else follows;
//! - [`format`](mod@format): models in files: `flow`, `hf`, `gguf/` with its types (`types`), their formulas (`quant/`), its writer;
//! - [`model`]: a model with all that it came with; [`chat`]: its chat template;
//! - [`token`]: ids; [`tokenizer`]: text as tokens, and learning how;
//! - [`graph`]: the model as a program: forward, backward, update, storage;
//! - [`infer`]: running it: sessions whose slots sequences join and leave (`session`, `generator`), how tokens are chosen
//!   (`sampling`), `scoring`;
//! - [`train`]: one step (`trainer`), what it is fed with and how its loss is weighed (`batch`), the recipe, the loop;
//! - [`error`]: what can go wrong; [`rng`]: seeded randomness.

#![deny(missing_docs)]

pub mod chat;
pub mod config;
pub mod error;
pub mod format;
pub mod graph;
pub mod infer;
pub mod model;
pub mod rng;
pub mod token;
pub mod tokenizer;
pub mod train;

pub use error::{Error, Result};
pub use model::Model;
pub use token::TokenId;
