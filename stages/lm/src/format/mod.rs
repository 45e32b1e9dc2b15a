//! Models in files: read into one form, whatever their layout, and written.
//!
//! - [`checkpoint`]: a model that was read; [`load`]: reading one; [`tensors`]: where its values come from;
//! - [`flow`]: our own layout (`config.json`, float32 safetensors), read and written; [`hf`]: Hugging Face directories;
//!   [`gguf`]: GGUF files, read and written; [`directory`]: what such a directory says about tokens;
//! - [`family`]: the families of models; [`ternary`]: codes of a matrix; `map`: files that are read where they are touched.

pub mod checkpoint;
pub mod directory;
pub mod family;
pub mod flow;
pub mod gguf;
pub mod hf;
mod load;
mod map;
mod safetensors;
pub mod tensors;
pub mod ternary;

pub use checkpoint::Checkpoint;
pub use directory::json_or_none;
pub use flow::save;
pub use load::{GGUF_TYPE, MODEL_GGUF, load, load_as, load_with_tokenizer, tokenizer_of};
