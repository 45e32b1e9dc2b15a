//! Which part of a model is kept, and the shape that is left.

use crate::config::ModelConfig;
use crate::error::{Error, Result, ShapeError};

/// Which layers of a model are kept.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Layers {
    /// All.
    #[default]
    All,
    /// The first, and each so many after it.
    Every(usize),
    /// These, in this order.
    These(Vec<usize>),
}

/// What is kept of a model, and what is added to it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Carve {
    /// Layers.
    pub layers: Layers,
    /// Query heads; all where none is said.
    pub heads: Option<usize>,
    /// Neurons of the MLP; all where none is said.
    pub mlp: Option<usize>,
    /// Put SubLN in where the model has none.
    pub insert_sub_norm: bool,
}

impl Carve {
    /// Layers that are kept of a model, in their order.
    pub fn kept_layers(&self, model: &ModelConfig) -> Result<Vec<usize>> {
        let kept: Vec<usize> = match &self.layers {
            Layers::All => (0..model.layers).collect(),
            Layers::Every(n) => (0..model.layers).step_by((*n).max(1)).collect(),
            Layers::These(these) => these.clone(),
        };
        match kept.iter().find(|l| **l >= model.layers) {
            Some(beyond) => refuse(
                format!("there is no layer {beyond}: the model has {}, 0 to {}", model.layers, model.layers - 1),
                "name layers that the model has",
            ),
            None if kept.is_empty() => refuse("no layer is kept".into(), "name at least one"),
            None => Ok(kept),
        }
    }

    /// The shape of what is kept, with the model's own numerics.
    pub fn shape(&self, model: &ModelConfig) -> Result<ModelConfig> {
        let kept = self.kept_layers(model)?;
        let (heads, mlp) = (self.heads.unwrap_or(model.heads), self.mlp.unwrap_or(model.mlp));
        let group = model.heads / model.kv_heads;
        if heads == 0 || heads > model.heads || !heads.is_multiple_of(group) {
            let why = format!("{heads} of {} query heads: those that share a KV head, {group}, stay together", model.heads);
            return refuse(why, "keep a multiple of the query heads that share a KV head, no more than the model has");
        }
        if mlp == 0 || mlp > model.mlp {
            return refuse(format!("{mlp} of {} neurons of the MLP", model.mlp), "keep no more than the model has");
        }
        if self.insert_sub_norm && model.sub_norm {
            return refuse("the model has SubLN: there is nothing to insert".into(), "leave `sub_norm` out");
        }
        let config = ModelConfig {
            layers: kept.len(),
            heads,
            kv_heads: heads / group,
            mlp,
            sub_norm: model.sub_norm || self.insert_sub_norm,
            no_rope: (0..kept.len()).filter(|l| model.no_rope.contains(&kept[*l])).collect(),
            ..model.clone()
        };
        match config.problem() {
            Some((field, why)) => {
                refuse(format!("what would be kept cannot be: {field}: {why}"), "keep another number of heads or neurons")
            }
            None => Ok(config),
        }
    }

    /// Whether heads of a model must be chosen, and whether neurons.
    pub(super) fn chooses(&self, model: &ModelConfig) -> (bool, bool) {
        (self.heads.is_some_and(|n| n != model.heads), self.mlp.is_some_and(|n| n != model.mlp))
    }
}

fn refuse<T>(why: String, help: &'static str) -> Result<T> {
    Err(Error::from(ShapeError::Start { why }).help(help))
}
