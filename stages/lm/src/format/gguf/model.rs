//! A model out of a GGUF file, of one of the families in [`crate::format::family`].

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use super::keys;
use super::names::gguf_name;
use super::packed::{self, group_scales, shared_scale};
use super::quant::dequantise;
use super::read::GgufFile;
use super::types::TensorType;
use crate::config::{Activations, Group, ModelConfig, Role, TensorSpec, Weights as Rule};
use crate::error::{FormatError, Result};
use crate::format::family::Family;
use crate::format::tensors::{MappedTensors, PackedMatrix, TensorSource, Tensors, half_pairs, masters_in};
use crate::format::ternary::masters;

/// A header is no longer than this: vocabulary and merges of the largest models take a third of it.
const LONGEST_HEADER: usize = 64 << 20;

/// Shape that the keys of a file declare, whatever tensors it has and however they are held: only its header is read.
pub fn shape(path: &Path) -> Result<ModelConfig> {
    declared(&GgufFile::read_within(path, LONGEST_HEADER)?)
}

fn declared(file: &GgufFile) -> Result<ModelConfig> {
    let config = keys::declared(file)?;
    match config.problem() {
        Some((field, message)) => Err(file.unsupported(format!("{field}: {message}"))),
        None => Ok(config),
    }
}

/// Shape and numerics that the file declares, with the sequence that it was trained for. Every tensor is there, of the
/// right shape and of a type that is read. How ternary matrices are held is known only with their values: here `Float`.
pub fn config(file: &GgufFile) -> Result<ModelConfig> {
    let config = declared(file)?;
    for spec in config.tensors() {
        let name = gguf_name(&spec.name);
        let (info, ..) = file.raw(&name)?;
        if info.shape != spec.shape {
            return Err(FormatError::tensor(file.path(), &name, format!("has shape {:?}, its keys ask for {:?}", info.shape, spec.shape)));
        }
    }
    Ok(config)
}

/// Tensors of a mapped file, found and checked: their values can be made at any time.
struct InFile {
    file: GgufFile,
    places: BTreeMap<String, Place>,
    head_dim: usize,
    /// What shares a scale where ternary matrices are the model's: values are then masters of them.
    masters: Option<Group>,
}

/// Where a tensor lies in the file.
struct Place {
    ty: TensorType,
    bytes: Range<usize>,
    /// Columns.
    cols: usize,
    /// Whether its rows are in llama.cpp's order.
    interleaved: bool,
    /// How it is ternary.
    ternary: Option<Scales>,
}

/// Scales of a ternary tensor of a file.
#[derive(Clone, Copy, PartialEq)]
enum Scales {
    /// One.
    Shared(f32),
    /// One for every so many weights, as the file has them.
    Groups(usize),
}

impl Scales {
    /// Those of a tensor, if it is ternary.
    fn of(ty: TensorType, bytes: &[u8]) -> Option<Self> {
        if let Some(scale) = shared_scale(ty, bytes) {
            return Some(Scales::Shared(scale));
        }
        group_scales(ty, bytes).map(|_| Scales::Groups(ty.block()))
    }
}

impl InFile {
    /// Undoes llama.cpp's order of rows of `width` items.
    fn in_order<T: Copy>(&self, place: &Place, width: usize, items: Vec<T>) -> Vec<T> {
        if place.interleaved { rotate_half(self.head_dim, width, &items) } else { items }
    }
}

impl TensorSource for InFile {
    fn tensor(&self, name: &str) -> Cow<'_, [f32]> {
        let place = &self.places[name];
        let values = dequantise(place.ty, self.file.bytes(place.bytes.clone()));
        let values = match (place.ternary, self.masters) {
            (Some(_), Some(group)) => masters_in(values, place.cols, group),
            _ => values,
        };
        Cow::Owned(self.in_order(place, place.cols, values))
    }

    /// Straight from its blocks.
    fn packed(&self, name: &str) -> Option<PackedMatrix> {
        let place = &self.places[name];
        let (scales, cols, bytes) = (place.ternary?, place.cols, self.file.bytes(place.bytes.clone()));
        let codes = packed::rows(place.ty, bytes, cols);
        let matrix = match scales {
            Scales::Shared(scale) => PackedMatrix::of_tensor(codes, scale, cols),
            Scales::Groups(_) => {
                let halves = group_scales(place.ty, bytes)?;
                let (scale, groups) = packed::scale_words(&halves, cols);
                PackedMatrix { codes, scale, groups, cols }
            }
        };
        self.file.forget(place.bytes.clone());
        if !place.interleaved {
            return Some(matrix);
        }
        let half = self.head_dim / 2;
        let order: Vec<usize> = (0..self.head_dim).map(|r| 2 * (r % half) + r / half).collect();
        Some(matrix.with_rows(self.head_dim, &order))
    }

    fn packed_groups(&self, name: &str) -> Option<usize> {
        let place = self.places.get(name)?;
        Some(match place.ternary? {
            Scales::Shared(_) => 1,
            Scales::Groups(_) => Group::Of(64).stored(place.cols),
        })
    }

    fn is_half(&self, name: &str) -> bool {
        self.places.get(name).is_some_and(|p| p.ty == TensorType::F16)
    }

    fn halves(&self, name: &str) -> Vec<u32> {
        let place = &self.places[name];
        if place.ty != TensorType::F16 || place.interleaved {
            return half_pairs(&self.tensor(name));
        }
        // Straight from the file.
        let pairs = self.file.bytes(place.bytes.clone()).chunks_exact(4);
        let all = pairs.map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect();
        self.file.forget(place.bytes.clone());
        all
    }
}

impl std::fmt::Debug for InFile {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} tensors of {}", self.places.len(), self.file.path().display())
    }
}

/// Opens a model.
pub fn load(file: GgufFile) -> Result<(ModelConfig, Tensors)> {
    let mut config = config(&file)?;
    let interleaved = Family::of_architecture(file.text("general.architecture")?.unwrap_or_default()).is_some_and(|f| f.interleaved);
    let mut places = BTreeMap::new();
    for spec in config.tensors() {
        let (_, ty, bytes) = file.place(&gguf_name(&spec.name))?;
        let of_heads = ["q", "k", "q_bias", "k_bias"].iter().any(|n| spec.name.rsplit('.').next() == Some(n));
        let matrix = matches!(spec.role, Role::Linear | Role::Embedding | Role::Head);
        let ternary = if matrix { Scales::of(ty, file.bytes(bytes.clone())) } else { None };
        if ternary.is_some() {
            file.forget(bytes.clone());
        }
        // A vector's rows are its elements.
        let cols = if spec.shape.len() == 1 { 1 } else { spec.shape[1] };
        places.insert(spec.name, Place { ty, bytes, cols, interleaved: interleaved && of_heads, ternary });
    }
    let head_dim = config.head_dim;
    let masters = ternary_as_held(&mut config, &places);
    if config.sub_norm && masters.is_none() {
        let read = |spec: &TensorSpec| file.floats(&gguf_name(&spec.name)).map(|values| (spec.name.clone(), values));
        let mut tensors = config.tensors().iter().map(read).collect::<Result<BTreeMap<_, _>, _>>()?;
        if ternarise(&config, &mut tensors) {
            config.weights = Rule::Absmean;
        }
        return Ok((config, tensors.into()));
    }
    Ok((config, Tensors::Mapped(Arc::new(InFile { file, places, head_dim, masters }) as MappedTensors)))
}

/// Where all linears are ternary in one way, says so in the shape, and gives what shares a scale. Where only some are, or in
/// several ways, they are held packed as they are and the shape calls them floats.
fn ternary_as_held(config: &mut ModelConfig, places: &BTreeMap<String, Place>) -> Option<Group> {
    let group = |scales: Scales| match scales {
        Scales::Shared(_) => Group::Tensor,
        Scales::Groups(n) => Group::Of(n),
    };
    let of_role = |role: Role| config.tensors().into_iter().filter(move |t| t.role == role);
    let ternary = |name: &str| places[name].ternary.map(group);
    let mut linears = of_role(Role::Linear).map(|t| ternary(&t.name));
    let first = linears.next()??;
    if !linears.all(|g| g == Some(first)) {
        return None;
    }
    let (embedding, head) = (ternary("embed") == Some(first), !config.tied && ternary("head") == Some(first));
    config.weights = Rule::Absmean;
    config.group = first;
    // What is trained with SubLN takes codes; a base model's own architecture floats.
    config.activations = if config.sub_norm { Activations::Quantised } else { Activations::Float };
    (config.ternary_embedding, config.ternary_head) = (embedding, head);
    Some(first)
}

/// Undoes llama.cpp's order of the rows of q and k: within a head, rows 2i and 2i + 1 rotate together there, rows i and
/// i + head_dim/2 here.
fn rotate_half<T: Copy>(head: usize, cols: usize, values: &[T]) -> Vec<T> {
    let mut out = Vec::with_capacity(values.len());
    for rows in values.chunks_exact(head * cols) {
        for part in 0..2 {
            (0..head / 2).for_each(|i| out.extend_from_slice(&rows[(2 * i + part) * cols..][..cols]));
        }
    }
    out
}

/// Where every linear holds nothing but 0 and ± one scale, makes masters of them whose absmean ternarisation gives the
/// codes and the scale back; elsewhere changes nothing.
fn ternarise(config: &ModelConfig, tensors: &mut BTreeMap<String, Vec<f32>>) -> bool {
    let linears: Vec<String> = config.tensors().into_iter().filter(|t| t.role == Role::Linear).map(|t| t.name).collect();
    let scale_of = |values: &[f32]| {
        let scale = values.iter().fold(0f32, |m, v| m.max(v.abs()));
        (scale > 0.0 && values.iter().all(|v| *v == 0.0 || v.abs() == scale)).then_some(scale)
    };
    let Some(scales) = linears.iter().map(|n| scale_of(&tensors[n])).collect::<Option<Vec<f32>>>() else { return false };
    for (name, scale) in linears.into_iter().zip(scales) {
        if let Some(values) = tensors.get_mut(&name) {
            *values = masters_of(values, scale);
        }
    }
    true
}

fn masters_of(values: &[f32], scale: f32) -> Vec<f32> {
    let codes: Vec<i8> = values.iter().map(|v| (v / scale) as i8).collect();
    masters(&codes, scale)
}
