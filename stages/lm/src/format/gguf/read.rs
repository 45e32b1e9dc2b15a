//! Reads a GGUF file: keys and tensor infos at once, tensor data where it is asked for.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::{Path, PathBuf};

use super::groups;
use super::info::TensorInfo;
use super::quant::dequantise;
use super::types::{TensorType, foreign_name, supported};
use super::write::Value;
use crate::error::{Error, FormatError, Result};
use crate::format::map::Mapped;

/// A mapped GGUF file.
pub struct GgufFile {
    path: PathBuf,
    bytes: Mapped,
    data: usize,
    /// Which of the two types with its id is meant.
    q2_0: TensorType,
    /// Metadata by key.
    pub keys: BTreeMap<String, Value>,
    /// Tensors in file order.
    pub tensors: Vec<TensorInfo>,
}

struct Cursor<'a> {
    bytes: &'a [u8],
    at: usize,
    /// Where a header must have ended.
    most: usize,
}

type Parsed<T> = Result<T, String>;

impl<'a> Cursor<'a> {
    fn take(&mut self, n: usize) -> Parsed<&'a [u8]> {
        let most = self.most.min(self.bytes.len());
        let end = self.at.checked_add(n).filter(|e| *e <= most);
        let end = end.ok_or_else(|| format!("ends at byte {most} within the header"))?;
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
            0 => Value::U32(self.take(1)?[0].into()),
            1 => Value::I32((self.take(1)?[0] as i8).into()),
            2 => Value::U32(self.take(2).map(|b| u16::from_le_bytes([b[0], b[1]]))?.into()),
            3 => Value::I32(self.take(2).map(|b| i16::from_le_bytes([b[0], b[1]]))?.into()),
            11 | 12 => Value::Other(format!("{:?}", self.take(8)?)),
            9 => {
                let (item, n) = (self.u32()?, self.count()?);
                match item {
                    8 => Value::Texts((0..n).map(|_| self.text()).collect::<Parsed<_>>()?),
                    5 => Value::I32s((0..n).map(|_| self.u32().map(|v| v as i32)).collect::<Parsed<_>>()?),
                    6 => Value::F32s((0..n).map(|_| self.u32().map(f32::from_bits)).collect::<Parsed<_>>()?),
                    // Nothing that is read needs arrays of arrays, and a damaged file could nest them without end.
                    9 => return Err(format!("an array of arrays before byte {}", self.at)),
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

impl Cursor<'_> {
    fn tensor(&mut self) -> Parsed<TensorInfo> {
        let name = self.text()?;
        let dims = self.u32()?;
        if dims > 4 {
            return Err(format!("tensor `{name}` has {dims} dimensions"));
        }
        let mut shape: Vec<usize> = (0..dims).map(|_| self.count()).collect::<Parsed<_>>()?;
        shape.reverse();
        let ty = self.u32()?;
        Ok(TensorInfo { name, shape, ty, offset: self.count()? })
    }
}

impl GgufFile {
    /// Reads a file.
    pub fn read(path: &Path) -> Result<Self> {
        Self::read_within(path, usize::MAX)
    }

    /// Reads a file whose header ends within the first `most` bytes: a damaged one of any size is found out at once.
    pub fn read_within(path: &Path, most: usize) -> Result<Self> {
        let bytes = Mapped::open(path)?;
        let header = Header::parse(&bytes, most).map_err(|what| {
            Error::from(FormatError::Unreadable { file: path.to_owned(), format: "a readable GGUF file".into(), why: what })
                .help("the file is damaged, cut short or of another format: fetch it again")
        })?;
        let Header { keys, tensors, data, q2_0 } = header;
        Ok(Self { path: path.to_owned(), bytes, data, q2_0, keys, tensors })
    }

    /// Where it was read from.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// A field of this file with a value that cannot be.
    pub fn wrong_field(&self, key: &str, why: impl Into<String>) -> Error {
        FormatError::field(&self.path, key, why)
    }

    /// A field that this file must have.
    pub fn missing_field(&self, key: &str) -> Error {
        FormatError::MissingField { file: self.path.clone(), field: key.to_owned() }.into()
    }

    /// What of this file is not built in.
    pub fn unsupported(&self, why: impl Into<String>) -> Error {
        FormatError::unsupported(&self.path, why)
    }

    /// A text key, if it is there.
    pub fn text(&self, key: &str) -> Result<Option<&str>> {
        match self.keys.get(key) {
            None => Ok(None),
            Some(Value::Text(text)) => Ok(Some(text)),
            Some(other) => Err(self.wrong(key, "a text", other)),
        }
    }

    /// A whole number, if it is there.
    pub fn whole(&self, key: &str) -> Result<Option<usize>> {
        let number = match self.keys.get(key) {
            None => return Ok(None),
            Some(Value::U32(v)) => Some(u64::from(*v)),
            Some(Value::I32(v)) => u64::try_from(*v).ok(),
            Some(Value::U64(v)) => Some(*v),
            Some(_) => None,
        };
        // No size of a model or a vocabulary reaches this, and products of two sizes stay far below 2^64.
        match number.filter(|n| *n < 1 << 31) {
            Some(n) => Ok(Some(n as usize)),
            None => Err(self.wrong(key, "a whole number below 2^31", &self.keys[key])),
        }
    }

    /// A number, if it is there.
    pub fn number(&self, key: &str) -> Result<Option<f32>> {
        match self.keys.get(key) {
            None => Ok(None),
            Some(Value::F32(v)) if v.is_finite() => Ok(Some(*v)),
            Some(other) => Err(self.wrong(key, "a finite float32", other)),
        }
    }

    /// A flag, if it is there.
    pub fn flag(&self, key: &str) -> Result<Option<bool>> {
        match self.keys.get(key) {
            None => Ok(None),
            Some(Value::Bool(v)) => Ok(Some(*v)),
            Some(other) => Err(self.wrong(key, "true or false", other)),
        }
    }

    fn wrong(&self, key: &str, expected: &str, found: &Value) -> Error {
        let found: String = format!("{found:?}").chars().take(60).collect();
        self.wrong_field(key, format!("expected {expected}, found {found}"))
    }

    /// Where a tensor's bytes lie, for [`Self::bytes`].
    pub fn place(&self, name: &str) -> Result<(&TensorInfo, TensorType, Range<usize>)> {
        let fail = |why: String| FormatError::tensor(&self.path, name, why);
        let info = self
            .tensors
            .iter()
            .find(|t| t.name == name)
            .ok_or_else(|| fail("is missing".into()).help("the file is not complete, or holds another architecture than it says"))?;
        let ty = TensorType::of(info.ty)
            .ok_or_else(|| fail(format!("is stored as {}", foreign_name(info.ty))).help(format!("types that are read: {}", supported())))?;
        let ty = if ty == TensorType::Q2_0 { self.q2_0 } else { ty };
        let cols = info.cols();
        if cols % ty.block() != 0 {
            return Err(fail(format!("has {cols} columns, which {} blocks of {} do not divide", ty.name(), ty.block())));
        }
        let start = self.data.checked_add(info.offset);
        let bytes = start.zip(usize::try_from(ty.bytes(info.values())).ok()).and_then(|(s, len)| Some(s..s.checked_add(len)?));
        let bytes = bytes.filter(|b| b.end <= self.bytes.len());
        let bytes = bytes.ok_or_else(|| fail("ends beyond the file".into()).help("the file is cut short: fetch it again"))?;
        Ok((info, ty, bytes))
    }

    /// Bytes of a place in the file.
    pub fn bytes(&self, place: Range<usize>) -> &[u8] {
        &self.bytes[place]
    }

    /// Lets the pages of a place go.
    pub fn forget(&self, place: Range<usize>) {
        self.bytes.forget(place);
    }

    /// Bytes of a tensor.
    pub fn raw(&self, name: &str) -> Result<(&TensorInfo, TensorType, &[u8])> {
        self.place(name).map(|(info, ty, place)| (info, ty, self.bytes(place)))
    }

    /// Values of a tensor.
    pub fn floats(&self, name: &str) -> Result<Vec<f32>> {
        let (_, ty, bytes) = self.raw(name)?;
        Ok(dequantise(ty, bytes))
    }
}

/// What stands before the tensor data.
struct Header {
    keys: BTreeMap<String, Value>,
    tensors: Vec<TensorInfo>,
    /// Where the tensor data begins.
    data: usize,
    q2_0: TensorType,
}

impl Header {
    fn parse(bytes: &[u8], most: usize) -> Parsed<Self> {
        let mut c = Cursor { bytes, at: 0, most };
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
        let tensors: Vec<_> = (0..tensor_count).map(|_| c.tensor()).collect::<Parsed<_>>()?;
        let alignment = match keys.get("general.alignment") {
            Some(Value::U32(a)) if *a > 0 => *a as usize,
            _ => 32,
        };
        let data = c.at.next_multiple_of(alignment);
        let q2_0 = groups::of_q2_0(&tensors, alignment as u64, bytes.len().saturating_sub(data))?;
        Ok(Self { keys, tensors, data, q2_0 })
    }
}
