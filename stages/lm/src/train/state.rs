//! The resumable state of a training task: one file, replaced atomically, so that a kill leaves the old one or the new one.

use std::borrow::Cow;
use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

use safetensors::SafeTensors;
use safetensors::tensor::{Dtype, TensorView, View};
use serde::{Deserialize, Serialize};

use super::trainer::{Part, StepStats, Trainer};
use super::validation::{Evaluation, best_file};
use crate::error::{Error, Result, TrainingError};
use crate::format::map::Mapped;

/// A point of the loss curve: means over the steps since the last one.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Point {
    /// Optimizer step.
    pub step: u64,
    /// Targets seen so far.
    pub seen_tokens: u64,
    /// Total loss.
    #[serde(deserialize_with = "nan_where_null")]
    pub loss: f64,
    /// KL part.
    #[serde(deserialize_with = "nan_where_null")]
    pub kl: f64,
    /// Cross-entropy part, unweighted where its weight is not 0.
    #[serde(deserialize_with = "nan_where_null")]
    pub ce: f64,
    /// Format part, unweighted where its weight is not 0.
    #[serde(deserialize_with = "nan_where_null")]
    pub format: f64,
    /// KL of relations, unweighted, where they are learned.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub relation: f64,
    /// Gradient norm before clipping.
    #[serde(deserialize_with = "nan_where_null")]
    pub grad_norm: f64,
    /// Largest gradient norm after clipping.
    #[serde(deserialize_with = "nan_where_null")]
    pub grad_norm_clipped: f64,
    /// AdamW's learning rate.
    #[serde(deserialize_with = "nan_where_null")]
    pub lr: f64,
    /// Activation bits; 0 for full precision.
    pub bits: u32,
}

/// A number that JSON has no word for.
fn nan_where_null<'de, D: serde::Deserializer<'de>>(from: D) -> std::result::Result<f64, D::Error> {
    Ok(Option::deserialize(from)?.unwrap_or(f64::NAN))
}

fn is_zero(x: &f64) -> bool {
    *x == 0.0
}

/// The record beside a checkpoint.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Health {
    /// Optimizer step.
    pub step: u64,
    /// Targets seen.
    pub seen_tokens: u64,
    /// Whether activations went to 4 bits.
    pub flip_done: bool,
    /// Activation bits; 0 for full precision.
    pub activation_bits: u32,
    /// Loss of the last step.
    pub last_loss: f64,
    /// Gradient norm of the last step, before clipping.
    pub grad_norm: f64,
    /// Steps skipped so far.
    pub skipped_steps: u64,
    /// AdamW's learning rate.
    pub learning_rate: f64,
}

/// When the activations went to 4 bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Flip {
    /// First step at 4 bits.
    pub step: u64,
    /// Targets seen before it.
    pub seen_tokens: u64,
}

/// Everything that the loop counts.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Progress {
    /// Steps attempted: each updated the parameters, was skipped, or overflowed.
    pub step: u64,
    /// Windows taken.
    pub cursor: u64,
    /// Targets of the steps that updated the parameters.
    pub seen_tokens: u64,
    /// Steps skipped for a non-finite gradient.
    pub skipped: u64,
    /// Steps skipped because a scaled gradient passed what float16 holds.
    #[serde(default)]
    pub overflows: u64,
    /// Those of them since the last other step.
    #[serde(default)]
    pub overflows_in_a_row: u64,
    /// Steps with a non-finite loss.
    pub nan_steps: u64,
    /// The flip.
    pub flip: Option<Flip>,
    /// Loss curve.
    pub curve: Vec<Point>,
    /// Health records.
    pub health: Vec<Health>,
    /// Evaluations on the validation text.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub evaluations: Vec<Evaluation>,
    /// The best of them at the present activation bits, where the best is wanted: its parameters are in a file of their own,
    /// unless it is the last one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub best: Option<Evaluation>,
    /// What the temperature of each softened tensor is multiplied by, where they have their own.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub temperatures: Vec<f32>,
    /// Sums since the last point, as the bits of f64 (loss, kl, ce, format, norm, largest clipped norm, steps).
    pub pending: [u64; 7],
    /// The same of relations.
    #[serde(default, skip_serializing_if = "is_none")]
    pub pending_relation: u64,
}

/// What is 0 without a word is not written.
fn is_none(bits: &u64) -> bool {
    *bits == 0
}

impl Progress {
    /// Steps that updated the parameters: AdamW's t.
    pub fn updates(&self) -> u64 {
        self.step - self.skipped - self.overflows
    }

    /// Steps whose gradient could have been finite: an overflow of the loss scale is how it finds its place.
    pub fn attempted(&self) -> u64 {
        self.step - self.overflows
    }

    /// Counts an attempted step with its targets. One without an update is not seen: the budget and AdamW's t stay.
    pub fn count(&mut self, s: &StepStats, targets: u64) {
        self.step += 1;
        self.nan_steps += u64::from(s.non_finite > 0.0 || !s.total().is_finite());
        self.overflows_in_a_row = if s.overflowed { self.overflows_in_a_row + 1 } else { 0 };
        if s.overflowed {
            self.overflows += 1;
        } else if s.skipped {
            self.skipped += 1;
        } else {
            self.seen_tokens += targets;
            self.add(s);
        }
    }

    /// Whether a step was added since the last point.
    pub fn has_means(&self) -> bool {
        self.pending[6] != 0
    }

    /// Adds a step to the sums.
    fn add(&mut self, s: &StepStats) {
        let add = |slot: &mut u64, v: f32| *slot = (f64::from_bits(*slot) + f64::from(v)).to_bits();
        let p = &mut self.pending;
        for (slot, v) in p.iter_mut().zip([s.total(), s.kl, s.ce, s.format, s.grad_norm]) {
            add(slot, v);
        }
        add(&mut self.pending_relation, s.relation);
        p[5] = f64::from_bits(p[5]).max(f64::from(s.grad_norm_clipped)).to_bits();
        add(&mut p[6], 1.0);
    }

    /// Means since the last point, that of relations apart; starts over.
    pub fn take_means(&mut self) -> ([f64; 6], f64) {
        let relation = f64::from_bits(std::mem::take(&mut self.pending_relation));
        let sums = std::mem::take(&mut self.pending).map(f64::from_bits);
        let n = sums[6].max(1.0);
        // Six decimals: short enough that JSON gives the same number back when a task resumes.
        let round = |x: f64| (x * 1e6).round() / 1e6;
        let means = [round(sums[0] / n), round(sums[1] / n), round(sums[2] / n), round(sums[3] / n), round(sums[4] / n), round(sums[5])];
        (means, round(relation / n))
    }
}

/// Tensors by name.
pub type Tensors = BTreeMap<String, Vec<f32>>;

fn file(dir: &Path) -> PathBuf {
    dir.join("training.safetensors")
}

/// Everything that a training keeps, by its name in the file.
fn parts(trainer: &Trainer) -> Vec<(String, Part)> {
    let named = |prefix: &str, all: Vec<(String, Part)>| all.into_iter().map(|(n, p)| (format!("{prefix}.{n}"), p)).collect::<Vec<_>>();
    [named("param", trainer.parameter_parts()), named("optimizer", trainer.optimizer_parts())].concat()
}

/// Replaces the state.
pub(super) fn save(dir: &Path, progress: &Progress, trainer: &mut Trainer) -> Result<()> {
    let json = serde_json::to_string(progress).map_err(|e| unwritten(&file(dir), e.to_string()))?;
    write(&file(dir), parts(trainer), trainer, Some(HashMap::from([("progress".to_owned(), json)])))
}

/// Keeps the best parameters so far. Earlier ones stay until a checkpoint says that they are not wanted.
pub(super) fn save_best(dir: &Path, of: &Evaluation, trainer: &mut Trainer) -> Result<()> {
    write(&best_file(dir, of), trainer.parameter_parts(), trainer, None)
}

/// Removes best parameters that the checkpoint which was just written does not name.
pub fn forget_others(dir: &Path, best: Option<&Evaluation>) {
    let wanted = best.map(|b| best_file(dir, b));
    for file in std::fs::read_dir(dir).into_iter().flatten().flatten().map(|f| f.path()) {
        let name = file.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
        if name.starts_with("best-") && Some(&file) != wanted.as_ref() {
            // One that stays takes room until the task is done.
            let _ = std::fs::remove_file(file);
        }
    }
}

/// The parameters of the best evaluation, `count` tensors.
pub fn load_best(dir: &Path, of: &Evaluation, count: usize) -> Result<Tensors> {
    let path = best_file(dir, of);
    let lost = || {
        Error::from(TrainingError::BestLost { file: path.clone() })
            .help("delete the file `training.safetensors` beside it, so that the stage trains again")
    };
    let mapped = Mapped::open(&path).map_err(|_| lost())?;
    let stored = SafeTensors::deserialize(&mapped).ok().filter(|s| s.len() == count).ok_or_else(lost)?;
    Ok(stored.tensors().into_iter().map(|(n, view)| (n, taken(&mapped, &view))).collect())
}

/// The parameters of the last checkpoint.
pub(super) fn load_parameters(dir: &Path) -> Result<Tensors> {
    let path = file(dir);
    let mapped = Mapped::open(&path)?;
    let stored = SafeTensors::deserialize(&mapped).map_err(|e| unwritten(&path, e.to_string()))?;
    let parameters = stored.tensors().into_iter().filter_map(|(n, view)| Some((n.strip_prefix("param.")?.to_owned(), view)));
    Ok(parameters.map(|(n, view)| (n, taken(&mapped, &view))).collect())
}

/// Values of a tensor of a mapped file, whose pages are let go.
fn taken(mapped: &Mapped, view: &TensorView<'_>) -> Vec<f32> {
    let (data, begin) = (view.data(), mapped.as_ptr() as usize);
    let values = bytemuck::pod_collect_to_vec(data);
    let first = data.as_ptr() as usize - begin;
    mapped.forget(first..first + data.len());
    values
}

/// A training while it is written: no copy of all its tensors is held.
struct Writing<'t> {
    trainer: &'t mut Trainer,
    failed: Option<Error>,
}

/// A tensor that is read when it is its turn.
struct Lazy<'w, 't> {
    of: &'w RefCell<Writing<'t>>,
    part: Part,
    shape: [usize; 1],
}

impl View for Lazy<'_, '_> {
    fn dtype(&self) -> Dtype {
        Dtype::F32
    }
    fn shape(&self) -> &[usize] {
        &self.shape
    }
    fn data(&self) -> Cow<'_, [u8]> {
        let writing = &mut *self.of.borrow_mut();
        let values = writing.trainer.read_part(self.part).unwrap_or_else(|e| {
            writing.failed.get_or_insert(e);
            vec![0.0; self.shape[0]]
        });
        Cow::Owned(bytemuck::pod_collect_to_vec(&values))
    }
    fn data_len(&self) -> usize {
        4 * self.shape[0]
    }
}

fn write(target: &Path, parts: Vec<(String, Part)>, trainer: &mut Trainer, metadata: Option<HashMap<String, String>>) -> Result<()> {
    let parts: Vec<_> = parts.into_iter().map(|(name, part)| (name, part, [trainer.part_len(part)])).collect();
    let writing = RefCell::new(Writing { trainer, failed: None });
    let views = parts.into_iter().map(|(name, part, shape)| (name, Lazy { of: &writing, part, shape }));
    let partial = target.with_extension("partial");
    safetensors::serialize_to_file(views, metadata, &partial)
        .map_err(|e| unwritten(&partial, e.to_string()).help("free some disk space and run again"))?;
    if let Some(failed) = writing.into_inner().failed {
        return Err(failed);
    }
    let sync = std::fs::File::open(&partial).and_then(|f| f.sync_all()).and_then(|()| std::fs::rename(&partial, target));
    sync.map_err(|e| Error::io("cannot write checkpoint", target, e))
}

fn unwritten(file: &Path, why: String) -> Error {
    TrainingError::Checkpoint { file: file.to_owned(), why }.into()
}

/// Gives a training the state back, if there is a whole one that fits it; tensor by tensor.
pub(super) fn resume(dir: &Path, trainer: &mut Trainer) -> Result<Option<Progress>> {
    let Ok(mapped) = Mapped::open(&file(dir)) else { return Ok(None) };
    let Some((progress, stored)) = read(&mapped) else { return Ok(None) };
    let parts = parts(trainer);
    let views: Option<Vec<_>> = parts.into_iter().map(|(name, part)| Some((part, stored.tensor(&name).ok()?))).collect();
    let fits = |(part, view): &(Part, TensorView<'_>)| view.dtype() == Dtype::F32 && view.data().len() == 4 * trainer.part_len(*part);
    let Some(views) = views.filter(|v| v.iter().all(fits)) else { return Ok(None) };
    for (part, view) in views {
        trainer.write_part(part, &taken(&mapped, &view))?;
    }
    Ok(Some(progress))
}

/// The record of a state file, and its tensors.
fn read(bytes: &[u8]) -> Option<(Progress, SafeTensors<'_>)> {
    let (_, header) = SafeTensors::read_metadata(bytes).ok()?;
    let progress: Progress = serde_json::from_str(header.metadata().as_ref()?.get("progress")?).ok()?;
    if progress.skipped + progress.overflows > progress.step {
        return None;
    }
    Some((progress, SafeTensors::deserialize(bytes).ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::ModelConfig;
    use crate::graph::Optimizer;
    use crate::train::{Recipe, TrainShape};

    fn stats(skipped: bool, overflowed: bool) -> StepStats {
        StepStats { ce: 2.0, grad_norm: 1.0, skipped, overflowed, ..StepStats::default() }
    }

    #[test]
    fn only_updates_are_seen_and_overflows_are_counted_apart() {
        let mut p = Progress::default();
        for (skipped, overflowed) in [(false, false), (true, true), (true, true), (true, false), (false, false), (true, true)] {
            p.count(&stats(skipped, overflowed), 10);
        }
        assert_eq!((p.step, p.updates(), p.attempted(), p.seen_tokens), (6, 2, 3, 20));
        assert_eq!((p.skipped, p.overflows, p.overflows_in_a_row), (1, 3, 1));
        assert_eq!(p.take_means().0[0], 2.0);
        assert!(!p.has_means());
    }

    fn trainer(mlp: usize) -> Trainer {
        let recipe = Recipe { optimizer: Optimizer::Adamw, batch: 1, ..Recipe::default() };
        let config =
            ModelConfig { vocab: 16, dim: 16, layers: 1, heads: 1, kv_heads: 1, head_dim: 16, mlp, seq: 4, ..ModelConfig::plain() };
        let shape = TrainShape::of(&recipe, 4, 0, false);
        let cpu = flow_shaders::device::open("cpu", 1).expect("the CPU is always there");
        let mut trainer = Trainer::new(&cpu, config, shape, recipe.optimizer).expect("fits");
        trainer.load_with(|t| (0..t.len()).map(|i| i as f32).collect()).expect("loads");
        trainer
    }

    fn all(trainer: &mut Trainer) -> Vec<Tensors> {
        vec![trainer.tensors().expect("reads"), trainer.optimizer_state().expect("reads")]
    }

    /// Weights of one attempt beside moments of another would be neither: what is not whole, or of another shape, is not read
    /// at all.
    #[test]
    fn a_checkpoint_is_read_whole_or_not_at_all() {
        let dir = tempfile::tempdir().expect("a directory");
        let saved = Progress { step: 3, seen_tokens: 12, ..Progress::default() };
        save(dir.path(), &saved, &mut trainer(32)).expect("writes");
        let mut same = trainer(32);
        same.load_with(|t| vec![0.0; t.len()]).expect("loads");
        assert_eq!(resume(dir.path(), &mut same).expect("reads").map(|p| p.step), Some(3));
        assert_eq!(all(&mut same), all(&mut trainer(32)));

        let bytes = std::fs::read(file(dir.path())).expect("reads");
        let stored = SafeTensors::deserialize(&bytes).expect("a file of tensors");
        let metadata = SafeTensors::read_metadata(&bytes).expect("a header").1.metadata().clone();
        let without_moments = stored.tensors().into_iter().filter(|(name, _)| name != "optimizer.layers.0.down.v");
        let broken = [
            ("of another shape", bytes.clone(), 48),
            ("cut off", bytes[..bytes.len() - 4].to_vec(), 32),
            ("without a moment", safetensors::serialize(without_moments, metadata).expect("writes"), 32),
            ("without a record", safetensors::serialize(stored.tensors(), None).expect("writes"), 32),
        ];
        assert!(broken[2].1.len() < bytes.len(), "{:?}", stored.names());
        for (what, bytes, mlp) in broken {
            std::fs::write(file(dir.path()), bytes).expect("writes");
            let mut fresh = trainer(mlp);
            let before = all(&mut fresh);
            assert!(resume(dir.path(), &mut fresh).expect("is no error").is_none(), "{what}");
            assert!(all(&mut fresh) == before, "{what}: nothing is taken");
        }
    }

    /// What a97e9d1 wrote beside its tensors, before overflows in a row were counted.
    #[test]
    fn an_earlier_record_is_read() {
        let text = r#"{"step":7,"cursor":28,"seen_tokens":3500,"skipped":2,"overflows":1,"nan_steps":0,"flip":{"step":6,"seen_tokens":3000},
            "curve":[],"health":[],"pending":[0,0,0,0,0,0,0]}"#;
        let p: Progress = serde_json::from_str(text).expect("reads");
        assert_eq!((p.updates(), p.attempted(), p.overflows_in_a_row), (4, 6, 0));
    }
}
