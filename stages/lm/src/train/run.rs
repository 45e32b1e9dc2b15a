//! The training loop: batches, steps, the flip, the curve, checkpoints, and resuming bit by bit.

use std::path::Path;
use std::time::Instant;

use flow_shaders::device::Device;

use super::batch::LossWeights;
use super::calibrate::temperatures;
use super::loader::Loader;
use super::program::TrainShape;
use super::recipe::Recipe;
use super::skipped;
use super::softening::{Softness, TernarySchedule};
use super::start::{Start, initial_values};
use super::state::{self, Flip, Health, Point, Progress, Tensors};
use super::taught::InLoop;
use super::trainer::{Hyper, StepStats, Trainer};
use super::validation::{Evaluation, Softened, Validation};
use crate::config::{Bits, ModelConfig, TensorSpec};
use crate::error::{Error, Result, TrainingError};

/// Who follows a training: is told of it, may stop it, and says where its state is kept. `()` follows nothing.
pub trait Watch {
    /// Targets seen, of those that are to be seen.
    fn progress(&self, _seen: u64, _budget: u64) {}
    /// A figure by its name.
    fn metric(&self, _name: &str, _value: f64) {}
    /// What happened.
    fn log(&self, _message: String) {}
    /// What a person should look at.
    fn warn(&self, _message: String) {}
    /// Whether to write a checkpoint and stop.
    fn should_stop(&self) -> bool {
        false
    }
    /// Directory of the checkpoint; without one nothing is kept.
    fn state_dir(&self) -> Option<&Path> {
        None
    }
}

impl Watch for () {}

/// What is trained on what.
pub struct Training<'a> {
    /// Shape.
    pub config: ModelConfig,
    /// Optimizer and schedule.
    pub recipe: &'a Recipe,
    /// Weights of the loss.
    pub weights: LossWeights,
    /// Temperature of the KL.
    pub tau: f32,
    /// Targets to see.
    pub budget_tokens: u64,
    /// Share of the budget after which activations go to 4 bits.
    pub flip_fraction: Option<f64>,
    /// What it starts from, where parameters are not drawn.
    pub start: Option<Start>,
    /// What is evaluated on while training.
    pub validation: Option<Validation>,
    /// How weights become ternary.
    pub ternary: TernarySchedule,
    /// A teacher that reads every batch: its windows are marked as [`super::Windows::taught`].
    pub teacher: Option<InLoop>,
}

impl Training<'_> {
    /// How ternary the weights are after what was seen.
    fn softness(&self, p: &Progress) -> Softness {
        self.ternary.at(p.seen_tokens as f64 / self.budget_tokens as f64)
    }
}

/// A trained model.
pub struct Trained {
    /// Parameters.
    pub tensors: Tensors,
    /// Counts, curve, health.
    pub progress: Progress,
    /// The evaluation that the parameters are of.
    pub evaluation: Option<Evaluation>,
    /// Bytes of the training session.
    pub session_bytes: u64,
}

/// Trains to the budget, from the last checkpoint if there is one. Nothing where it was stopped: its state is in the checkpoint.
pub fn train<E: From<Error>>(
    job: &Training<'_>,
    loader: &mut Loader<'_, E>,
    device: &Device,
    watch: &impl Watch,
) -> Result<Option<Trained>, E> {
    let r = job.recipe;
    let shape = TrainShape::of(r, job.config.seq, loader.top_k(), job.validation.is_some());
    let beside = (job.ternary.softens(), job.teacher.as_ref());
    let mut trainer = Trainer::beside(device, job.config.clone(), shape, r.optimizer, beside)?;
    let mut progress = Progress::default();
    match watch.state_dir().map(|dir| state::resume(dir, &mut trainer)).transpose()?.flatten() {
        Some(saved) => {
            trainer.set_temperatures(&saved.temperatures)?;
            progress = saved;
            watch.log(format!("continues from step {} ({} tokens)", progress.step, progress.seen_tokens));
        }
        None => {
            let values = |t: &TensorSpec| match &job.start {
                Some(start) => start.values(&job.config, t, r.seed),
                None => initial_values(&job.config, t, r.seed),
            };
            trainer.load_with(values)?;
            if job.ternary.calibrates() > 0 {
                calibrate(job, loader, &mut trainer, &mut progress)?;
                watch.log(format!("temperatures of {} tensors by their curvature", progress.temperatures.len()));
            }
        }
    }
    if (r.batch * r.accumulate) as u64 > loader.len() {
        watch.warn(format!(
            "a step takes {} windows (batch {} × accumulate {}), the data has {}: a step sees some of them more than once; lower `batch` \
             or `accumulate`, or bring more text",
            r.batch * r.accumulate,
            r.batch,
            r.accumulate,
            loader.len()
        ));
    }
    // Where no directory keeps them.
    let mut best_tensors = None;
    let start = (Instant::now(), progress.seen_tokens);
    while progress.seen_tokens < job.budget_tokens {
        let (stats, lr) = step(job, loader, &mut trainer, &mut progress)?;
        let last = progress.seen_tokens >= job.budget_tokens;
        if progress.has_means() && (progress.step.is_multiple_of(r.log_every) || last) {
            point(job, &mut progress, lr);
            watch.progress(progress.seen_tokens.min(job.budget_tokens), job.budget_tokens);
            watch.metric("tokens_per_second", (progress.seen_tokens - start.1) as f64 / start.0.elapsed().as_secs_f64());
        }
        evaluate(job, &mut trainer, (&mut progress, &mut best_tensors), last, watch)?;
        let stop = watch.should_stop();
        if progress.step.is_multiple_of(r.checkpoint_every) || last || stop {
            if progress.step.is_multiple_of(r.checkpoint_every) || last {
                let record = health(job, &progress, &stats, lr);
                progress.health.push(record);
            }
            checkpoint(&mut trainer, &progress, watch)?;
        }
        if stop && !last {
            return Ok(None);
        }
    }
    not_too_many_skipped(r, &progress)?;
    warn_of_overshoot(job, &progress, watch);
    watch.metric("loss", progress.curve.last().map_or(0.0, |p| p.loss));
    let best = progress.best.filter(|b| b.step != progress.step);
    let session_bytes = trainer.session_bytes();
    let unsaved = if best.is_none() && watch.state_dir().is_none() { Some(trainer.tensors()?) } else { best_tensors };
    // What a file has is read when the session's memory is free.
    drop(trainer);
    let tensors = match (best, watch.state_dir()) {
        (Some(best), Some(dir)) => state::load_best(dir, &best, job.config.tensors().len())?,
        (None, Some(dir)) => state::load_parameters(dir)?,
        (_, None) => unsaved.unwrap_or_default(),
    };
    let evaluation = best.or(progress.evaluations.last().copied());
    Ok(Some(Trained { tensors, evaluation, session_bytes, progress }))
}

/// Gives every softened tensor a temperature of its own.
fn calibrate<E: From<Error>>(
    job: &Training<'_>,
    loader: &mut Loader<'_, E>,
    trainer: &mut Trainer,
    progress: &mut Progress,
) -> Result<(), E> {
    let r = job.recipe;
    let micros = job.ternary.calibrates().div_ceil(r.batch * job.config.seq);
    let (micros, _) = loader.step(0, r.batch, micros, &job.weights)?;
    let masters = Softness { pressure: 0.0, inv_temperature: 0.0 };
    let hyper = r.hyper(1, 0.0, job.tau, bits(job, progress).unwrap_or(Bits::Four), &job.ternary);
    progress.temperatures = temperatures(trainer, &micros, &Hyper { softness: masters, ..hyper }, r.seed)?;
    Ok(trainer.set_temperatures(&progress.temperatures)?)
}

/// Evaluates where this step asks for it, and keeps the parameters where they are the best so far.
fn evaluate(
    job: &Training<'_>,
    trainer: &mut Trainer,
    (p, best_tensors): (&mut Progress, &mut Option<Tensors>),
    last: bool,
    watch: &impl Watch,
) -> Result<()> {
    let Some(validation) = &job.validation else { return Ok(()) };
    if !(last || validation.when.every.is_some_and(|n| p.step.is_multiple_of(n))) {
        return Ok(());
    }
    let at = bits(job, p).unwrap_or(Bits::Four);
    let bits_per_byte = validation.bits_per_byte(trainer, at, Softness::HARD)?;
    let softness = job.softness(p);
    let soft = (!softness.is_hard()).then(|| validation.bits_per_byte(trainer, at, softness)).transpose()?;
    let bits = recorded(bits(job, p));
    if !bits_per_byte.is_finite() {
        watch.warn(format!("step {}: the validation text has no finite figure; it is left out", p.step));
        return Ok(());
    }
    let soft =
        soft.map(|bits_per_byte| Softened { bits_per_byte, pressure: f64::from(softness.pressure), temperature: softness.temperature() });
    let now = Evaluation { step: p.step, seen_tokens: p.seen_tokens, bits, bits_per_byte, soft };
    p.evaluations.push(now);
    watch.metric("validation_bits_per_byte", bits_per_byte);
    // A figure at 8 bits says nothing of the model at 4: those before the flip are not compared.
    if validation.when.best && p.best.is_none_or(|b| b.bits != bits || bits_per_byte < b.bits_per_byte) {
        p.best = Some(now);
        if !last {
            match watch.state_dir() {
                Some(dir) => state::save_best(dir, &now, trainer)?,
                None => *best_tensors = Some(trainer.tensors()?),
            }
        }
    }
    Ok(())
}

/// Fails where more steps were skipped than the recipe allows.
fn not_too_many_skipped(r: &Recipe, p: &Progress) -> Result<()> {
    if p.skipped as f64 <= skipped::allowed(p.attempted(), r.max_skipped_share) {
        return Ok(());
    }
    let rule = match p.attempted() {
        n if n < skipped::JUDGED_FROM => "a run of fewer than 20 may skip one".to_owned(),
        _ => format!("`max_skipped_share` allows {:.2} %", 100.0 * r.max_skipped_share),
    };
    Err(Error::from(TrainingError::Skipped {
        step: p.step,
        skipped: p.skipped,
        attempted: p.attempted(),
        nan_steps: p.nan_steps,
        seen_tokens: p.seen_tokens,
        rule,
    })
    .help("lower `lr` or `muon_lr`, lengthen `warmup`, or look for broken rows with `flow traces check`"))
}

/// A step is whole: one that is large beside the budget sees more than was asked for.
fn warn_of_overshoot(job: &Training<'_>, p: &Progress, watch: &impl Watch) {
    let (beyond, batch) = (p.seen_tokens - job.budget_tokens, (job.recipe.batch * job.config.seq) as u64);
    if beyond > batch || beyond > job.budget_tokens {
        watch.warn(format!(
            "{} tokens were seen where the budget is {}: a step takes up to {} (batch {} × accumulate {} × {} tokens); lower `accumulate` \
             or `batch` to meet the budget",
            p.seen_tokens,
            job.budget_tokens,
            batch * job.recipe.accumulate as u64,
            job.recipe.batch,
            job.recipe.accumulate,
            job.config.seq
        ));
    }
}

/// Activation bits of the next step; none where linears take floats.
fn bits(job: &Training<'_>, progress: &Progress) -> Option<Bits> {
    match (job.config.quantises(), progress.flip) {
        (false, _) => None,
        (true, Some(_)) => Some(Bits::Four),
        (true, None) => Some(Bits::Eight),
    }
}

/// As records have them: 0 for floats.
fn recorded(bits: Option<Bits>) -> u32 {
    bits.map_or(0, Bits::count)
}

fn step<E: From<Error>>(
    job: &Training<'_>,
    loader: &mut Loader<'_, E>,
    trainer: &mut Trainer,
    p: &mut Progress,
) -> Result<(StepStats, f64), E> {
    let r = job.recipe;
    let due = job.flip_fraction.is_some_and(|f| p.seen_tokens as f64 >= f * job.budget_tokens as f64);
    if due && p.flip.is_none() && job.config.quantises() {
        p.flip = Some(Flip { step: p.step + 1, seen_tokens: p.seen_tokens });
    }
    let done = p.seen_tokens as f64 / job.budget_tokens as f64;
    let hyper = r.hyper(p.updates() + 1, done, job.tau, bits(job, p).unwrap_or(Bits::Four), &job.ternary);
    let (micros, targets) = loader.step(p.cursor, r.batch, r.accumulate, &job.weights)?;
    let relation = job.teacher.as_ref().and_then(|t| t.relation).map_or(0.0, |r| r.weight / (3 * targets.max(1)) as f32);
    let hyper = Hyper { relation, ..hyper };
    p.cursor += (r.batch * r.accumulate) as u64;
    let stats = trainer.step(&micros, &hyper)?;
    p.count(&stats, targets);
    if p.overflows_in_a_row == skipped::MAX_OVERFLOWS_IN_A_ROW {
        let (step, in_a_row, seen_tokens) = (p.step, p.overflows_in_a_row, p.seen_tokens);
        return Err(Error::from(TrainingError::Overflows { step, in_a_row, loss_scale: trainer.loss_scale(), seen_tokens })
            .help("set `storage: float32` in `recipe`, or lower `lr`")
            .into());
    }
    if p.attempted() >= skipped::JUDGED_FROM {
        not_too_many_skipped(r, p)?;
    }
    Ok((stats, f64::from(hyper.lr)))
}

fn point(job: &Training<'_>, p: &mut Progress, lr: f64) {
    let ([loss, kl, ce, format, grad_norm, grad_norm_clipped], relation) = p.take_means();
    let unweighted = |x: f64, w: f32| if w > 0.0 { (x / f64::from(w) * 1e6).round() / 1e6 } else { 0.0 };
    let w = &job.weights;
    p.curve.push(Point {
        step: p.step,
        seen_tokens: p.seen_tokens,
        loss,
        kl: unweighted(kl, w.kd),
        ce: unweighted(ce, w.ce),
        format: unweighted(format, w.format),
        relation: unweighted(relation, job.teacher.as_ref().and_then(|t| t.relation).map_or(0.0, |r| r.weight)),
        grad_norm,
        grad_norm_clipped,
        lr: (lr * 1e9).round() / 1e9,
        bits: recorded(bits(job, p)),
    });
}

fn health(job: &Training<'_>, p: &Progress, s: &StepStats, lr: f64) -> Health {
    let round = |x: f32| (f64::from(x) * 1e6).round() / 1e6;
    Health {
        step: p.step,
        seen_tokens: p.seen_tokens,
        flip_done: p.flip.is_some(),
        activation_bits: recorded(bits(job, p)),
        last_loss: round(s.total()),
        grad_norm: round(s.grad_norm),
        skipped_steps: p.skipped,
        learning_rate: (lr * 1e9).round() / 1e9,
    }
}

fn checkpoint(trainer: &mut Trainer, progress: &Progress, watch: &impl Watch) -> Result<()> {
    let Some(dir) = watch.state_dir() else { return Ok(()) };
    state::save(dir, progress, trainer)?;
    state::forget_others(dir, progress.best.as_ref());
    Ok(())
}
