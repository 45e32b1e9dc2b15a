//! GGUF: ternary packings, a writer, a reader with its quantised types, models and tokenizers out of files, and the kind
//! `export.gguf`.

mod export;
pub mod model;
mod names;
pub mod pack;
pub mod quant;
mod read;
mod sentencepiece;
pub mod special;
pub mod tokenizer;
mod tokens;
pub mod types;
pub(crate) mod words;
mod write;

pub use export::{ExportParams, ExportStage};
pub use read::{GgufFile, TensorInfo};
pub use types::TensorType;
pub use write::{Entry, GgufWriter, Value};
