//! Reads the header of a GGUF file and the tensors that we write.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::pack;
use super::write::{TensorType, Value};
use flow_engine::plugin::StageError;
use half::f16;

/// A tensor of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorInfo {
    /// Name.
    pub name: String,
    /// `[rows, cols]` or `[n]`.
    pub shape: Vec<usize>,
    /// Type id.
    pub ty: u32,
    /// Offset after the header.
    pub offset: usize,
}

/// A GGUF file in memory.
pub struct GgufFile {
    path: PathBuf,
    bytes: Vec<u8>,
    data: usize,
    /// Metadata by key.
    pub keys: BTreeMap<String, Value>,
    /// Tensors in file order.
    pub tensors: Vec<TensorInfo>,
}

struct Cursor<'a> {
    bytes: &'a [u8],
    at: usize,
}

type Parsed<T> = Result<T, String>;

impl<'a> Cursor<'a> {
    fn take(&mut self, n: usize) -> Parsed<&'a [u8]> {
        let end = self.at.checked_add(n).filter(|e| *e <= self.bytes.len());
        let end = end.ok_or_else(|| format!("ends at byte {} within the header", self.bytes.len()))?;
        let part = &self.bytes[self.at..end];
        self.at = end;
        Ok(part)
    }
    fn u32(&mut self) -> Parsed<u32> {
        self.take(4).map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]]))
    }
    fn u64(&mut self) -> Parsed<u64> {
        let low = u64::from(self.u32()?);
        Ok(low | (u64::from(self.u32()?) << 32))
    }
    /// A count, no larger than the bytes that are left could hold.
    fn count(&mut self) -> Parsed<usize> {
        let n = self.u64()?;
        if n > self.bytes.len() as u64 { Err(format!("a count of {n} at byte {}", self.at - 8)) } else { Ok(n as usize) }
    }
    fn text(&mut self) -> Parsed<String> {
        let n = self.count()?;
        String::from_utf8(self.take(n)?.to_vec()).map_err(|_| format!("a name before byte {} is no UTF-8", self.at))
    }
    fn value(&mut self, ty: u32) -> Parsed<Value> {
        Ok(match ty {
            4 => Value::U32(self.u32()?),
            5 => Value::I32(self.u32()? as i32),
            6 => Value::F32(f32::from_bits(self.u32()?)),
            7 => Value::Bool(self.take(1)?[0] != 0),
            8 => Value::Text(self.text()?),
            10 => Value::U64(self.u64()?),
            0 | 1 => Value::Other(format!("{:?}", self.take(1)?)),
            2 | 3 => Value::Other(format!("{:?}", self.take(2)?)),
            11 | 12 => Value::Other(format!("{:?}", self.take(8)?)),
            9 => {
                let (item, n) = (self.u32()?, self.count()?);
                match item {
                    8 => Value::Texts((0..n).map(|_| self.text()).collect::<Parsed<_>>()?),
                    5 => Value::I32s((0..n).map(|_| self.u32().map(|v| v as i32)).collect::<Parsed<_>>()?),
                    _ => {
                        for _ in 0..n {
                            self.value(item)?;
                        }
                        Value::Other(format!("{n} values of type {item}"))
                    }
                }
            }
            other => return Err(format!("value type {other} before byte {}", self.at)),
        })
    }
}

impl GgufFile {
    /// Reads a file.
    pub fn read(path: &Path) -> Result<Self, StageError> {
        let bytes = std::fs::read(path).map_err(|e| StageError::io("cannot read", path, &e))?;
        Self::parse(path, bytes).map_err(|what| {
            StageError::new(format!("{}: not a readable GGUF file: {what}", path.display()))
                .help("the file is damaged or cut short: fetch it again")
        })
    }

    fn parse(path: &Path, bytes: Vec<u8>) -> Parsed<Self> {
        let mut c = Cursor { bytes: &bytes, at: 0 };
        if c.take(4)? != b"GGUF" {
            return Err("it does not begin with `GGUF`".into());
        }
        let version = c.u32()?;
        if !(2..=3).contains(&version) {
            return Err(format!("version {version}, expected 2 or 3"));
        }
        let (tensor_count, key_count) = (c.count()?, c.count()?);
        let mut keys = BTreeMap::new();
        for _ in 0..key_count {
            let name = c.text()?;
            let ty = c.u32()?;
            keys.insert(name, c.value(ty)?);
        }
        let mut tensors = Vec::new();
        for _ in 0..tensor_count {
            let name = c.text()?;
            let dims = c.u32()?;
            if dims > 4 {
                return Err(format!("tensor `{name}` has {dims} dimensions"));
            }
            let mut shape: Vec<usize> = (0..dims).map(|_| c.count()).collect::<Parsed<_>>()?;
            shape.reverse();
            let ty = c.u32()?;
            tensors.push(TensorInfo { name, shape, ty, offset: c.count()? });
        }
        let alignment = match keys.get("general.alignment") {
            Some(Value::U32(a)) if *a > 0 => *a as usize,
            _ => 32,
        };
        let data = c.at.next_multiple_of(alignment);
        Ok(Self { path: path.to_owned(), data, keys, tensors, bytes })
    }

    /// Bytes of a tensor of a type that we write.
    pub fn raw(&self, name: &str) -> Result<(&TensorInfo, TensorType, &[u8]), StageError> {
        let fail = |what: String| StageError::new(format!("{}: tensor `{name}` {what}", self.path.display()));
        let info = self.tensors.iter().find(|t| t.name == name).ok_or_else(|| fail("is missing".into()))?;
        let ty = TensorType::of(info.ty).ok_or_else(|| fail(format!("has type {}, which is not read yet", info.ty)))?;
        let start = self.data + info.offset;
        let n = info.shape.iter().try_fold(1u64, |n, d| n.checked_mul(*d as u64)).unwrap_or(u64::MAX / 8);
        let bytes = usize::try_from(ty.bytes(n)).ok().and_then(|len| self.bytes.get(start..start.checked_add(len)?));
        Ok((info, ty, bytes.ok_or_else(|| fail("ends beyond the file".into()))?))
    }

    /// Values of a tensor.
    pub fn floats(&self, name: &str) -> Result<Vec<f32>, StageError> {
        let (_, ty, bytes) = self.raw(name)?;
        let spread = |(codes, scales): (Vec<i8>, Vec<f32>)| {
            codes.chunks(pack::BLOCK).zip(scales).flat_map(|(block, d)| block.iter().map(move |c| f32::from(*c) * d)).collect()
        };
        Ok(match ty {
            TensorType::F32 => bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect(),
            TensorType::F16 => bytes.chunks_exact(2).map(|b| f16::from_bits(u16::from_le_bytes([b[0], b[1]])).to_f32()).collect(),
            TensorType::Tq2_0 => spread(pack::unpack_tq2_0(bytes)),
            TensorType::Tq1_0 => spread(pack::unpack_tq1_0(bytes)),
        })
    }
}
