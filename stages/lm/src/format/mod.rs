//! Models in files: read into one form, whatever their layout, and written.
//!
//! - [`checkpoint`]: a model that was read; [`load`]: reading one; [`tensors`]: where its values come from;
//! - [`flow`]: our own layout (`config.json`, float32 safetensors), read and written; [`hf`] and [`hf_export`]: Hugging Face
//!   directories, whose `config.json` is written by [`hf_config`];
//!   [`gguf`]: GGUF files, read and written; [`directory`]: what such a directory says about tokens; [`tokenizer_file`]: a
//!   tokenizer that goes along;
//! - [`family`]: the families of models; [`finite`]: whether all weights are; [`stored`]: as what files hold them; [`ternary`]: codes of a matrix; `map`: files that are read where they are touched.

pub mod checkpoint;
pub mod directory;
pub mod family;
pub mod finite;
pub mod flow;
pub mod gguf;
pub mod hf;
pub mod hf_config;
pub mod hf_export;
mod load;
pub(crate) mod map;
mod safetensors;
pub mod stored;
pub mod tensors;
pub mod ternary;
pub mod tokenizer_file;

pub use checkpoint::Checkpoint;
pub use directory::json_or_none;
pub use flow::save;
pub use load::{GGUF_TYPE, MODEL_GGUF, load, load_as, load_with_tokenizer, part_name, roles_of, shape, tokenizer_of};
