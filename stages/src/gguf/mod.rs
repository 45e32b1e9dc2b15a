//! GGUF: ternary packings, a writer, a reader, and the kind `export.gguf`.

mod export;
pub mod pack;
mod read;
mod tokens;
mod write;

pub use export::{ExportParams, ExportStage};
pub use read::{GgufFile, TensorInfo};
pub use write::{Entry, GgufWriter, TensorType, Value};
