//! Writes GGUF version 3: keys, tensor infos, then tensor data made one tensor at a time.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;

use super::types::TensorType;
use crate::error::{Error, FormatError, Result};

/// Alignment of tensor data.
pub const ALIGNMENT: u64 = 32;

/// A metadata value.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// uint32.
    U32(u32),
    /// int32.
    I32(i32),
    /// uint64.
    U64(u64),
    /// float32.
    F32(f32),
    /// float64.
    F64(f64),
    /// bool.
    Bool(bool),
    /// UTF-8.
    Text(String),
    /// Array of UTF-8.
    Texts(Vec<String>),
    /// Array of int32.
    I32s(Vec<i32>),
    /// Array of float32.
    F32s(Vec<f32>),
    /// A type that only the reader meets, as text.
    Other(String),
}

impl Value {
    /// A whole number from 0 on, whatever its width.
    pub fn whole(&self) -> Option<u64> {
        match self {
            Value::U32(v) => Some(u64::from(*v)),
            Value::I32(v) => u64::try_from(*v).ok(),
            Value::U64(v) => Some(*v),
            _ => None,
        }
    }
}

/// A tensor to write.
pub struct Entry<'a> {
    /// Name.
    pub name: String,
    /// `[rows, cols]` or `[n]`; the file holds them reversed.
    pub shape: Vec<usize>,
    /// Type.
    pub ty: TensorType,
    /// Makes its bytes when they are needed.
    pub data: Box<dyn Fn() -> Vec<u8> + 'a>,
}

impl Entry<'_> {
    fn size(&self) -> u64 {
        self.ty.bytes(self.shape.iter().product::<usize>() as u64)
    }
}

/// Keys and tensors of a file, in order.
#[derive(Default)]
pub struct GgufWriter<'a> {
    keys: Vec<(String, Value)>,
    tensors: Vec<Entry<'a>>,
}

impl<'a> GgufWriter<'a> {
    /// Adds a key.
    pub fn key(&mut self, name: impl Into<String>, value: Value) {
        self.keys.push((name.into(), value));
    }
    /// Adds a tensor.
    pub fn tensor(&mut self, entry: Entry<'a>) {
        self.tensors.push(entry);
    }
    /// Bytes of all tensors.
    pub fn tensor_bytes(&self) -> u64 {
        self.tensors.iter().map(Entry::size).sum()
    }
    /// Writes the file.
    pub fn write(&self, path: &Path) -> Result<()> {
        let failed = |e: std::io::Error| Error::io("cannot write", path, e);
        let mut head = Vec::new();
        head.extend(b"GGUF");
        head.extend(3u32.to_le_bytes());
        head.extend((self.tensors.len() as u64).to_le_bytes());
        head.extend((self.keys.len() as u64).to_le_bytes());
        for (name, value) in &self.keys {
            text(&mut head, name);
            put(&mut head, value);
        }
        let mut offset = 0u64;
        for t in &self.tensors {
            text(&mut head, &t.name);
            head.extend((t.shape.len() as u32).to_le_bytes());
            t.shape.iter().rev().for_each(|d| head.extend((*d as u64).to_le_bytes()));
            head.extend(t.ty.id().to_le_bytes());
            head.extend(offset.to_le_bytes());
            offset += t.size().next_multiple_of(ALIGNMENT);
        }
        head.resize(head.len().next_multiple_of(ALIGNMENT as usize), 0);
        let mut out = BufWriter::new(File::create(path).map_err(failed)?);
        out.write_all(&head).map_err(failed)?;
        for t in &self.tensors {
            let mut data = (t.data)();
            if data.len() as u64 != t.size() {
                return Err(FormatError::write(format!("tensor `{}` gave {} bytes instead of {}", t.name, data.len(), t.size())));
            }
            data.resize(data.len().next_multiple_of(ALIGNMENT as usize), 0);
            out.write_all(&data).map_err(failed)?;
        }
        out.flush().map_err(failed)
    }
}

fn text(out: &mut Vec<u8>, s: &str) {
    out.extend((s.len() as u64).to_le_bytes());
    out.extend(s.as_bytes());
}

fn put(out: &mut Vec<u8>, value: &Value) {
    let mut tag = |id: u32| out.extend(id.to_le_bytes());
    match value {
        Value::U32(v) => {
            tag(4);
            out.extend(v.to_le_bytes());
        }
        Value::I32(v) => {
            tag(5);
            out.extend(v.to_le_bytes());
        }
        Value::F32(v) => {
            tag(6);
            out.extend(v.to_le_bytes());
        }
        Value::F64(v) => {
            tag(12);
            out.extend(v.to_le_bytes());
        }
        Value::Bool(v) => {
            tag(7);
            out.push(u8::from(*v));
        }
        Value::Text(v) | Value::Other(v) => {
            tag(8);
            text(out, v);
        }
        Value::Texts(v) => {
            tag(9);
            out.extend(8u32.to_le_bytes());
            out.extend((v.len() as u64).to_le_bytes());
            v.iter().for_each(|s| text(out, s));
        }
        Value::I32s(v) => {
            tag(9);
            out.extend(5u32.to_le_bytes());
            out.extend((v.len() as u64).to_le_bytes());
            v.iter().for_each(|i| out.extend(i.to_le_bytes()));
        }
        Value::F32s(v) => {
            tag(9);
            out.extend(6u32.to_le_bytes());
            out.extend((v.len() as u64).to_le_bytes());
            v.iter().for_each(|x| out.extend(x.to_le_bytes()));
        }
        Value::U64(v) => {
            tag(10);
            out.extend(v.to_le_bytes());
        }
    }
}
