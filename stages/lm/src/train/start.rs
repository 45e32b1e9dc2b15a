//! What a training starts from: drawn values, or the parameters of another model.

use std::collections::HashMap;

use crate::config::{ModelConfig, Role, TensorSpec, Weights};
use crate::error::{Error, Result, ShapeError};
use crate::format::Checkpoint;
use crate::format::tensors::TensorSource as _;
use crate::rng::Rng;
use crate::tokenizer::{TokenId, Tokenizer};

/// Initial weights: linears normal with variance 1/in, a hundredth of it where they write to the residual stream (so that
/// the embedding is heard from the first step), embeddings and head normal with deviation 0.02, norms 1.
pub fn initial_values(config: &ModelConfig, t: &TensorSpec, seed: u64) -> Vec<f32> {
    let mut rng = Rng::new(seed, &format!("init {}", t.name));
    match t.role {
        Role::Norm => vec![1.0; t.len()],
        Role::Scale => vec![1.0 / (config.dim as f32).sqrt(); t.len()],
        Role::Bias => vec![0.0; t.len()],
        Role::Embedding | Role::Head => (0..t.len()).map(|_| 0.02 * rng.normal()).collect(),
        Role::Linear => {
            let writes_stream = t.name.ends_with(".o") || t.name.ends_with(".down");
            let deviation = if writes_stream { 0.1 } else { 1.0 } / (t.shape[1] as f32).sqrt();
            (0..t.len()).map(|_| deviation * rng.normal()).collect()
        }
    }
}

/// A model of the same blocks, whose parameters a training starts from.
pub struct Start {
    model: Checkpoint,
    /// Of each token its tokens there, where the vocabularies differ.
    pieces: Option<Pieces>,
}

impl Start {
    /// A model and its tokenizer, for one of shape `config` over the vocabulary of `tokenizer`.
    pub fn of(model: Checkpoint, theirs: &Tokenizer, config: &ModelConfig, tokenizer: &Tokenizer) -> Result<Self> {
        fits(&model.config, config)?;
        let same = theirs.digest() == tokenizer.digest();
        let pieces = (!same || model.config.vocab != config.vocab).then(|| Pieces::of(theirs, tokenizer, same, config.vocab));
        Ok(Self { model, pieces })
    }

    /// Whether both have the same vocabulary.
    pub fn same_vocabulary(&self) -> bool {
        self.pieces.is_none()
    }

    /// Parameters of the model.
    pub fn parameters(&self) -> usize {
        self.model.config.parameters()
    }

    /// Values of a tensor. A token that is not of their vocabulary begins as the mean of its pieces there; what cannot be
    /// taken over is drawn.
    pub fn values(&self, config: &ModelConfig, spec: &TensorSpec, seed: u64) -> Vec<f32> {
        match (spec.role, &self.pieces) {
            (Role::Embedding | Role::Head, Some(pieces)) => {
                let mut values = initial_values(config, spec, seed);
                let table = self.model.tensors.tensor(&spec.name);
                for (row, pieces) in values.chunks_exact_mut(config.dim).zip(&pieces.0).filter(|(_, p)| !p.is_empty()) {
                    let of = |piece: &TokenId| &table[piece.index() * config.dim..][..config.dim];
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

/// Whether a model of shape `there` can be taken over into `here`, tensor by tensor.
fn fits(there: &ModelConfig, here: &ModelConfig) -> Result<()> {
    let refuse = |why: String, help: &'static str| Err(Error::from(ShapeError::Start { why }).help(help));
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
    if (there.head_dim, there.activation, there.rope_theta) != (here.head_dim, here.activation, here.rope_theta) {
        let help = "give student and model the same `shape` and `activation`";
        return refuse("the model has other heads, another activation or another RoPE base".into(), help);
    }
    if (&there.rope_scaling, &there.no_rope) != (&here.rope_scaling, &here.no_rope) {
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

/// Of each token its tokens in another vocabulary; nothing for a special one that has no counterpart.
struct Pieces(Vec<Vec<TokenId>>);

impl Pieces {
    fn of(theirs: &Tokenizer, ours: &Tokenizer, same: bool, vocab: usize) -> Self {
        let ordinary = (0..theirs.vocab_size() as u32).map(TokenId).filter(|id| !theirs.is_special(*id));
        let whole: HashMap<&[u8], TokenId> = ordinary.map(|id| (theirs.token_bytes(id), id)).collect();
        let of = |id: TokenId| {
            if same {
                return if id.index() < theirs.vocab_size() { vec![id] } else { Vec::new() };
            }
            if id == ours.bos() {
                return vec![theirs.bos()];
            }
            if id == ours.eos() {
                return vec![theirs.eos()];
            }
            if ours.is_special(id) {
                return ours.name_of(id).and_then(|name| theirs.id_of(&name)).into_iter().collect();
            }
            // A token of the same bytes before what a tokenizer would make of them, which may prepend a space.
            let bytes = ours.token_bytes(id);
            whole.get(bytes).map_or_else(|| theirs.encode_bytes(bytes), |id| vec![*id])
        };
        Self((0..vocab as u32).map(TokenId).map(of).collect())
    }
}
