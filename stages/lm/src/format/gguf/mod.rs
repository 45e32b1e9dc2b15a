//! GGUF: ternary packings, a writer, a reader with its quantised types, models and tokenizers out of files and
//! into them.

mod encode;
pub mod export;
mod export_keys;
mod groups;
mod info;
mod keys;
pub mod model;
pub(super) mod names;
pub mod pack;
pub mod packed;
mod pieces;
pub mod quant;
mod read;
pub mod roles;
mod sentencepiece;
pub mod split;
mod storage;
pub mod tokenizer;
pub mod tokenizer_keys;
pub mod types;
mod vocabulary;
mod write;

pub use info::TensorInfo;
pub use read::GgufFile;
pub use types::TensorType;
pub use write::{Entry, GgufWriter, Value};
