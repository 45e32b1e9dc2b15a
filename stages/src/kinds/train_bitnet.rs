//! `train.bitnet`: a ternary student trained on projected traces, or on a text, with the flip from 8-bit to 4-bit activations.

use flow_engine::plugin::{Estimate, InputPort, OutputPort, ParamError, Stage, StageError, TaskContext, Wired};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use flow_lm::config::{Activation, Activations, Group, ModelConfig, ScaleType, Weights};
use flow_lm::format::{Checkpoint, load_with_tokenizer};
use flow_lm::graph::HeldPacked;
use flow_lm::tokenizer::{Fidelity, Tokenizer};
use flow_lm::train::{
    Beside, Evaluate, InLoop, Loader, LossWeights, Recipe, Relation, TeacherShape, TernarySchedule, TokenWeight, Training, Windows,
};

use super::beginning::{self, OwnTokenizer, TakenModel};
use super::init::{self, Init, StudentPreset};
use super::shape::Shape;
use super::training::{self, WHOSE, validation, validation_is_wired, wrong};
use crate::data::{Lossy, faithful, read_text};
use crate::distil::windows::{Totals, windows_of_traces};
use crate::distil::{Distillation, KdScale};
use crate::estimate::{self, TrainingJob};
use crate::measurements::{self, TeacherInLoop, TrainLog};
use crate::task;
use crate::teacher::http::spec::Spec;
use crate::traces::{ProjectedRow, TraceReader};

/// Parameters of `train.bitnet`; the defaults are what the main job was found to learn best with (`docs/recipe.md`).
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct StudentParams {
    /// Shape, or `init`: that of the model in `init`; its vocabulary is the tokenizer's.
    pub preset: StudentPreset,
    /// Which model it begins as, and what is kept of it. Without it the input `init` must have the student's own blocks.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub init: Option<Init>,
    /// Blocks, where another number than the preset's is wanted.
    pub layers: Option<usize>,
    /// Window length in tokens, where another than the preset's is wanted.
    pub seq: Option<usize>,
    /// Weights of the block linears; `float` trains the full-precision twin.
    pub weights: Weights,
    /// What of a ternary matrix shares an absmean scale: `tensor`, `row`, or 64, 128 or 256 weights of a row. Scales of rows and
    /// groups are float16, as files hold them.
    #[serde(skip_serializing_if = "crate::is_default")]
    pub group: Group,
    /// How the scale of a tensor is rounded: `f32` not at all, `f16` as files hold it.
    #[serde(skip_serializing_if = "crate::is_default")]
    pub scale: ScaleType,
    /// Make the embedding ternary too (with a tied head that is the head).
    #[serde(skip_serializing_if = "crate::is_default")]
    pub ternary_embedding: bool,
    /// Make a head of its own ternary too.
    #[serde(skip_serializing_if = "crate::is_default")]
    pub ternary_head: bool,
    /// What ternary linears take: `float`, `a8` or `a4` throughout; null: 8 bits until `flip_fraction`, then 4.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub activations: Option<Taken>,
    /// MLP activation, where another than the preset's is wanted.
    pub activation: Option<Activation>,
    /// Other sizes than the preset's.
    #[serde(skip_serializing_if = "crate::is_default")]
    pub shape: Shape,
    /// How weights become ternary: `ste` (codes from the first step on), `ramp` (a pressure that rises) or `soft` (soft
    /// assignment at a temperature that falls), the latter two with a course of their own where one is given.
    #[serde(skip_serializing_if = "crate::is_default")]
    pub ternary_schedule: TernarySchedule,
    /// With a teacher in the loop, what weighs the KL of a token: `even`, or `teacher_ce`, its own cross-entropy there.
    #[serde(skip_serializing_if = "crate::is_default")]
    pub token_weight: TokenWeight,
    /// With a teacher in the loop, the student's layer whose relations of queries, keys and values are to be those of the
    /// teacher's layer at the same depth (MiniLM); null: none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub relation_layer: Option<usize>,
    /// Weight of these relations.
    #[serde(skip_serializing_if = "is_one")]
    pub relation_weight: f32,
    /// Temperature of the KL.
    pub tau: f32,
    /// What the KL is multiplied by beside its weight: `tau2`, so that `tau` does not change the balance against the
    /// cross-entropy, or `none`.
    pub kd_scale: KdScale,
    /// Weight of the KL over Top-K + Other.
    pub kd_weight: f32,
    /// Weight of the cross-entropy.
    pub ce_weight: f32,
    /// Weight of the cross-entropy on structural tokens.
    pub format_weight: f32,
    /// Targets to see.
    pub budget_tokens: u64,
    /// Share of the budget, in tokens actually seen, after which activations go from 8 to 4 bits; null: never.
    pub flip_fraction: Option<f64>,
    /// Seed of initial weights and order; the recipe's where null.
    pub seed: Option<u64>,
    /// Optimizer and schedule.
    pub recipe: Recipe,
    /// Evaluation on the text in `validation`.
    #[serde(skip_serializing_if = "crate::is_default")]
    pub eval: Evaluate,
    /// Where the student's tokenizer does not give a text back: `refuse`, or `accept`.
    #[serde(skip_serializing_if = "crate::is_default")]
    pub lossy: Lossy,
}

fn is_one(x: &f32) -> bool {
    *x == 1.0
}

/// What ternary linears take throughout a training.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Taken {
    /// Floats: what the base models that people use take.
    Float,
    /// 8-bit codes with a step for each token.
    A8,
    /// 4-bit codes.
    A4,
}

impl StudentParams {
    /// Whether a teacher is in the loop, where these inputs are wired: it is not beside traces, nor where nothing is asked of it.
    fn has_in_loop(&self, wired: &[&str]) -> bool {
        wired.contains(&"teacher") && !wired.contains(&"traces") && (self.kd_weight > 0.0 || self.relation_layer.is_some())
    }

    /// What a program must know of a teacher of this shape, whose matrices are float16.
    fn taught_by(&self, config: ModelConfig) -> TeacherShape {
        let by_ce = self.token_weight == TokenWeight::TeacherCe;
        TeacherShape { config, packed: HeldPacked::new(), by_ce, relation_layer: self.relation_layer }
    }

    /// Share of the budget after which activations have 4 bits.
    fn flips_at(&self) -> Option<f64> {
        match self.activations {
            None => self.flip_fraction,
            Some(Taken::Float | Taken::A8) => None,
            Some(Taken::A4) => Some(0.0),
        }
    }

    /// The shape as far as a plan knows it.
    fn planned(&self) -> ModelConfig {
        let base = self.preset.planned(self.ternary_head);
        self.config(base.clone(), base.vocab)
    }

    /// The shape that a named one, or that of a model, becomes for a vocabulary.
    fn config(&self, mut config: ModelConfig, vocab: usize) -> ModelConfig {
        config.vocab = vocab;
        config.weights = self.weights;
        (config.group, config.scale) = (self.group, self.scale);
        (config.ternary_embedding, config.ternary_head) = (self.ternary_embedding, self.ternary_head);
        config.activations = if self.activations == Some(Taken::Float) { Activations::Float } else { Activations::Quantised };
        config.layers = self.layers.unwrap_or(config.layers);
        config.seq = self.seq.unwrap_or(config.seq);
        config.activation = self.activation.unwrap_or(config.activation);
        self.shape.apply(&mut config);
        config
    }
}

impl Default for StudentParams {
    fn default() -> Self {
        Self {
            preset: StudentPreset::Poc,
            init: None,
            layers: None,
            seq: None,
            weights: Weights::Absmean,
            group: Group::default(),
            scale: ScaleType::default(),
            ternary_embedding: false,
            ternary_head: false,
            activations: None,
            activation: None,
            shape: Shape::default(),
            ternary_schedule: TernarySchedule::default(),
            token_weight: TokenWeight::default(),
            relation_layer: None,
            relation_weight: 1.0,
            tau: 1.0,
            kd_scale: KdScale::default(),
            kd_weight: 1.0,
            ce_weight: 0.5,
            format_weight: 0.02,
            budget_tokens: 1_000_000,
            flip_fraction: Some(0.9),
            seed: None,
            recipe: Recipe::default(),
            eval: Evaluate::default(),
            lossy: Lossy::default(),
        }
    }
}

/// `train.bitnet`.
pub struct StudentStage;

impl Stage for StudentStage {
    type Params = StudentParams;
    const KIND: &'static str = "train.bitnet";
    const REVISION: u32 = 3;
    const SUMMARY: &'static str = "Distils a ternary student from projected traces, or trains one on a text.";
    const HEAVY: bool = true;

    fn inputs(&self) -> Vec<InputPort> {
        vec![
            InputPort::optional("traces", &["ProjectedTraces"], "Rows over the student's vocabulary."),
            InputPort::optional(
                "text",
                &["Text"],
                "In the place of traces: a text to train on, by cross-entropy alone, or with a `teacher` that reads it too.",
            ),
            InputPort::optional(
                "tokenizer",
                &["Tokenizer"],
                "The student's tokenizer; without it that of the model it begins as, or of the teacher.",
            ),
            InputPort::optional("init", &["Teacher", "Model"], "A model of the same blocks, whose parameters it starts from."),
            InputPort::optional(
                "teacher",
                &["Teacher", "Model"],
                "A teacher over the student's vocabulary that reads every batch of `text` on the same device, or what `init` takes.",
            ),
            InputPort::optional("validation", &["Text"], "Text to evaluate on while training; never trained on."),
        ]
    }
    fn outputs(&self) -> Vec<OutputPort> {
        vec![
            OutputPort::pure("student", "Model", "Model directory with float32 masters."),
            OutputPort::pure("log", "TrainLog", "Loss curve, flip and health records (JSON)."),
        ]
    }
    fn fingerprints(&self, p: &StudentParams, wired: &[&str]) -> Vec<(String, String)> {
        let planned = p.planned();
        let mut all = crate::fingerprints::training(Weights::Absmean, &planned);
        all.extend(init::fingerprints(p.preset, p.init.as_ref(), &planned));
        if p.ternary_schedule.softens() {
            all.extend(crate::fingerprints::softening());
        }
        if p.has_in_loop(wired) {
            all.extend(crate::fingerprints::in_loop());
        }
        all
    }
    fn check(&self, p: &StudentParams) -> Result<Vec<String>, ParamError> {
        p.recipe.check().map_err(|e| wrong("recipe", e))?;
        p.eval.check().map_err(|e| wrong("eval", e))?;
        let wrong = |path: &str, message: String| Err(ParamError { path: path.into(), message, help: None });
        if !(p.tau.is_finite() && p.tau > 0.0) {
            return wrong("tau", format!("{} is not above 0", p.tau));
        }
        let weights = [
            ("kd_weight", p.kd_weight),
            ("ce_weight", p.ce_weight),
            ("format_weight", p.format_weight),
            ("relation_weight", p.relation_weight),
        ];
        for (name, w) in weights {
            if !(w.is_finite() && w >= 0.0) {
                return wrong(name, format!("{w} is below 0"));
            }
        }
        if p.kd_weight + p.ce_weight + p.format_weight == 0.0 {
            return wrong("kd_weight", "all weights of the loss are 0".into());
        }
        p.ternary_schedule.check().map_err(|e| super::training::wrong("ternary_schedule", e))?;
        if p.ternary_schedule.softens() && p.weights != Weights::Absmean {
            return wrong("ternary_schedule", format!("`{}` is for `weights: absmean`", p.ternary_schedule.name()));
        }
        if p.weights == Weights::Float && matches!(p.activations, Some(Taken::A8 | Taken::A4)) {
            return wrong("activations", "full-precision linears take floats: leave it out, or choose ternary `weights`".into());
        }
        if p.activations.is_some() && p.flip_fraction != StudentParams::default().flip_fraction {
            return wrong("flip_fraction", "`activations` says what is taken throughout: leave one of the two out".into());
        }
        if let Some(f) = p.flip_fraction.filter(|f| !(0.0..=1.0).contains(f)) {
            return wrong("flip_fraction", format!("{f} is not a share between 0 and 1"));
        }
        let counts = [("budget_tokens", p.budget_tokens == 0), ("layers", p.layers == Some(0)), ("seq", p.seq == Some(0))];
        if let Some((name, _)) = counts.iter().find(|(_, zero)| *zero) {
            return wrong(name, "must be above 0".into());
        }
        init::check((p.preset, &p.shape), p.init.as_ref(), [("layers", p.layers.is_some()), ("activation", p.activation.is_some())])?;
        p.shape.check(p.planned())?;
        Ok(Vec::new())
    }
    fn wiring(&self, p: &StudentParams, wired: &[&str]) -> Result<(), StageError> {
        validation_is_wired(&p.eval, wired)?;
        init::wiring(p.init.as_ref(), wired)?;
        match (wired.contains(&"traces"), wired.contains(&"text")) {
            // The text is then what `init` is measured over.
            (true, true) if p.init.as_ref().is_some_and(Init::calibrates) => Ok(()),
            (true, true) => {
                Err(StageError::new("both `traces` and `text` are wired: a student learns from one of them").help("remove one"))
            }
            (false, false) => Err(StageError::new("neither `traces` nor `text` is wired: there is nothing to learn from")
                .help("wire `traces` to `kd.project`, or `text` to `data.text`")),
            (true, false) if wired.contains(&"teacher") && p.init.as_ref().is_none_or(|i| i.from != init::Source::Teacher) => {
                Err(StageError::new("both `traces` and `teacher` are wired: what a teacher said is in its traces")
                    .help("wire `text` in the place of `traces` for a teacher in the loop, or remove `teacher`"))
            }
            _ if !wired.contains(&"teacher") && (p.token_weight != TokenWeight::Even || p.relation_layer.is_some()) => {
                let name = if p.relation_layer.is_some() { "relation_layer" } else { "token_weight" };
                Err(StageError::new(format!("`{name}` is for a teacher in the loop: `teacher` is not wired"))
                    .help(format!("wire `teacher` and `text`, or remove `{name}`")))
            }
            _ => Ok(()),
        }
    }
    fn estimate(&self, p: &StudentParams, wired: &Wired<'_>) -> Option<Estimate> {
        let base = match p.init.as_ref().filter(|_| p.preset.named().is_none()) {
            Some(init) => beginning::planned(init, p.seq, wired)?,
            None => p.preset.planned(p.ternary_head),
        };
        let vocab = estimate::vocabulary(wired).unwrap_or(base.vocab);
        let config = p.config(base, vocab);
        let (top_k, evaluates) = (estimate::candidates(wired), wired.maker("validation").is_some());
        let ports: Vec<&str> = ["teacher", "traces"].into_iter().filter(|port| wired.maker(port).is_some()).collect();
        // One that is trained in this pipeline has no shape yet: half of an estimate would mislead.
        let teacher = if p.has_in_loop(&ports) { Some(p.taught_by(estimate::model_on(wired, "teacher")?)) } else { None };
        let beside = Beside { softens: p.ternary_schedule.softens(), teacher };
        estimate::training(&TrainingJob { config: &config, recipe: &p.recipe, tokens: p.budget_tokens, top_k, evaluates, beside })
    }
    fn run(&self, p: StudentParams, ctx: &TaskContext) -> Result<(), StageError> {
        let device = task::device(ctx)?;
        let taken = TakenModel::of(p.init.as_ref(), ctx)?;
        let own = OwnTokenizer::of(taken.as_ref(), ctx)?;
        let tokenizer = &own.tokenizer;
        let base = match (p.preset.named(), &p.init, &taken) {
            (None, Some(init), Some(taken)) => taken.shape(init, p.seq)?,
            _ => p.preset.planned(p.ternary_head),
        };
        let config = p.config(base, own.vocab);
        if let Some((field, why)) = config.problem() {
            return Err(StageError::new(format!("the student's shape: {field}: {why}")).help("change `init` or the parameter"));
        }
        let recipe = Recipe { seed: p.seed.unwrap_or(p.recipe.seed), lr: Some(p.recipe.peak()), ..p.recipe.clone() };
        // Weights as they were given; the loss has the KL's factor too.
        let given = LossWeights { kd: p.kd_weight, ce: p.ce_weight, format: p.format_weight };
        let begun =
            taken.map(|taken| beginning::start(p.init.as_ref(), taken, (&config, tokenizer), recipe.seed, &device, ctx)).transpose()?;
        let (start, started) = begun.unzip();
        let ports: Vec<&str> = ctx.task().inputs.iter().map(|i| i.port.as_str()).collect();
        let teacher = ctx.input_opt("teacher").filter(|_| p.has_in_loop(&ports));
        let teacher = teacher.map(|dir| in_loop(dir, &config, tokenizer, &p)).transpose()?;
        let mut fidelity = Fidelity::default();
        let ((mut loader, totals), said) = match ctx.input_opt("traces") {
            Some(traces) => (of_traces(&p, traces, tokenizer, config.seq, recipe.seed, ctx)?, given),
            None => {
                let text = read_text(ctx.input("text")?)?;
                let (tokens, found) = faithful::encode((tokenizer, WHOSE), &text, p.lossy, ctx)?;
                fidelity = found;
                let windows = Windows::of_text(&tokens, config.seq, tokenizer.bos());
                let totals = Totals { targets: windows.targets(), ..Totals::default() };
                // Nobody said what in a text is structure.
                match &teacher {
                    Some(_) => ((Loader::of(windows.taught(), recipe.seed), totals), LossWeights { format: 0.0, ..given }),
                    None => ((Loader::of(windows, recipe.seed), totals), LossWeights { kd: 0.0, ce: 1.0, format: 0.0 }),
                }
            }
        };
        let taught_by = teacher.as_ref().map(|t| TeacherInLoop {
            parameters: Some(t.model.config.parameters() as u64),
            targets: "every batch, whole distributions".into(),
            token_weight: p.token_weight,
        });
        let shape = (recipe.batch, config.seq, loader.top_k());
        let job = Training {
            config: config.clone(),
            recipe: &recipe,
            weights: LossWeights { kd: said.kd * p.kd_scale.factor(p.tau), ..said },
            tau: p.tau,
            budget_tokens: p.budget_tokens,
            flip_fraction: p.flips_at(),
            start,
            validation: validation(ctx, (p.eval, p.lossy), tokenizer, shape)?,
            ternary: p.ternary_schedule,
            teacher,
        };
        let trained = task::train(&job, &mut loader, &device, ctx)?;
        let progress = &trained.progress;
        let log = TrainLog {
            tau: Some(p.tau),
            kd_scale: Some(p.kd_scale),
            kd_weight: Some(said.kd),
            ce_weight: Some(said.ce),
            format_weight: Some(said.format),
            kd_rows: Some(totals.tails.rows),
            exact_tail_share: Some(totals.tails.share()),
            flip: Some(progress.flip),
            flip_fraction: Some(p.flips_at()),
            trace_tokens: Some(totals.targets),
            left_out_tokens: Some(totals.left_out),
            ternary_schedule: Some(p.ternary_schedule).filter(TernarySchedule::softens),
            teacher_in_loop: taught_by,
            init: started,
            ..training::log((p.preset.name(), &config), (&recipe, p.budget_tokens), fidelity, &trained)
        };
        let bits = match progress.flip {
            _ if p.activations == Some(Taken::Float) => None,
            Some(_) => Some(4),
            None => Some(8),
        };
        let extra = serde_json::json!({"preset": p.preset.name(), "activation_bits": bits, "health": progress.health.last()});
        let tensors = trained.tensors.iter().map(|(n, v)| (n.as_str(), v.as_slice()));
        own.save(ctx.output("student")?, &config, tensors, extra)?;
        measurements::write(ctx.output("log")?, &log)
    }
}

/// The model of a teacher that runs here, and its tokenizer.
pub(super) fn teacher_here(dir: &std::path::Path) -> Result<(Checkpoint, Tokenizer), StageError> {
    match Spec::read(dir)? {
        None => Ok(load_with_tokenizer(dir)?),
        Some(spec) => Err(StageError::new(format!("`teacher`: {}: a hosted teacher does not run here", spec.named()))
            .help("wire a model file (`teacher.file`); what a hosted one says comes to a student through `traces`, by `kd.project`")),
    }
}

/// The model in a directory as a teacher in the loop of a student of shape `config`.
fn in_loop(dir: &std::path::Path, config: &ModelConfig, tokenizer: &Tokenizer, p: &StudentParams) -> Result<InLoop, StageError> {
    let wrong = |why: String, help: &str| StageError::new(format!("`teacher`: {why}")).help(help);
    let through_traces = "wire `traces` to `kd.project`, which brings what any teacher says to the student's tokens";
    let (model, theirs) = teacher_here(dir)?;
    if theirs.digest() != tokenizer.digest() || model.config.vocab != config.vocab {
        return Err(wrong("it has another tokenizer than the student, whose tokens it cannot be asked about".into(), through_traces));
    }
    if model.config.seq < config.seq {
        let why = format!("windows of {} tokens: it was made for {}", config.seq, model.config.seq);
        return Err(wrong(why, "give the student a smaller `seq`, or `teacher.file` a larger one"));
    }
    if let Some(layer) = p.relation_layer.filter(|l| *l >= config.layers) {
        return Err(StageError::new(format!("relation_layer: {layer}: the student has {} layers, from 0 on", config.layers)));
    }
    let relation = p.relation_layer.map(|layer| Relation { layer, weight: p.relation_weight });
    Ok(InLoop { model, token_weight: p.token_weight, relation })
}

/// Windows over projected traces, which must be there and fit the tokenizer and the temperature.
fn of_traces<'a>(
    p: &StudentParams,
    traces: &std::path::Path,
    tokenizer: &'a Tokenizer,
    seq: usize,
    seed: u64,
    ctx: &TaskContext,
) -> Result<(Loader<'a, StageError>, Totals), StageError> {
    let reader = TraceReader::<ProjectedRow>::open(traces)?;
    if reader.meta().tokenizer_hash != tokenizer.digest() {
        return Err(StageError::new("the traces were projected onto another tokenizer than the student's")
            .help("give `kd.project` and `train.bitnet` the same `tokenizer`"));
    }
    if reader.meta().method_name() == "sampled" && p.tau != 1.0 {
        return Err(StageError::new(format!("tau = {}: the traces hold drawn tokens, which are targets at temperature 1 only", p.tau))
            .help("set `tau: 1`, or collect with `method: top_k` or `full`"));
    }
    let distillation = Distillation::new(p.tau, &reader.meta().taus);
    let taus = reader.meta().taus.clone();
    let (loader, totals) = windows_of_traces(reader, tokenizer, seq, distillation, seed)?;
    if totals.targets == 0 {
        return Err(StageError::new("the traces hold no row to train on").help("collect more: `kd.collect`"));
    }
    if p.kd_weight > 0.0 {
        say_tails(&distillation, &taus, &totals, ctx);
    }
    Ok((loader, totals))
}

/// Says how many rows have no exact tail at τ, why, and what adds one.
fn say_tails(distillation: &Distillation, taus: &[f32], totals: &Totals, ctx: &TaskContext) {
    let (tau, tails) = (distillation.tau(), totals.tails);
    ctx.metric("exact_tail_share", tails.share());
    if tails.exact == tails.rows {
        return;
    }
    let (without, rows) = (tails.rows - tails.exact, tails.rows);
    let share = 100.0 * (1.0 - tails.share());
    let cause = if distillation.has_tail() {
        "a candidate joined Other when they were projected, or they begin inside a teacher's token".to_owned()
    } else {
        let held: Vec<String> = [1.0].iter().chain(taus.iter().filter(|t| **t != 1.0)).map(f32::to_string).collect();
        format!("they hold tails at {} only: take one of these, or name {tau} in `kd.collect`'s `taus`", held.join(", "))
    };
    ctx.warn(format!(
        "tau = {tau}: {without} of {rows} rows ({share:.1} %) have no exact tail at this temperature ({cause}); their Other is tempered \
         as if it were one token, which is too sharp"
    ));
}
