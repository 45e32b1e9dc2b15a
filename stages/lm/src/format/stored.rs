//! What the files of a model hold its weights as, and in how many bytes.

use std::collections::BTreeMap;
use std::path::Path;

use super::gguf::GgufFile;
use super::hf::weight_files;
use super::load::is_around_gguf;
use super::map::Mapped;
use super::safetensors::parse;
use crate::error::Result;

/// Bytes of the tensors of a model's files, by the types that they are stored as.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Stored(BTreeMap<String, u64>);

impl Stored {
    /// Of a GGUF file, a directory around one, or one of safetensors.
    pub fn of(path: &Path) -> Result<Self> {
        let mut all = Self::default();
        let mut add = |ty: String, bytes: u64| *all.0.entry(ty).or_default() += bytes;
        if let Some(file) = is_around_gguf(path)? {
            for (ty, bytes) in GgufFile::read(&file)?.sizes() {
                add(ty.name().to_owned(), bytes);
            }
            return Ok(all);
        }
        for file in weight_files(path)? {
            let mapped = Mapped::open(&file)?;
            for (_, tensor) in parse(&file, &mapped)?.tensors() {
                add(format!("{:?}", tensor.dtype()), tensor.data().len() as u64);
            }
        }
        Ok(all)
    }

    /// Bytes of all tensors.
    pub fn bytes(&self) -> u64 {
        self.0.values().sum()
    }
}

impl std::fmt::Display for Stored {
    /// The types, that of the most bytes first.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut types: Vec<(&String, u64)> = self.0.iter().map(|(ty, bytes)| (ty, *bytes)).collect();
        types.sort_by_key(|(_, bytes)| std::cmp::Reverse(*bytes));
        let names: Vec<&str> = types.iter().map(|(ty, _)| ty.as_str()).collect();
        f.write_str(&names.join(", "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::gguf::{Entry, GgufWriter, TensorType, Value};

    #[test]
    fn bytes_by_type_by_hand() {
        let dir = tempfile::tempdir().expect("dir");
        let file = dir.path().join("model.gguf");
        let mut writer = GgufWriter::default();
        writer.key("general.architecture", Value::Text("llama".into()));
        // 2 rows of 64 values in blocks of 32, of 20 bytes each; 6 halves.
        let of = |name: &str, shape: &[usize], ty, bytes| Entry {
            name: name.into(),
            shape: shape.to_vec(),
            ty,
            data: Box::new(move || vec![0; bytes]),
        };
        writer.tensor(of("a", &[2, 64], TensorType::Q4_1, 80));
        writer.tensor(of("b", &[6], TensorType::F16, 12));
        writer.write(&file).expect("writes");
        let of_file = Stored::of(&file).expect("reads");
        assert_eq!((of_file.bytes(), of_file.to_string().as_str()), (92, "Q4_1, F16"));
        std::fs::write(dir.path().join("config.json"), r#"{"model_type": "gguf", "seq": 8}"#).expect("writes");
        assert_eq!(Stored::of(dir.path()).expect("reads"), of_file);

        let dir = tempfile::tempdir().expect("dir");
        std::fs::write(dir.path().join("config.json"), r#"{"model_type": "llama"}"#).expect("writes");
        let zeros = vec![0u8; 24];
        let view = |dtype, n: usize| safetensors::tensor::TensorView::new(dtype, vec![n], &zeros).expect("fits");
        let tensors = [("x", view(safetensors::Dtype::BF16, 12)), ("y", view(safetensors::Dtype::F32, 6))];
        safetensors::serialize_to_file(tensors, None, &dir.path().join("model.safetensors")).expect("writes");
        let of_directory = Stored::of(dir.path()).expect("reads");
        assert_eq!((of_directory.bytes(), of_directory.to_string().as_str()), (48, "BF16, F32"));
    }
}
