//! A model as the start of a training, tensor by tensor.

use serde::Serialize;

use super::carved::Carved;
use super::initial::initial_values;
use super::pieces::Pieces;
use crate::config::{ModelConfig, Role, TensorSpec, Weights};
use crate::error::{Error, Result, ShapeError};
use crate::format::Checkpoint;
use crate::format::tensors::TensorSource as _;
use crate::tokenizer::{TokenId, Tokenizer};

/// A model whose parameters a training starts from.
pub struct Start {
    model: Carved,
    /// Of each token its tokens there, where the vocabularies differ.
    pieces: Option<Pieces>,
    drawn: Vec<Drawn>,
    left_out: Vec<String>,
}

/// A tensor that a start does not take from its model.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Drawn {
    /// Its name.
    pub tensor: String,
    /// Its shape in the model, of what is kept there; none where the model has no such tensor.
    pub there: Option<Vec<usize>>,
    /// Its shape in what is trained.
    pub here: Vec<usize>,
}

impl Start {
    /// A model of the same blocks and its tokenizer, for one of shape `config` over the vocabulary of `tokenizer`.
    pub fn of(model: Checkpoint, theirs: &Tokenizer, config: &ModelConfig, tokenizer: &Tokenizer) -> Result<Self> {
        same_blocks(&model.config, config)?;
        same_rules(&model.config, config)?;
        Ok(Self::with(Carved::whole(model), theirs, config, tokenizer))
    }

    /// What is kept of a model, for one of shape `config`: tensors of the same shape are taken over, others drawn. At least one
    /// linear must fit, and what both compute with them must be the same.
    pub fn carved(model: Carved, theirs: &Tokenizer, config: &ModelConfig, tokenizer: &Tokenizer) -> Result<Self> {
        let there = model.config().tensors();
        let of_theirs = |name: &str| there.iter().find(|t| t.name == name);
        // Rows of embedding and head are tokens, which are found one by one.
        let fits = |ours: &TensorSpec, theirs: &TensorSpec| match ours.role {
            Role::Embedding | Role::Head => ours.shape[1..] == theirs.shape[1..],
            _ => ours.shape == theirs.shape,
        };
        let (taken, drawn): (Vec<_>, Vec<_>) =
            config.tensors().into_iter().partition(|t| of_theirs(&t.name).is_some_and(|theirs| fits(t, theirs)));
        if !taken.iter().any(|t| t.role == Role::Linear) {
            same_blocks(model.config(), config)?;
        }
        same_rules(model.config(), config)?;
        let drawn: Vec<Drawn> = drawn
            .into_iter()
            .map(|t| Drawn { there: of_theirs(&t.name).map(|theirs| theirs.shape.clone()), tensor: t.name, here: t.shape })
            .collect();
        let named = |name: &str| taken.iter().any(|t| t.name == name) || drawn.iter().any(|d| d.tensor == name);
        let left_out = there.iter().map(|t| t.name.clone()).filter(|name| !named(name)).collect();
        Ok(Self { drawn, left_out, ..Self::with(model, theirs, config, tokenizer) })
    }

    fn with(model: Carved, theirs: &Tokenizer, config: &ModelConfig, tokenizer: &Tokenizer) -> Self {
        let same = theirs.digest() == tokenizer.digest();
        let pieces = (!same || model.config().vocab != config.vocab).then(|| Pieces::of(theirs, tokenizer, same, config.vocab));
        Self { model, pieces, drawn: Vec::new(), left_out: Vec::new() }
    }

    /// What is kept of the model.
    pub fn model(&self) -> &Carved {
        &self.model
    }

    /// Tensors that are drawn, in the order of the shape; none of a model of the same blocks.
    pub fn drawn(&self) -> &[Drawn] {
        &self.drawn
    }

    /// Tensors of the model that have no place.
    pub fn left_out(&self) -> &[String] {
        &self.left_out
    }

    /// Whether both have the same vocabulary.
    pub fn same_vocabulary(&self) -> bool {
        self.pieces.is_none()
    }

    /// Parameters of the model.
    pub fn parameters(&self) -> usize {
        self.model.model().parameters()
    }

    /// Values of a tensor. A token that is not of their vocabulary begins as the mean of its pieces there; what cannot be
    /// taken over is drawn.
    pub fn values(&self, config: &ModelConfig, spec: &TensorSpec, seed: u64) -> Vec<f32> {
        if self.drawn.iter().any(|d| d.tensor == spec.name) {
            return initial_values(config, spec, seed);
        }
        match (spec.role, &self.pieces) {
            (Role::Embedding | Role::Head, Some(pieces)) => {
                let mut values = initial_values(config, spec, seed);
                let table = self.model.tensor(&spec.name);
                for (row, pieces) in values.chunks_exact_mut(config.dim).zip(&pieces.0).filter(|(_, p)| !p.is_empty()) {
                    let of = |piece: &TokenId| &table[piece.index() * config.dim..][..config.dim];
                    for (i, value) in row.iter_mut().enumerate() {
                        *value = pieces.iter().map(|p| of(p)[i]).sum::<f32>() / pieces.len() as f32;
                    }
                }
                values
            }
            _ => self.model.tensor(&spec.name).into_owned(),
        }
    }
}

/// A start that cannot be.
fn refuse(why: String, help: &'static str) -> Result<()> {
    Err(Error::from(ShapeError::Start { why }).help(help))
}

/// Whether a model of shape `there` has the tensors of the blocks of `here`, and no other ones.
fn same_blocks(there: &ModelConfig, here: &ModelConfig) -> Result<()> {
    let alike = "give student and model the same `layers` and `shape` (SubLN, biases and norms of heads too)";
    let blocks =
        |c: &ModelConfig| c.tensors().into_iter().filter(|t| matches!(t.role, Role::Linear | Role::Norm | Role::Bias)).collect::<Vec<_>>();
    let (theirs, ours) = (blocks(there), blocks(here));
    for spec in &ours {
        let found = theirs.iter().find(|t| t.name == spec.name);
        if found.is_none_or(|t| t.shape != spec.shape) {
            let has = found.map_or("is not there".to_owned(), |t| format!("has the shape {:?}", t.shape));
            return refuse(format!("tensor `{}` {has}, {:?} is needed", spec.name, spec.shape), alike);
        }
    }
    if let Some(more) = theirs.iter().find(|t| ours.iter().all(|o| o.name != t.name)) {
        return refuse(format!("the model has a tensor `{}`, the student has not", more.name), alike);
    }
    Ok(())
}

/// Whether both compute the same with the tensors that they share.
fn same_rules(there: &ModelConfig, here: &ModelConfig) -> Result<()> {
    if (there.head_dim, there.activation, there.rope_theta) != (here.head_dim, here.activation, here.rope_theta) {
        let help = "give student and model the same `shape` and `activation`";
        return refuse("the model has other heads, another activation or another RoPE base".into(), help);
    }
    let both = there.layers.min(here.layers);
    let without_rope = |c: &ModelConfig| c.no_rope.iter().copied().filter(|l| *l < both).collect::<Vec<_>>();
    if there.rope_scaling != here.rope_scaling || without_rope(there) != without_rope(here) {
        let help = "give the student the model's `rope_scaling` and `no_rope` in `shape`";
        return refuse("the model's RoPE is scaled otherwise, or left out of other layers".into(), help);
    }
    if there.tied != here.tied {
        return refuse("only one of model and student ties its head to the embedding".into(), "take a model with a tied head");
    }
    if (there.weights, here.weights) == (Weights::Absmean, Weights::Absmean) && there.group != here.group {
        return refuse("the model's ternary weights share their scales in other groups".into(), "give the student the model's `group`");
    }
    // Masters of one rule are no weights of the other, nor those of a ternary model full-precision ones.
    if there.weights != here.weights && (there.weights, here.weights) != (Weights::Float, Weights::Absmean) {
        return refuse(
            format!("the model's weights are `{}`, the student's `{}`", rule(there.weights), rule(here.weights)),
            "start from a full-precision model with `weights: absmean`, or from one of the same `weights`",
        );
    }
    Ok(())
}

fn rule(weights: Weights) -> &'static str {
    match weights {
        Weights::Float => "float",
        Weights::Absmean => "absmean",
        Weights::Threshold => "threshold",
    }
}
