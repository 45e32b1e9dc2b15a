//! `teacher.train`: a full-precision model trained in the pipeline.

use flow_engine::plugin::{Estimate, InputPort, OutputPort, ParamError, Stage, StageError, TaskContext, Wired};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use flow_lm::config::{ModelConfig, Preset, Weights};
use flow_lm::format;
use flow_lm::tokenizer::Tokenizer;
use flow_lm::train::{Beside, Evaluate, Loader, LossWeights, Recipe, Training, Windows};

use super::shape::Shape;
use super::training::{self, WHOSE, validation, validation_is_wired, wrong};
use crate::data::{Lossy, faithful, read_text};
use crate::estimate::{self, TrainingJob};
use crate::measurements::{self, TrainLog};
use crate::task;

/// Parameters of `teacher.train`.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct TeacherParams {
    /// Shape; its linears are trained in full precision, its vocabulary is the tokenizer's.
    pub preset: Preset,
    /// Blocks, where another number than the preset's is wanted.
    pub layers: Option<usize>,
    /// Window length in tokens, where another than the preset's is wanted.
    pub seq: Option<usize>,
    /// Other sizes than the preset's.
    #[serde(skip_serializing_if = "crate::is_default")]
    pub shape: Shape,
    /// Targets to see.
    pub tokens: u64,
    /// Optimizer and schedule.
    pub recipe: Recipe,
    /// Evaluation on the text in `validation`.
    #[serde(skip_serializing_if = "crate::is_default")]
    pub eval: Evaluate,
    /// Where the tokenizer does not give a text back: `refuse`, or `accept`.
    #[serde(skip_serializing_if = "crate::is_default")]
    pub lossy: Lossy,
}

impl TeacherParams {
    /// The shape for a vocabulary.
    fn config(&self, vocab: usize) -> ModelConfig {
        let mut config = self.preset.config();
        config.vocab = vocab;
        config.weights = Weights::Float;
        config.layers = self.layers.unwrap_or(config.layers);
        config.seq = self.seq.unwrap_or(config.seq);
        self.shape.apply(&mut config);
        config
    }
}

impl Default for TeacherParams {
    fn default() -> Self {
        Self {
            preset: Preset::PocTeacher,
            layers: None,
            seq: None,
            shape: Shape::default(),
            tokens: 400_000,
            recipe: Recipe::default(),
            eval: Evaluate::default(),
            lossy: Lossy::default(),
        }
    }
}

/// `teacher.train`.
pub struct TeacherStage;

impl Stage for TeacherStage {
    type Params = TeacherParams;
    const KIND: &'static str = "teacher.train";
    const REVISION: u32 = 3;
    const SUMMARY: &'static str = "Trains a full-precision language model to be the teacher.";
    const HEAVY: bool = true;

    fn inputs(&self) -> Vec<InputPort> {
        vec![
            InputPort::required("text", &["Text"], "What it learns."),
            InputPort::required("tokenizer", &["Tokenizer"], "Its tokenizer."),
            InputPort::optional("validation", &["Text"], "Text to evaluate on while training; never trained on."),
        ]
    }
    fn outputs(&self) -> Vec<OutputPort> {
        vec![
            OutputPort::pure("teacher", "Teacher", "Model directory."),
            OutputPort::pure("log", "TeacherLog", "Loss curve and health records (JSON)."),
        ]
    }
    fn fingerprints(&self, p: &TeacherParams, _: &[&str]) -> Vec<(String, String)> {
        crate::fingerprints::training(Weights::Float, &p.config(p.preset.config().vocab))
    }
    fn check(&self, p: &TeacherParams) -> Result<Vec<String>, ParamError> {
        p.recipe.check().map_err(|e| wrong("recipe", e))?;
        p.eval.check().map_err(|e| wrong("eval", e))?;
        let counts = [("tokens", p.tokens == 0), ("layers", p.layers == Some(0)), ("seq", p.seq == Some(0))];
        if let Some((name, _)) = counts.iter().find(|(_, zero)| *zero) {
            return Err(ParamError { path: (*name).into(), message: "must be above 0".into(), help: None });
        }
        p.shape.check(p.config(p.preset.config().vocab))?;
        Ok(Vec::new())
    }
    fn wiring(&self, p: &TeacherParams, wired: &[&str]) -> Result<(), StageError> {
        validation_is_wired(&p.eval, wired)
    }
    fn estimate(&self, p: &TeacherParams, wired: &Wired<'_>) -> Option<Estimate> {
        let config = p.config(estimate::vocabulary(wired).unwrap_or(p.preset.config().vocab));
        let evaluates = wired.maker("validation").is_some();
        estimate::training(&TrainingJob {
            config: &config,
            recipe: &p.recipe,
            tokens: p.tokens,
            top_k: 0,
            evaluates,
            beside: Beside::default(),
        })
    }
    fn run(&self, p: TeacherParams, ctx: &TaskContext) -> Result<(), StageError> {
        let tokenizer_path = ctx.input("tokenizer")?;
        let tokenizer = Tokenizer::load(tokenizer_path)?;
        let text = read_text(ctx.input("text")?)?;
        let config = p.config(tokenizer.vocab_size());
        let (tokens, fidelity) = faithful::encode((&tokenizer, WHOSE), &text, p.lossy, ctx)?;
        let windows = Windows::of_text(&tokens, config.seq, tokenizer.bos());
        let text_tokens = windows.targets();
        let mut loader = Loader::<StageError>::of(windows, p.recipe.seed);
        let job = Training {
            config: config.clone(),
            recipe: &p.recipe,
            weights: LossWeights { kd: 0.0, ce: 1.0, format: 0.0 },
            tau: 1.0,
            budget_tokens: p.tokens,
            flip_fraction: None,
            start: None,
            validation: validation(ctx, (p.eval, p.lossy), &tokenizer, (p.recipe.batch, config.seq, 0))?,
            ternary: Default::default(),
            teacher: None,
        };
        let trained = task::train(&job, &mut loader, &task::device(ctx)?, ctx)?;
        let recipe = Recipe { lr: Some(p.recipe.peak()), ..p.recipe.clone() };
        let log = training::log((p.preset.name(), &config), (&recipe, p.tokens), fidelity, &trained);
        let log = TrainLog { text_tokens: Some(text_tokens), ..log };
        let tensors = trained.tensors.iter().map(|(n, v)| (n.as_str(), v.as_slice()));
        format::save(ctx.output("teacher")?, &config, tensors, Some(tokenizer_path), &serde_json::json!({"preset": p.preset.name()}))?;
        measurements::write(ctx.output("log")?, &log)
    }
}
