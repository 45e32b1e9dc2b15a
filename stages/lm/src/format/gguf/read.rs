//! Reads a GGUF file: keys and tensor infos at once, tensor data where it is asked for.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::{Path, PathBuf};

use super::groups;
use super::info::TensorInfo;
use super::quant::dequantise;
use super::split;
use super::types::{TensorType, foreign_name, supported};
use super::write::Value;
use crate::error::{Error, FormatError, Result};
use crate::format::map::Mapped;

/// A mapped GGUF file, or all parts of one that was split.
pub struct GgufFile {
    path: PathBuf,
    parts: Vec<Part>,
    /// Which of the two types with its id is meant.
    q2_0: TensorType,
    /// Metadata by key.
    pub keys: BTreeMap<String, Value>,
    /// Tensors in file order.
    pub tensors: Vec<TensorInfo>,
}

/// One of the files of a model. Places are counted over all of them, one after the other; offsets of tensors over their tensor
/// data.
struct Part {
    bytes: Mapped,
    /// Where it begins among all files.
    start: usize,
    /// Where its tensor data begins in it.
    data: usize,
    /// Offset of the first tensor.
    offset: usize,
}

impl Part {
    fn end(&self) -> usize {
        self.start + self.bytes.len()
    }
    /// The offset after its last tensor.
    fn last_offset(&self) -> usize {
        self.offset + self.bytes.len().saturating_sub(self.data)
    }
    /// A place, in the file.
    fn local(&self, place: Range<usize>) -> Range<usize> {
        place.start - self.start..place.end - self.start
    }
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
            11 => {
                let v = self.u64()? as i64;
                u64::try_from(v).map_or_else(|_| Value::Other(v.to_string()), Value::U64)
            }
            12 => Value::F64(f64::from_bits(self.u64()?)),
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

    /// Reads a file whose header ends within the first `most` bytes: a damaged one of any size is found out at once. The first
    /// part of a file that was split stands for all of them.
    pub fn read_within(path: &Path, most: usize) -> Result<Self> {
        let mut file =
            Self { path: path.to_owned(), parts: Vec::new(), q2_0: TensorType::Q2_0, keys: BTreeMap::new(), tensors: Vec::new() };
        let alignment = file.append(path, most)?;
        let others = file.other_parts()?;
        for (i, part) in others.iter().enumerate() {
            let first = std::mem::take(&mut file.keys);
            file.append(part, most)?;
            let own = std::mem::replace(&mut file.keys, first);
            if own.get("split.no").and_then(Value::whole) != Some(i as u64 + 1) {
                let found = own.get("split.no").map_or("none".into(), |v| format!("{v:?}"));
                return Err(FormatError::field(part, "split.no", format!("expected {}, found {found}", i + 1)));
            }
        }
        let declared = file.whole("split.tensors.count")?.filter(|n| *n != file.tensors.len());
        if let Some(declared) = declared {
            return Err(file.wrong_field("split.tensors.count", format!("{declared} where its parts hold {}", file.tensors.len())));
        }
        let end = file.parts.last().map_or(0, Part::last_offset);
        let unreadable = |why| unreadable(path, why);
        file.q2_0 = groups::of_q2_0(&file.tensors, alignment, end).map_err(unreadable)?;
        file.check_table().map_err(unreadable)?;
        Ok(file)
    }

    /// Takes the keys and tensors of a file after those that are there; gives its alignment.
    fn append(&mut self, path: &Path, most: usize) -> Result<u64> {
        let bytes = Mapped::open(path)?;
        if is_big_endian(&bytes) {
            let why = "it is big-endian, and little-endian files are read".to_owned();
            let wrong = FormatError::Unreadable { file: path.to_owned(), format: "a readable GGUF file".into(), why };
            return Err(Error::from(wrong).help("convert it with llama.cpp's `gguf_convert_endian.py FILE little`, or fetch the other one"));
        }
        let header = Header::parse(&bytes, most).map_err(|why| unreadable(path, why))?;
        let (start, offset) = self.parts.last().map_or((0, 0), |p| (p.end(), p.last_offset()));
        let moved = |t: TensorInfo| TensorInfo { offset: t.offset.saturating_add(offset), ..t };
        self.tensors.extend(header.tensors.into_iter().map(moved));
        self.keys = header.keys;
        self.parts.push(Part { bytes, start, data: header.data, offset });
        Ok(header.alignment)
    }

    /// The files beside the first part of a split file.
    fn other_parts(&self) -> Result<Vec<PathBuf>> {
        let key = "split.count";
        let Some(count) = self.whole(key)?.filter(|n| *n > 1) else { return Ok(Vec::new()) };
        let named = split::parts(&self.path).filter(|(_, all)| all.len() == count);
        let Some((number, all)) = named else {
            let why = format!("{count} parts, whose names must end in `-00001-of-{count:05}.gguf`");
            return Err(self.wrong_field(key, why).help("give the parts their names back, or merge them with `llama-gguf-split --merge`"));
        };
        if number != 1 {
            let why = format!("this is part {number} of {count}");
            return Err(self.unsupported(why).help(format!("give the first: {}", all[0].display())));
        }
        if let Some(missing) = all.iter().find(|p| !p.is_file()) {
            let why = format!("{count} parts, and {} is not there", missing.display());
            return Err(self.wrong_field(key, why).help("all parts lie in one folder: fetch the others"));
        }
        Ok(all.into_iter().skip(1).collect())
    }

    /// No name is there twice, and no tensor reaches into the next one: sizes, types and offsets of the table go together.
    fn check_table(&self) -> Result<(), String> {
        let mut names: Vec<&str> = self.tensors.iter().map(|t| t.name.as_str()).collect();
        names.sort_unstable();
        if let Some(twice) = names.windows(2).find(|pair| pair[0] == pair[1]) {
            return Err(format!("tensor `{}` is there twice", twice[0]));
        }
        let mut order: Vec<&TensorInfo> = self.tensors.iter().collect();
        order.sort_by_key(|t| (t.offset, t.values()));
        for pair in order.windows(2) {
            let room = (pair[1].offset - pair[0].offset) as u64;
            let Some(ty) = TensorType::of(pair[0].ty) else { continue };
            let ty = if ty == TensorType::Q2_0 { self.q2_0 } else { ty };
            let size = ty.bytes(pair[0].values());
            if size > room {
                return Err(format!(
                    "tensor `{}` {:?} of type {} takes {size} bytes, and {room} lie between it and `{}`",
                    pair[0].name,
                    pair[0].shape,
                    ty.name(),
                    pair[1].name
                ));
            }
        }
        Ok(())
    }

    /// The part in which a place lies.
    fn part(&self, place: &Range<usize>) -> &Part {
        let after = self.parts.partition_point(|p| p.start <= place.start);
        &self.parts[after.saturating_sub(1)]
    }

    /// Files that it was read from.
    pub fn parts(&self) -> usize {
        self.parts.len()
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
        let Some(value) = self.keys.get(key) else { return Ok(None) };
        // No size of a model or a vocabulary reaches this, and products of two sizes stay far below 2^64.
        match value.whole().filter(|n| *n < 1 << 31) {
            Some(n) => Ok(Some(n as usize)),
            None => Err(self.wrong(key, "a whole number below 2^31", &self.keys[key])),
        }
    }

    /// A number, if it is there.
    pub fn number(&self, key: &str) -> Result<Option<f32>> {
        match self.keys.get(key) {
            None => Ok(None),
            Some(Value::F32(v)) if v.is_finite() => Ok(Some(*v)),
            Some(Value::F64(v)) if (*v as f32).is_finite() => Ok(Some(*v as f32)),
            Some(whole) if whole.whole().is_some() => Ok(whole.whole().map(|v| v as f32)),
            Some(other) => Err(self.wrong(key, "a finite number", other)),
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

    /// Type and bytes of every tensor whose type is known.
    pub fn sizes(&self) -> impl Iterator<Item = (TensorType, u64)> + '_ {
        self.tensors.iter().filter_map(|t| {
            let ty = TensorType::of(t.ty)?;
            let ty = if ty == TensorType::Q2_0 { self.q2_0 } else { ty };
            Some((ty, ty.bytes(t.values())))
        })
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
        let after = self.parts.partition_point(|p| p.offset <= info.offset);
        let part = &self.parts[after.saturating_sub(1)];
        let start = (info.offset - part.offset).checked_add(part.start + part.data);
        let bytes = start.zip(usize::try_from(ty.bytes(info.values())).ok()).and_then(|(s, len)| Some(s..s.checked_add(len)?));
        let bytes = bytes.filter(|b| b.end <= part.end());
        let bytes = bytes.ok_or_else(|| fail("ends beyond the file".into()).help("the file is cut short: fetch it again"))?;
        Ok((info, ty, bytes))
    }

    /// Bytes of a place in the file.
    pub fn bytes(&self, place: Range<usize>) -> &[u8] {
        let part = self.part(&place);
        &part.bytes[part.local(place)]
    }

    /// Lets the pages of a place go.
    pub fn forget(&self, place: Range<usize>) {
        let part = self.part(&place);
        part.bytes.forget(part.local(place));
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

fn unreadable(path: &Path, why: String) -> Error {
    Error::from(FormatError::Unreadable { file: path.to_owned(), format: "a readable GGUF file".into(), why })
        .help("the file is damaged, cut short or of another format: fetch it again")
}

/// Whether the version that follows `GGUF` is one only when it is read from its other end.
fn is_big_endian(bytes: &[u8]) -> bool {
    bytes.starts_with(b"GGUF") && bytes.get(4..8).is_some_and(|v| v[..3] == [0; 3] && (1..=3).contains(&v[3]))
}

/// What stands before the tensor data.
struct Header {
    keys: BTreeMap<String, Value>,
    tensors: Vec<TensorInfo>,
    /// Where the tensor data begins.
    data: usize,
    alignment: u64,
}

/// Alignment of tensor data where a file does not say it, and the largest that one may say.
const ALIGNMENT: u64 = 32;
const MOST_ALIGNMENT: u64 = 1 << 20;

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
            let value = c.value(ty)?;
            if keys.contains_key(&name) {
                return Err(format!("key `{name}` is there twice"));
            }
            keys.insert(name, value);
        }
        let tensors: Vec<_> = (0..tensor_count).map(|_| c.tensor()).collect::<Parsed<_>>()?;
        let alignment = match keys.get("general.alignment") {
            None => ALIGNMENT,
            Some(value) => value
                .whole()
                .filter(|a| a.is_power_of_two() && *a <= MOST_ALIGNMENT)
                .ok_or_else(|| format!("`general.alignment` is {value:?}, expected a power of two up to {MOST_ALIGNMENT}"))?,
        };
        if let Some(t) = tensors.iter().find(|t| !(t.offset as u64).is_multiple_of(alignment)) {
            return Err(format!("tensor `{}` begins at {}, which is no multiple of the alignment {alignment}", t.name, t.offset));
        }
        Ok(Self { keys, tensors, data: c.at.next_multiple_of(alignment as usize), alignment })
    }
}
