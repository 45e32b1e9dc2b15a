//! Tensors of safetensors files.

use std::path::Path;

use safetensors::tensor::{Dtype, SafeTensors, TensorView};

use crate::error::{Error, FormatError, Result};

/// The tensors in `bytes`, which are those of `path`.
pub(super) fn parse<'b>(path: &Path, bytes: &'b [u8]) -> Result<SafeTensors<'b>> {
    SafeTensors::deserialize(bytes).map_err(|e| {
        let format = format!("a readable safetensors file ({} bytes)", bytes.len());
        Error::from(FormatError::Unreadable { file: path.to_owned(), format, why: e.to_string() }).help(
            "the file is damaged or cut short: fetch it again, or delete it and run the stage that makes it (in a cache, `flow verify` heals it)",
        )
    })
}

/// A tensor of another shape than `config.json` asks for.
pub(super) fn wrong_shape(path: &Path, name: &str, found: &[usize], wanted: &[usize]) -> Error {
    let error = FormatError::TensorShape { file: path.to_owned(), tensor: name.to_owned(), found: found.to_vec(), wanted: wanted.to_vec() };
    Error::from(error).help("the two files of the directory belong to different models")
}

/// Values of a float tensor as float32, row-major.
pub(super) fn floats(path: &Path, name: &str, view: &TensorView<'_>) -> Result<Vec<f32>> {
    let bytes = view.data();
    let halves = || bytes.chunks_exact(2).map(|b| u16::from_le_bytes([b[0], b[1]]));
    match view.dtype() {
        Dtype::F32 => Ok(bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect()),
        Dtype::F16 => Ok(halves().map(|h| half::f16::from_bits(h).to_f32()).collect()),
        Dtype::BF16 => Ok(halves().map(|h| half::bf16::from_bits(h).to_f32()).collect()),
        other => Err(FormatError::tensor(path, name, format!("has type {other:?}, expected F32, F16 or BF16"))),
    }
}
