//! Where a model's float32 tensors come from: memory, or a mapped file out of which each is made when it is asked for, so
//! that a model which runs is in memory once.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::Arc;

use crate::gguf::model::Weights as GgufWeights;

/// Gives float32 tensors by the names of [`super::config::ModelConfig::tensors`].
pub trait Source {
    /// Values of a tensor of the model.
    fn tensor(&self, name: &str) -> Cow<'_, [f32]>;
}

impl Source for BTreeMap<String, Vec<f32>> {
    fn tensor(&self, name: &str) -> Cow<'_, [f32]> {
        Cow::Borrowed(&self[name])
    }
}

/// Tensors of a model that was read.
#[derive(Clone, Debug)]
pub enum Tensors {
    /// In memory.
    Held(BTreeMap<String, Vec<f32>>),
    /// In a mapped GGUF file.
    Mapped(Arc<GgufWeights>),
}

impl Source for Tensors {
    fn tensor(&self, name: &str) -> Cow<'_, [f32]> {
        match self {
            Tensors::Held(all) => all.tensor(name),
            Tensors::Mapped(file) => Cow::Owned(file.values(name)),
        }
    }
}

impl From<BTreeMap<String, Vec<f32>>> for Tensors {
    fn from(all: BTreeMap<String, Vec<f32>>) -> Self {
        Tensors::Held(all)
    }
}
