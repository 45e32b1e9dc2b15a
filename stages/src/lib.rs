//! The built-in kinds of `flow`.
pub mod data;
pub mod gguf;
pub mod model;
pub mod project;
pub mod tokenizer;
pub mod traces;
