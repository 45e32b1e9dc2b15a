//! Where a model's float32 tensors come from: memory, or a mapped file out of which each is made when it is asked for, so
//! that a model which runs is in memory once.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::Arc;

use flow_shaders::kernels::ternary::groups::{GROUP, row_scale_words, scale_words};
use rayon::prelude::*;

use crate::config::Group;

/// Gives float32 tensors by the names of [`crate::config::ModelConfig::tensors`].
pub trait TensorSource {
    /// Values of a tensor of the model.
    fn tensor(&self, name: &str) -> Cow<'_, [f32]>;
    /// Whether a table is held as float16, and so can stay it.
    fn is_half(&self, _name: &str) -> bool {
        false
    }
    /// Values of a tensor as float16, however they are held; two in a word.
    fn halves(&self, name: &str) -> Vec<u32> {
        half_pairs(&self.tensor(name))
    }
    /// A ternary matrix, where it is held packed.
    fn packed(&self, _name: &str) -> Option<PackedMatrix> {
        None
    }
    /// Scales of a row of such a matrix.
    fn packed_groups(&self, _name: &str) -> Option<usize> {
        None
    }
}

/// Values as float16, two in a word.
pub fn half_pairs(values: &[f32]) -> Vec<u32> {
    values.chunks(2).map(|v| half_pair(v[0], v.get(1).copied().unwrap_or(0.0))).collect()
}

/// Two float16 in a word, the first one low.
pub fn half_pair(low: f32, high: f32) -> u32 {
    let bits = |x: f32| u32::from(half::f16::from_f32(x).to_bits());
    bits(low) | bits(high) << 16
}

impl TensorSource for BTreeMap<String, Vec<f32>> {
    fn tensor(&self, name: &str) -> Cow<'_, [f32]> {
        Cow::Borrowed(&self[name])
    }
}

/// A ternary matrix as the kernels hold it.
#[derive(Clone, Debug, PartialEq)]
pub struct PackedMatrix {
    /// Packed rows (see `flow_shaders::kernels::ternary`).
    pub codes: Vec<u32>,
    /// Their scales, in the form of `groups` (see `flow_shaders::kernels::ternary::groups`).
    pub scale: Vec<u32>,
    /// Scales of a row.
    pub groups: usize,
    /// Columns.
    pub cols: usize,
}

impl PackedMatrix {
    /// Rows of codes with one scale.
    pub fn of_tensor(codes: Vec<u32>, scale: f32, cols: usize) -> Self {
        let rows = codes.len() / cols.div_ceil(16).max(1);
        Self { codes, scale: vec![scale.to_bits(); rows], groups: 1, cols }
    }

    /// Rows.
    pub fn rows(&self) -> usize {
        self.codes.len() / self.cols.div_ceil(16).max(1)
    }

    /// Codes −1, 0, +1 of a row.
    pub fn codes_of(&self, row: usize) -> Vec<i8> {
        let words = self.cols.div_ceil(16);
        unpack(&self.codes[row * words..][..words], self.cols)
    }

    /// The scale of each 64 weights of a row, of which the last may be fewer.
    pub fn scales_of(&self, row: usize) -> Vec<f32> {
        if self.groups == 1 {
            return vec![f32::from_bits(self.scale[row]); self.cols.div_ceil(GROUP)];
        }
        let words = row_scale_words(self.groups);
        let half = |g: usize| half::f16::from_bits((self.scale[row * words + g / 2] >> (16 * (g % 2))) as u16).to_f32();
        (0..self.groups).map(half).collect()
    }

    /// Values `[rows, cols]`.
    pub fn values(&self) -> Vec<f32> {
        flow_shaders::unpack_ternary(&self.codes, &self.scale, self.cols, self.groups)
    }

    /// Master weights whose absmean ternarisation by `group` gives codes and scales back.
    pub fn masters(&self, group: Group) -> Vec<f32> {
        masters_in(self.values(), self.cols, group)
    }

    /// The same with rows in another order: those of each `block` of rows as `order` says.
    #[must_use]
    pub fn with_rows(self, block: usize, order: &[usize]) -> Self {
        let rows = self.rows();
        let of = |words: &[u32]| {
            let width = words.len() / rows.max(1);
            let row = |r: usize| &words[(r / block * block + order[r % block]) * width..][..width];
            (0..rows).flat_map(|r| row(r).iter().copied()).collect()
        };
        debug_assert_eq!(self.scale.len(), scale_words(rows, self.groups));
        Self { codes: of(&self.codes), scale: of(&self.scale), ..self }
    }
}

/// Masters of each part of `values` (0 and ± a scale) that shares a scale: their absmean is that scale.
pub(super) fn masters_in(mut values: Vec<f32>, cols: usize, group: Group) -> Vec<f32> {
    let per = match group {
        Group::Tensor => values.len(),
        Group::Row => cols,
        Group::Of(n) => n,
    };
    values.par_chunks_mut(per.max(1)).for_each(|part| {
        let set = part.iter().filter(|v| **v != 0.0).count();
        let spread = part.len() as f64 / set.max(1) as f64;
        part.iter_mut().for_each(|v| *v = (f64::from(*v) * spread) as f32);
    });
    values
}

/// Packed rows of 2-bit codes (see `flow_shaders::kernels::ternary`) as −1, 0, +1.
pub(super) fn unpack(words: &[u32], cols: usize) -> Vec<i8> {
    let code = |row: &[u32], e: usize| (row[e / 16] >> ((e % 4) * 8 + (e / 4 % 4) * 2) & 3) as i8 - 1;
    words.chunks_exact(cols.div_ceil(16)).flat_map(|row| (0..cols).map(move |e| code(row, e))).collect()
}

/// Tensors of a model whose linears were packed in its files.
#[derive(Clone, Debug, Default)]
pub struct PackedTensors {
    /// All that are no packed linears.
    pub floats: BTreeMap<String, Vec<f32>>,
    /// Packed linears, with one scale each.
    pub linears: BTreeMap<String, PackedMatrix>,
}

impl PackedTensors {
    fn tensor(&self, name: &str) -> Cow<'_, [f32]> {
        match self.linears.get(name) {
            Some(l) => Cow::Owned(l.masters(Group::Tensor)),
            None => self.floats.tensor(name),
        }
    }
}

/// Tensors that are made out of a mapped file when they are asked for.
pub type MappedTensors = Arc<dyn InMappedFile>;

/// A source that can be shared between threads and shown.
pub trait InMappedFile: TensorSource + std::fmt::Debug + Send + Sync {}
impl<T: TensorSource + std::fmt::Debug + Send + Sync> InMappedFile for T {}

/// Tensors of a model that was read.
#[derive(Clone, Debug)]
pub enum Tensors {
    /// In memory.
    Held(BTreeMap<String, Vec<f32>>),
    /// In memory, ternary linears as packed words.
    Packed(PackedTensors),
    /// In a mapped file.
    Mapped(MappedTensors),
}

impl TensorSource for Tensors {
    fn tensor(&self, name: &str) -> Cow<'_, [f32]> {
        match self {
            Tensors::Held(all) => all.tensor(name),
            Tensors::Packed(all) => all.tensor(name),
            Tensors::Mapped(file) => file.tensor(name),
        }
    }
    fn is_half(&self, name: &str) -> bool {
        matches!(self, Tensors::Mapped(file) if file.is_half(name))
    }
    fn halves(&self, name: &str) -> Vec<u32> {
        match self {
            Tensors::Held(all) => all.halves(name),
            Tensors::Packed(all) => all.floats.halves(name),
            Tensors::Mapped(file) => file.halves(name),
        }
    }
    fn packed(&self, name: &str) -> Option<PackedMatrix> {
        match self {
            Tensors::Held(_) => None,
            Tensors::Packed(all) => all.linears.get(name).cloned(),
            Tensors::Mapped(file) => file.packed(name),
        }
    }
    fn packed_groups(&self, name: &str) -> Option<usize> {
        match self {
            Tensors::Held(_) => None,
            Tensors::Packed(all) => all.linears.get(name).map(|l| l.groups),
            Tensors::Mapped(file) => file.packed_groups(name),
        }
    }
}

impl From<PackedTensors> for Tensors {
    fn from(all: PackedTensors) -> Self {
        if all.linears.is_empty() { Tensors::Held(all.floats) } else { Tensors::Packed(all) }
    }
}

impl From<BTreeMap<String, Vec<f32>>> for Tensors {
    fn from(all: BTreeMap<String, Vec<f32>>) -> Self {
        Tensors::Held(all)
    }
}
