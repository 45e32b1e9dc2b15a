//! The training loop: batches, steps, the flip, the curve, checkpoints, and resuming bit by bit.

use std::time::Instant;

use flow_engine::plugin::{StageError, TaskContext};
use flow_shaders::device::{Device, DeviceError};

use super::loader::Loader;
use super::recipe::Recipe;
use super::skipped;
use super::start::Start;
use super::state::{self, Flip, Health, Point, Progress, Tensors};
use super::validation::{Evaluation, Validation};
use super::windows::LossWeights;
use crate::model::config::{ModelConfig, Role, TensorSpec, Weights};
use crate::model::trainer::{StepStats, TrainShape, Trainer};
use crate::rng::Rng;

/// What is trained on what.
pub struct Job<'a> {
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

/// What a device says, as a stage's failure.
pub fn device_error(e: DeviceError) -> StageError {
    StageError::new(e.to_string())
}

/// Initial weights: linears normal with variance 1/in, a hundredth of it where they write to the residual stream (so that
/// the embedding is heard from the first step), embeddings and head normal with deviation 0.02, norms 1.
pub fn initial_values(config: &ModelConfig, t: &TensorSpec, seed: u64) -> Vec<f32> {
    let mut rng = Rng::new(seed, &format!("init {}", t.name));
    match t.role {
        Role::Norm => vec![1.0; t.len()],
        Role::Scale => vec![1.0 / (config.dim as f32).sqrt(); t.len()],
        Role::Embedding | Role::Head => (0..t.len()).map(|_| 0.02 * rng.normal()).collect(),
        Role::Linear => {
            let writes_stream = t.name.ends_with(".o") || t.name.ends_with(".down");
            let deviation = if writes_stream { 0.1 } else { 1.0 } / (t.shape[1] as f32).sqrt();
            (0..t.len()).map(|_| deviation * rng.normal()).collect()
        }
    }
}

/// Trains to the budget, from the last checkpoint of this task if there is one.
pub fn train(job: &Job<'_>, loader: &mut Loader<'_>, device: &Device, ctx: &TaskContext) -> Result<Trained, StageError> {
    let r = job.recipe;
    let shape = TrainShape {
        batch: r.batch,
        seq: job.config.seq,
        top_k: loader.top_k(),
        ns: r.newton_schulz(),
        recompute: r.recompute,
        moments: r.moments,
        storage: r.storage,
        evaluates: job.validation.is_some(),
    };
    let mut trainer = Trainer::new(device, job.config.clone(), shape, r.optimizer).map_err(device_error)?;
    ctx.computes_on(&device.name());
    let mut progress = Progress::default();
    match state::load(ctx.state_dir()) {
        Some((saved, params, optimizer)) if trainer.load_optimizer_state(&optimizer).map_err(device_error)? => {
            trainer.load(&params).map_err(device_error)?;
            progress = saved;
            ctx.log(format!("continues from step {} ({} tokens)", progress.step, progress.seen_tokens));
        }
        _ => {
            let values = |t: &TensorSpec| match &job.start {
                Some(start) => start.values(&job.config, t, r.seed),
                None => initial_values(&job.config, t, r.seed),
            };
            trainer.load_with(values).map_err(device_error)?;
        }
    }
    if (r.batch * r.accumulate) as u64 > loader.len() {
        ctx.warn(format!(
            "a step takes {} windows (batch {} × accumulate {}), the data has {}: a step sees some of them more than once; lower `batch` \
             or `accumulate`, or bring more text",
            r.batch * r.accumulate,
            r.batch,
            r.accumulate,
            loader.len()
        ));
    }
    let start = (Instant::now(), progress.seen_tokens);
    while progress.seen_tokens < job.budget_tokens {
        let (stats, lr) = step(job, loader, &mut trainer, &mut progress)?;
        let last = progress.seen_tokens >= job.budget_tokens;
        if progress.has_means() && (progress.step.is_multiple_of(r.log_every) || last) {
            point(job, &mut progress, lr);
            ctx.progress(progress.seen_tokens.min(job.budget_tokens), job.budget_tokens, "tokens");
            ctx.metric("tokens_per_second", (progress.seen_tokens - start.1) as f64 / start.0.elapsed().as_secs_f64());
        }
        evaluate(job, &mut trainer, &mut progress, last, ctx)?;
        let stop = ctx.should_stop();
        if progress.step.is_multiple_of(r.checkpoint_every) || last || stop {
            if progress.step.is_multiple_of(r.checkpoint_every) || last {
                let record = health(job, &progress, &stats, lr);
                progress.health.push(record);
            }
            checkpoint(&mut trainer, &progress, ctx)?;
        }
        if stop && !last {
            return Err(StageError::interrupted());
        }
    }
    not_too_many_skipped(r, &progress)?;
    warn_of_overshoot(job, &progress, ctx);
    ctx.metric("loss", progress.curve.last().map_or(0.0, |p| p.loss));
    let best = progress.best.filter(|b| b.step != progress.step);
    let tensors = match best {
        Some(best) => state::load_best(ctx.state_dir(), &best, job.config.tensors().len())?,
        None => trainer.tensors().map_err(device_error)?,
    };
    let evaluation = best.or(progress.evaluations.last().copied());
    Ok(Trained { tensors, evaluation, session_bytes: trainer.session_bytes(), progress })
}

/// Evaluates where this step asks for it, and keeps the parameters where they are the best so far.
fn evaluate(job: &Job<'_>, trainer: &mut Trainer, p: &mut Progress, last: bool, ctx: &TaskContext) -> Result<(), StageError> {
    let Some(validation) = &job.validation else { return Ok(()) };
    if !(last || validation.when.every.is_some_and(|n| p.step.is_multiple_of(n))) {
        return Ok(());
    }
    let bits = bits(job, p);
    let bits_per_byte = validation.bits_per_byte(trainer, bits)?;
    if !bits_per_byte.is_finite() {
        ctx.warn(format!("step {}: the validation text has no finite figure; it is left out", p.step));
        return Ok(());
    }
    let now = Evaluation { step: p.step, seen_tokens: p.seen_tokens, bits, bits_per_byte };
    p.evaluations.push(now);
    ctx.metric("validation_bits_per_byte", bits_per_byte);
    // A figure at 8 bits says nothing of the model at 4: those before the flip are not compared.
    if validation.when.best && p.best.is_none_or(|b| b.bits != bits || bits_per_byte < b.bits_per_byte) {
        p.best = Some(now);
        if !last {
            state::save_best(ctx.state_dir(), &now, &trainer.tensors().map_err(device_error)?)?;
        }
    }
    Ok(())
}

/// Fails where more steps were skipped than the recipe allows.
fn not_too_many_skipped(r: &Recipe, p: &Progress) -> Result<(), StageError> {
    if p.skipped as f64 <= skipped::allowed(p.attempted(), r.max_skipped_share) {
        return Ok(());
    }
    let rule = match p.attempted() {
        n if n < skipped::JUDGED_FROM => "a run of fewer than 20 may skip one".to_owned(),
        _ => format!("`max_skipped_share` allows {:.2} %", 100.0 * r.max_skipped_share),
    };
    Err(StageError::new(format!(
        "step {}: {} of {} attempted steps were skipped because a gradient was not finite ({} of them with a loss that was not), at {} \
         tokens; {rule}",
        p.step,
        p.skipped,
        p.attempted(),
        p.nan_steps,
        p.seen_tokens
    ))
    .help("lower `lr` or `muon_lr`, lengthen `warmup`, or look for broken rows with `flow traces check`"))
}

/// A step is whole: one that is large beside the budget sees more than was asked for.
fn warn_of_overshoot(job: &Job<'_>, p: &Progress, ctx: &TaskContext) {
    let (beyond, batch) = (p.seen_tokens - job.budget_tokens, (job.recipe.batch * job.config.seq) as u64);
    if beyond > batch || beyond > job.budget_tokens {
        ctx.warn(format!(
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

fn bits(job: &Job<'_>, progress: &Progress) -> u32 {
    match (job.config.weights, progress.flip) {
        (Weights::Float, _) => 0,
        (_, Some(_)) => 4,
        (_, None) => 8,
    }
}

fn step(job: &Job<'_>, loader: &mut Loader<'_>, trainer: &mut Trainer, p: &mut Progress) -> Result<(StepStats, f64), StageError> {
    let r = job.recipe;
    let due = job.flip_fraction.is_some_and(|f| p.seen_tokens as f64 >= f * job.budget_tokens as f64);
    if due && p.flip.is_none() && job.config.weights != Weights::Float {
        p.flip = Some(Flip { step: p.step + 1, seen_tokens: p.seen_tokens });
    }
    let done = p.seen_tokens as f64 / job.budget_tokens as f64;
    let hyper = r.hyper(p.updates() + 1, done, job.tau, bits(job, p).max(4));
    let (micros, targets) = loader.step(p.cursor, r.batch, r.accumulate, &job.weights)?;
    p.cursor += (r.batch * r.accumulate) as u64;
    let stats = trainer.step(&micros, &hyper).map_err(device_error)?;
    p.count(&stats, targets);
    if p.overflows_in_a_row == skipped::MAX_OVERFLOWS_IN_A_ROW {
        return Err(StageError::new(format!(
            "step {}: {} steps in a row overflowed what float16 holds, down to a loss scale of {}, at {} tokens",
            p.step,
            p.overflows_in_a_row,
            trainer.loss_scale(),
            p.seen_tokens
        ))
        .help("set `storage: float32` in `recipe`, or lower `lr`"));
    }
    if p.attempted() >= skipped::JUDGED_FROM {
        not_too_many_skipped(r, p)?;
    }
    Ok((stats, f64::from(hyper.lr)))
}

/// Says in a log what a recipe with smaller storage did; logs of others stay as they are.
pub fn say_storage(log: &mut serde_json::Value, r: &Recipe, p: &Progress) {
    if !crate::is_default(&r.moments) {
        log["moments"] = serde_json::json!(r.moments);
    }
    if !crate::is_default(&r.storage) {
        log["storage"] = serde_json::json!(r.storage);
        log["overflow_steps"] = p.overflows.into();
    }
}

fn point(job: &Job<'_>, p: &mut Progress, lr: f64) {
    let [loss, kl, ce, format, grad_norm, grad_norm_clipped] = p.take_means();
    let unweighted = |x: f64, w: f32| if w > 0.0 { (x / f64::from(w) * 1e6).round() / 1e6 } else { 0.0 };
    let w = &job.weights;
    p.curve.push(Point {
        step: p.step,
        seen_tokens: p.seen_tokens,
        loss,
        kl: unweighted(kl, w.kd),
        ce: unweighted(ce, w.ce),
        format: unweighted(format, w.format),
        grad_norm,
        grad_norm_clipped,
        lr: (lr * 1e9).round() / 1e9,
        bits: bits(job, p),
    });
}

fn health(job: &Job<'_>, p: &Progress, s: &StepStats, lr: f64) -> Health {
    let round = |x: f32| (f64::from(x) * 1e6).round() / 1e6;
    Health {
        step: p.step,
        seen_tokens: p.seen_tokens,
        flip_done: p.flip.is_some(),
        activation_bits: bits(job, p),
        last_loss: round(s.total()),
        grad_norm: round(s.grad_norm),
        skipped_steps: p.skipped,
        learning_rate: (lr * 1e9).round() / 1e9,
    }
}

fn checkpoint(trainer: &mut Trainer, progress: &Progress, ctx: &TaskContext) -> Result<(), StageError> {
    let params = trainer.tensors().map_err(device_error)?;
    let optimizer = trainer.optimizer_state().map_err(device_error)?;
    state::save(ctx.state_dir(), progress, &params, &optimizer)?;
    state::forget_others(ctx.state_dir(), progress.best.as_ref());
    Ok(())
}
