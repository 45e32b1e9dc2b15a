//! What a training starts from: drawn values, or the parameters of another model.

use std::path::Path;

use flow_engine::plugin::StageError;

use super::run::initial_values;
use crate::lm;
use crate::model::checkpoint::Checkpoint;
use crate::model::config::{ModelConfig, Role, TensorSpec};
use crate::model::tensors::Source as _;
use crate::tokenizer::Tokenizer;

/// A model of the same blocks, whose parameters a training starts from.
pub struct Start {
    model: Checkpoint,
    /// Of each token its tokens there, where the vocabularies differ.
    pieces: Option<Vec<Vec<u32>>>,
}

impl Start {
    /// The model in a directory, for one of shape `config` over the vocabulary of `tokenizer`.
    pub fn read(dir: &Path, config: &ModelConfig, tokenizer: &Tokenizer) -> Result<Self, StageError> {
        let (model, theirs) = lm::load(dir)?;
        let there: Vec<TensorSpec> = model.config.tensors();
        for spec in config.tensors().iter().filter(|t| matches!(t.role, Role::Linear | Role::Norm)) {
            let found = there.iter().find(|t| t.name == spec.name);
            if found.is_none_or(|t| t.shape != spec.shape) {
                let has = found.map_or("is not there".to_owned(), |t| format!("has the shape {:?}", t.shape));
                let message = format!("`init`: tensor `{}` {has}, {:?} is needed", spec.name, spec.shape);
                return Err(StageError::new(message).help("give student and model the same `layers` and `shape` (SubLN too)"));
            }
        }
        if (model.config.head_dim, model.config.activation, model.config.rope_theta)
            != (config.head_dim, config.activation, config.rope_theta)
        {
            return Err(StageError::new("`init`: the model has other heads, another activation or another RoPE base")
                .help("give student and model the same `shape` and `activation`"));
        }
        let same = theirs.digest() == tokenizer.digest() && model.config.tied == config.tied && model.config.vocab == config.vocab;
        let pieces = (!same).then(|| (0..config.vocab as u32).map(|id| pieces(&theirs, tokenizer, id)).collect());
        Ok(Self { model, pieces })
    }

    /// Values of a tensor. A token that is not of their vocabulary begins as the mean of its pieces there; what cannot be
    /// taken over is drawn.
    pub fn values(&self, config: &ModelConfig, spec: &TensorSpec, seed: u64) -> Vec<f32> {
        match (spec.role, &self.pieces) {
            (Role::Scale, _) => initial_values(config, spec, seed),
            (Role::Embedding | Role::Head, Some(pieces)) => {
                let mut values = initial_values(config, spec, seed);
                let table = self.model.tensors.tensor(if self.model.config.tied { "embed" } else { &spec.name });
                for (row, pieces) in values.chunks_exact_mut(config.dim).zip(pieces).filter(|(_, p)| !p.is_empty()) {
                    let of = |piece: &u32| &table[*piece as usize * config.dim..][..config.dim];
                    for (i, value) in row.iter_mut().enumerate() {
                        *value = pieces.iter().map(|p| of(p)[i]).sum::<f32>() / pieces.len() as f32;
                    }
                }
                values
            }
            _ => self.model.tensors.tensor(&spec.name).into_owned(),
        }
    }
}

/// A token in another vocabulary; nothing for a special one that it has not.
fn pieces(theirs: &Tokenizer, ours: &Tokenizer, id: u32) -> Vec<u32> {
    if id == ours.bos() {
        return vec![theirs.bos()];
    }
    if id == ours.eos() {
        return vec![theirs.eos()];
    }
    if ours.is_special(id) {
        return ours.name_of(id).and_then(|name| theirs.id_of(&name)).into_iter().collect();
    }
    theirs.encode_bytes(ours.token_bytes(id))
}
