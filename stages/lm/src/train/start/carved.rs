//! A model with what is kept of it: a source of tensors of the smaller shape.

use std::borrow::Cow;

use super::calibration::Calibration;
use super::carve::Carve;
use super::select::{by_parts, elements, largest};
use crate::config::ModelConfig;
use crate::error::{Error, Result, ShapeError};
use crate::format::Checkpoint;
use crate::format::tensors::TensorSource;
use crate::infer::Squares;

/// A layer that is kept.
#[derive(Clone, Debug, PartialEq)]
pub struct KeptLayer {
    /// Its place in the model.
    pub from: usize,
    /// KV heads, each with the query heads that share it; none where all are kept.
    pub kv_heads: Option<Vec<usize>>,
    /// Neurons of the MLP; none where all are kept.
    pub neurons: Option<Vec<usize>>,
    /// The weights of the SubLN before `o` and before `down`, where they are put in.
    pub sub_norm: Option<(f32, f32)>,
}

/// What is kept of a model.
pub struct Carved {
    model: Checkpoint,
    config: ModelConfig,
    layers: Vec<KeptLayer>,
}

impl Carved {
    /// All of a model.
    pub fn whole(model: Checkpoint) -> Self {
        let layers = (0..model.config.layers).map(|from| KeptLayer { from, kv_heads: None, neurons: None, sub_norm: None }).collect();
        Self { config: model.config.clone(), layers, model }
    }

    /// What `carve` keeps of a model. Heads and neurons are those through which most flows over the calibration text, layer by
    /// layer; the weights of SubLN that is put in keep the mean square of what flows in there, measured without it.
    pub fn of(model: Checkpoint, carve: &Carve, calibration: Option<&Calibration<'_>>) -> Result<Self> {
        let (config, whole) = (carve.shape(&model.config)?, &model.config);
        let calibration = || {
            let why = "heads, neurons and SubLN follow from what flows through the model over a text".to_owned();
            calibration.ok_or_else(|| Error::from(ShapeError::Start { why }).help("give a calibration text"))
        };
        let (heads, mlp) = carve.chooses(whole);
        let flows = if heads || mlp { Some(calibration()?.squares(whole, &model.tensors)?) } else { None };
        let entering = |s: &Squares| if whole.sub_norm { s.normed.clone() } else { s.raw.clone() };
        let group = whole.heads / whole.kv_heads * whole.head_dim;
        let layers = carve.kept_layers(whole)?.into_iter().map(|from| {
            let flows = flows.as_ref().map(|f| &f[from]);
            KeptLayer {
                from,
                kv_heads: flows.filter(|_| heads).map(|f| largest(&by_parts(&entering(&f.attention), group), config.kv_heads)),
                neurons: flows.filter(|_| mlp).map(|f| largest(&by_parts(&entering(&f.mlp), 1), config.mlp)),
                sub_norm: None,
            }
        });
        let layers = layers.collect();
        let mut carved = Self { config: ModelConfig { sub_norm: whole.sub_norm, ..config }, layers, model };
        if carve.insert_sub_norm {
            let flows = calibration()?.squares(&carved.config, &carved)?;
            for (layer, f) in carved.layers.iter_mut().zip(&flows) {
                layer.sub_norm = Some((keeping(&f.attention), keeping(&f.mlp)));
            }
            carved.config.sub_norm = true;
        }
        Ok(carved)
    }

    /// The shape of what is kept, with the model's numerics.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// The layers that are kept, in their order.
    pub fn layers(&self) -> &[KeptLayer] {
        &self.layers
    }

    /// The model that it is of.
    pub fn model(&self) -> &ModelConfig {
        &self.model.config
    }

    /// A tensor of a layer with the elements that are kept.
    fn part<'t>(&self, layer: &KeptLayer, part: &str, values: Cow<'t, [f32]>) -> Cow<'t, [f32]> {
        let c = &self.model.config;
        let per = c.heads / c.kv_heads * c.head_dim;
        let of_heads = |width: usize| layer.kv_heads.as_ref().map(|kept| (elements(kept, width), c.kv_heads * width));
        let neurons = || layer.neurons.as_ref().map(|kept| (kept.clone(), c.mlp));
        let (kept, along_rows) = match part {
            "q" | "q_bias" | "q_scale" | "attn_sub_norm" => (of_heads(per), true),
            "k" | "k_bias" | "k_scale" | "v" | "v_bias" | "v_scale" => (of_heads(c.head_dim), true),
            "o" => (of_heads(per), false),
            "gate" | "gate_scale" | "up" | "up_scale" | "mlp_sub_norm" => (neurons(), true),
            "down" => (neurons(), false),
            _ => (None, true),
        };
        let Some((kept, of)) = kept else { return values };
        let picked = if along_rows {
            let width = values.len() / of;
            kept.iter().flat_map(|row| &values[row * width..][..width]).copied().collect()
        } else {
            values.chunks_exact(of).flat_map(|row| kept.iter().map(|column| row[*column])).collect()
        };
        Cow::Owned(picked)
    }
}

/// The weight of a norm that gives the mean square of what it takes back: Σ (g · normed)² = Σ raw².
fn keeping(s: &Squares) -> f32 {
    let sum = |columns: &[f32]| columns.iter().map(|x| f64::from(*x)).sum::<f64>();
    let (raw, normed) = (sum(&s.raw), sum(&s.normed));
    if normed > 0.0 { (raw / normed).sqrt() as f32 } else { 1.0 }
}

impl TensorSource for Carved {
    fn tensor(&self, name: &str) -> Cow<'_, [f32]> {
        let tensors = &self.model.tensors;
        let Some((layer, part)) = name.strip_prefix("layers.").and_then(|rest| rest.split_once('.')) else { return tensors.tensor(name) };
        let layer = &self.layers[layer.parse::<usize>().expect("tensors of a shape have a layer's number in their name")];
        match (part, layer.sub_norm) {
            ("attn_sub_norm", Some((g, _))) => Cow::Owned(vec![g; self.config.heads * self.config.head_dim]),
            ("mlp_sub_norm", Some((_, g))) => Cow::Owned(vec![g; self.config.mlp]),
            _ => self.part(layer, part, tensors.tensor(&format!("layers.{}.{part}", layer.from))),
        }
    }
}
