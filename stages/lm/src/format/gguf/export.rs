//! A model as a file that stock llama.cpp loads: its family's architecture, matrices as they are asked for.

use std::path::Path;

use super::encode;
use super::export_keys;
pub use super::export_keys::About;
use super::names::gguf_name;
use super::pack::{BLOCK, Q2_0_GROUP};
pub use super::storage::Storage;
use super::tokenizer_keys;
use super::types::TensorType;
use super::write::{Entry, GgufWriter};
use crate::config::{Group, Role, TensorSpec};
use crate::error::{Error, Result, ShapeError};
use crate::format::checkpoint::Checkpoint;
use crate::format::tensors::TensorSource;
use crate::format::ternary::{held, is_ternary};
use crate::format::tokenizer_file::TokenizerFile;

/// How a model is written.
#[derive(Clone, Debug, Default)]
pub struct How<'a> {
    /// Where it comes from.
    pub about: About,
    /// Its chat template (Jinja).
    pub template: Option<&'a str>,
    /// Storage of the linears of its blocks.
    pub linear: Storage,
    /// Storage of the embedding.
    pub embedding: Storage,
    /// Storage of the head; that of the embedding where nothing is said. A tied head is no tensor.
    pub head: Option<Storage>,
}

/// What an export did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Exported {
    /// Bytes of all tensors.
    pub tensor_bytes: u64,
    /// Matrices whose columns no block of their type divides: they are stored as float16.
    pub wide: Vec<String>,
}

/// Writes a model with its tokenizer. Ternary matrices keep their codes and their scales, which are float16 in the file; in
/// other types they are stored by their values.
pub fn export(model: &Checkpoint, tokenizer: &TokenizerFile, how: &How<'_>, to: &Path) -> Result<Exported> {
    let c = &model.config;
    let family = export_keys::family(c)?;
    let mut writer = GgufWriter::default();
    export_keys::add(&mut writer, c, family, &how.about, how.linear);
    tokenizer_keys::add(&mut writer, tokenizer, c.vocab, how.template)?;
    export_keys::add_factors(&mut writer, c);
    let mut wide = Vec::new();
    for spec in c.tensors().into_iter().filter(|t| t.role != Role::Scale) {
        let (ty, fits) = stored(model, how, &spec)?;
        if !fits {
            wide.push(spec.name.clone());
        }
        let of_heads = ["q", "k", "q_bias", "k_bias"].iter().any(|n| spec.name.rsplit('.').next() == Some(n));
        let heads = (family.interleaved && of_heads).then_some(c.head_dim);
        let (name, shape) = (gguf_name(&spec.name), spec.shape.clone());
        writer.tensor(Entry { name, shape, ty, data: Box::new(move || bytes_of(model, &spec, ty, heads)) });
    }
    writer.write(to)?;
    Ok(Exported { tensor_bytes: writer.tensor_bytes(), wide })
}

/// The storage that holds a model exactly: ternary matrices in the type that has their groups, floats as float16.
pub fn fitting(model: &Checkpoint) -> (Storage, Storage, Option<Storage>) {
    let ternary = match model.config.group {
        Group::Of(n) if !n.is_multiple_of(BLOCK) => Storage::Q2_0,
        _ => Storage::Tq2_0,
    };
    let of = |role: Role| {
        let mut all = model.config.tensors().into_iter().filter(move |t| t.role == role).peekable();
        let any = all.peek().is_some();
        if any && all.all(|t| is_ternary(&model.config, &model.tensors, &t) && holds(model, ternary, &t)) { ternary } else { Storage::F16 }
    };
    (of(Role::Linear), of(Role::Embedding), (!model.config.tied).then(|| of(Role::Head)))
}

/// Type of a tensor in the file, and whether it is the one that was asked for.
fn stored(model: &Checkpoint, how: &How<'_>, spec: &TensorSpec) -> Result<(TensorType, bool)> {
    let (wanted, parameter) = match spec.role {
        Role::Linear => (how.linear, "type"),
        Role::Embedding => (how.embedding, "embedding"),
        Role::Head => (how.head.unwrap_or(how.embedding), "head"),
        Role::Norm | Role::Scale | Role::Bias => return Ok((TensorType::F32, true)),
    };
    let refuse = |why: String, help: String| Err(Error::from(ShapeError::Export { to: "GGUF", why }).help(help));
    if wanted.is_ternary() && !is_ternary(&model.config, &model.tensors, spec) {
        let kind = if spec.role == Role::Linear { "its linears are" } else { "it is" };
        let why = format!("`{}` is to be {}, and {kind} full precision", spec.name, wanted.name());
        let help = format!("`{parameter}: f16` or `q8_0`; a matrix becomes ternary by training (`train.bitnet`), not by rounding");
        return refuse(why, help);
    }
    let ty = wanted.ty();
    if !spec.shape[1].is_multiple_of(ty.block()) {
        return Ok((TensorType::F16, false));
    }
    if !holds(model, wanted, spec) {
        let why = format!("`{}` has a scale for fewer weights than the {BLOCK} that share one in {}", spec.name, wanted.name());
        return refuse(why, format!("`{parameter}: q2_0` has one for {Q2_0_GROUP}"));
    }
    Ok((ty, true))
}

/// Whether a type has a scale wherever a ternary matrix has another one.
fn holds(model: &Checkpoint, wanted: Storage, spec: &TensorSpec) -> bool {
    let blocks_of_256 = matches!(wanted, Storage::Tq2_0 | Storage::Tq1_0);
    let c = &model.config;
    let declared = || c.ternary_groups(spec).is_some() && model.tensors.packed_groups(&spec.name).is_none();
    match c.group {
        _ if !blocks_of_256 => true,
        Group::Of(n) if declared() => n.is_multiple_of(BLOCK),
        _ if declared() || model.tensors.packed_groups(&spec.name) == Some(1) => true,
        // A file's groups may be smaller than what shares a scale in them.
        _ => held(c, &model.tensors, spec).is_none_or(|m| {
            let same = |block: &[f32]| block.iter().all(|s| *s == block[0]);
            (0..m.rows()).all(|row| m.scales_of(row).chunks(BLOCK / Q2_0_GROUP).all(same))
        }),
    }
}

fn bytes_of(model: &Checkpoint, spec: &TensorSpec, ty: TensorType, heads: Option<usize>) -> Vec<u8> {
    let cols = if spec.shape.len() == 1 { 1 } else { spec.shape[1] };
    match (held(&model.config, &model.tensors, spec), heads) {
        (Some(matrix), None) => encode::ternary(&matrix, ty),
        (Some(matrix), Some(head)) => encode::ternary(&matrix.with_rows(head, &interleaved(head)), ty),
        (None, None) => encode::floats(&model.tensors.tensor(&spec.name), ty),
        (None, Some(head)) => {
            let values = model.tensors.tensor(&spec.name);
            let order = interleaved(head);
            let rows = values.chunks_exact(head * cols).flat_map(|part| order.iter().map(move |r| &part[r * cols..][..cols]));
            encode::floats(&rows.flatten().copied().collect::<Vec<_>>(), ty)
        }
    }
}

/// llama.cpp's order of the rows of a head: rows i and i + head/2, which rotate together, stand side by side.
fn interleaved(head: usize) -> Vec<usize> {
    (0..head).map(|r| r % 2 * (head / 2) + r / 2).collect()
}
