//! Where a model's float32 tensors come from: memory, or a mapped file out of which each is made when it is asked for, so
//! that a model which runs is in memory once.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::Arc;

use super::ternary::{masters, unpack};

/// Gives float32 tensors by the names of [`crate::config::ModelConfig::tensors`].
pub trait TensorSource {
    /// Values of a tensor of the model.
    fn tensor(&self, name: &str) -> Cow<'_, [f32]>;
    /// Whether a table is held as float16, and so can stay it.
    fn is_half(&self, _name: &str) -> bool {
        false
    }
    /// Such a table, two values in a word.
    fn halves(&self, name: &str) -> Vec<u32> {
        let values = self.tensor(name);
        values.chunks(2).map(|v| half_pair(v[0], v.get(1).copied().unwrap_or(0.0))).collect()
    }
    /// Packed words and scale of a ternary linear, where they are held so.
    fn packed(&self, _name: &str) -> Option<(Vec<u32>, f32)> {
        None
    }
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

/// A ternary linear as the kernels hold it.
#[derive(Clone, Debug)]
pub struct PackedLinear {
    /// Packed rows (see `flow_shaders::kernels::ternary`).
    pub words: Vec<u32>,
    /// The one scale.
    pub scale: f32,
    /// Columns.
    pub cols: usize,
}

/// Tensors of a model whose linears were packed in its files.
#[derive(Clone, Debug, Default)]
pub struct PackedTensors {
    /// All that are no packed linears.
    pub floats: BTreeMap<String, Vec<f32>>,
    /// Packed linears.
    pub linears: BTreeMap<String, PackedLinear>,
}

impl PackedTensors {
    fn tensor(&self, name: &str) -> Cow<'_, [f32]> {
        match self.linears.get(name) {
            Some(l) => Cow::Owned(masters(&unpack(&l.words, l.cols), l.scale)),
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
    fn packed(&self, name: &str) -> Option<(Vec<u32>, f32)> {
        match self {
            Tensors::Held(_) => None,
            Tensors::Packed(all) => all.linears.get(name).map(|l| (l.words.clone(), l.scale)),
            Tensors::Mapped(file) => file.packed(name),
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
