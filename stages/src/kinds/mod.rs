//! The kinds, one file each: ports, parameters, run.

pub mod export_gguf;
pub mod shape;
pub mod teacher_train;
pub mod tokenizer_bpe;
pub mod train_bitnet;
mod training;
