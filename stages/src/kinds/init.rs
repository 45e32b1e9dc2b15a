//! `init` of `train.bitnet`: which model a student begins as, and what is kept of it.

use flow_engine::plugin::{ParamError, SourcePath, StageError};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use flow_lm::config::{ModelConfig, Preset, Weights};
use flow_lm::train::{Carve, Layers};

use super::shape::Shape;

/// A named shape, or that of the model that a student begins as.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum StudentPreset {
    /// 256 × 4 layers, MLP 768, vocab 4,096, sequence 128.
    #[serde(rename = "poc")]
    Poc,
    /// The full-precision teacher of the PoC: 256 × 6 layers, vocab 8,192.
    #[serde(rename = "poc-teacher")]
    PocTeacher,
    /// 768 × 12 layers, MLP 3,072, vocab 32,000, sequence 256.
    #[serde(rename = "mini")]
    Mini,
    /// BitNet b1.58 2B4T.
    #[serde(rename = "2b4t")]
    B2,
    /// 4,096 × 32 layers, MLP 16,384 (8.6 B parameters).
    #[serde(rename = "7b")]
    B7,
    /// What `init` keeps of its model.
    #[serde(rename = "init")]
    Init,
}

impl StudentPreset {
    /// The named shape; none where it is the model's.
    pub fn named(self) -> Option<Preset> {
        Some(match self {
            StudentPreset::Poc => Preset::Poc,
            StudentPreset::PocTeacher => Preset::PocTeacher,
            StudentPreset::Mini => Preset::Mini,
            StudentPreset::B2 => Preset::B2,
            StudentPreset::B7 => Preset::B7,
            StudentPreset::Init => return None,
        })
    }

    /// Name in pipelines.
    pub fn name(self) -> &'static str {
        self.named().map_or("init", Preset::name)
    }

    /// The shape as far as a plan knows it: in the place of the model's one that every parameter of a student fits, with all
    /// options that a family may have.
    pub(super) fn planned(self, ternary_head: bool) -> ModelConfig {
        let any = || ModelConfig { tied: !ternary_head, qkv_bias: true, head_norm: true, ..Preset::Poc.config() };
        self.named().map_or_else(any, Preset::config)
    }
}

/// Where the model is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Source {
    /// On the input `teacher`.
    Teacher,
    /// On the input `init`.
    Init,
    /// At `path`.
    File,
}

/// What is done about SubLN.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum SubNorm {
    /// Put in before `o` and `down`, with weights that keep the scale of what flows in (BitDistill, arXiv 2510.13998).
    Insert,
}

/// How many heads and neurons are kept of each layer: those through which most flows over the calibration text.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Width {
    /// Query heads; those that share a KV head stay together.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub heads: Option<usize>,
    /// Neurons of the MLP.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mlp: Option<usize>,
}

/// Which model a student begins as, and what is kept of it. Tensors of the same shape are taken over; the others are drawn,
/// and named in the log.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Init {
    /// `teacher` or `init`: the model on that input; `file`: the one at `path`.
    pub from: Source,
    /// A `.gguf` file, or a directory with `config.json`, safetensors and `tokenizer.json`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<SourcePath>,
    /// Layers that are kept, from 0 on, in this order.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub layers: Option<Vec<usize>>,
    /// Keep the first layer and each so many after it: 2 keeps 0, 2, 4, …
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub every: Option<usize>,
    /// Heads and neurons that are kept of each layer.
    #[serde(default, skip_serializing_if = "crate::is_default")]
    pub width: Width,
    /// `insert`: put SubLN into a model that has none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sub_norm: Option<SubNorm>,
    /// Tokens of the text in `text` over which it is measured what flows, for `width` and `sub_norm`.
    #[serde(default = "calibration_tokens")]
    pub calibration_tokens: usize,
}

fn calibration_tokens() -> usize {
    4096
}

fn wrong(field: &str, message: impl Into<String>, help: &str) -> ParamError {
    ParamError { path: field.into(), message: message.into(), help: Some(help.into()).filter(|h: &String| !h.is_empty()) }
}

impl Init {
    /// What is kept.
    pub fn carve(&self) -> Carve {
        let layers = match (&self.layers, self.every) {
            (Some(these), _) => Layers::These(these.clone()),
            (None, Some(n)) => Layers::Every(n),
            (None, None) => Layers::All,
        };
        let Width { heads, mlp } = self.width;
        Carve { layers, heads, mlp, insert_sub_norm: self.sub_norm.is_some() }
    }

    /// Whether a text must be read for it.
    pub fn calibrates(&self) -> bool {
        self.width != Width::default() || self.sub_norm.is_some()
    }

    fn check(&self) -> Result<(), ParamError> {
        match (self.from, &self.path) {
            (Source::File, None) => return Err(wrong("init.path", "`from: file` and no path", "say where the model is: `path: …`")),
            (Source::Teacher | Source::Init, Some(_)) => {
                return Err(wrong("init.path", "the model is that of an input", "say `from: file`, or leave `path` out"));
            }
            _ => {}
        }
        if self.layers.is_some() && self.every.is_some() {
            return Err(wrong("init.every", "`layers` says which ones are kept", "leave one of the two out"));
        }
        if self.layers.as_ref().is_some_and(Vec::is_empty) {
            return Err(wrong("init.layers", "no layer is kept", "name at least one"));
        }
        let counts = [
            ("init.every", self.every == Some(0)),
            ("init.width.heads", self.width.heads == Some(0)),
            ("init.width.mlp", self.width.mlp == Some(0)),
            ("init.calibration_tokens", self.calibration_tokens == 0),
        ];
        match counts.iter().find(|(_, zero)| *zero) {
            Some((field, _)) => Err(wrong(field, "must be above 0", "")),
            None => Ok(()),
        }
    }

    fn wiring(&self, wired: &[&str]) -> Result<(), StageError> {
        let (port, other) = match self.from {
            Source::Teacher => (Some("teacher"), wired.contains(&"init")),
            Source::Init => (Some("init"), false),
            Source::File => (None, wired.contains(&"init")),
        };
        if let Some(port) = port.filter(|p| !wired.contains(p)) {
            return Err(StageError::new(format!("`init: {{ from: {port} }}` and nothing is wired to `{port}`"))
                .help(format!("wire a model to `{port}`, or say `from: file` with a `path`")));
        }
        if other {
            return Err(
                StageError::new("a model is wired to `init`, and `init` takes another one").help("say `from: init`, or remove the wire")
            );
        }
        if self.calibrates() && !wired.contains(&"text") {
            return Err(StageError::new("`width` and `sub_norm` of `init` are measured over a text, and none is wired to `text`")
                .help("wire `text` to `data.text`: beside `traces` it is read for that alone"));
        }
        Ok(())
    }
}

/// What is wrong with `init` and with what is said beside it, for a student of this shape, `layers` and `activation`.
pub(super) fn check(
    (preset, shape): (StudentPreset, &Shape),
    init: Option<&Init>,
    said: [(&'static str, bool); 2],
) -> Result<(), ParamError> {
    init.map_or(Ok(()), Init::check)?;
    if preset != StudentPreset::Init {
        return Ok(());
    }
    if init.is_none() {
        return Err(wrong(
            "preset",
            "`init` is the shape of the model that `init` takes, and there is no `init`",
            "say `init: { from: … }`",
        ));
    }
    let of_shape = serde_json::to_value(shape).unwrap_or_default();
    // What goes to 4 bits is the training's, everything else the model's.
    let in_shape = of_shape.as_object().into_iter().flat_map(|o| o.keys()).find(|name| *name != "a4");
    let named = said.iter().find(|(_, said)| *said).map(|(name, _)| (*name).to_owned());
    match named.or_else(|| in_shape.map(|name| format!("shape.{name}"))) {
        Some(path) => Err(wrong(
            &path,
            "with `preset: init` the shape is that of the model",
            "choose `layers` or `every`, `width` and `sub_norm` in `init`, or take a named preset",
        )),
        None => Ok(()),
    }
}

/// Whether what is wired goes with `init`.
pub(super) fn wiring(init: Option<&Init>, wired: &[&str]) -> Result<(), StageError> {
    init.map_or(Ok(()), |init| init.wiring(wired))?;
    if init.is_none() && ["tokenizer", "init", "teacher"].iter().all(|port| !wired.contains(port)) {
        return Err(StageError::new(
            "the student has no tokenizer: nothing is wired to `tokenizer`, and there is no model to take one from",
        )
        .help("wire `tokenizer` to `tokenizer.bpe`, or a model to `init` or `teacher`"));
    }
    Ok(())
}

/// Further parts of the key: kernels that may run whatever the model's options are, and those that a calibration runs.
pub(super) fn fingerprints(preset: StudentPreset, init: Option<&Init>, planned: &ModelConfig) -> Vec<(String, String)> {
    let mut all = Vec::new();
    if preset == StudentPreset::Init {
        all.extend(crate::fingerprints::training(Weights::Absmean, &ModelConfig { sub_norm: !planned.sub_norm, ..planned.clone() }));
    }
    if init.is_some_and(Init::calibrates) {
        all.extend(crate::fingerprints::inference());
    }
    all
}
