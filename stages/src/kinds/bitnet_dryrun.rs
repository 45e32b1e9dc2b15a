//! `bitnet.dryrun`: what a shape needs to run and to train, alone or beside a teacher, planned; and, where it fits, allocated
//! and run with random packed weights.

use flow_engine::plugin::{InputPort, OutputPort, ParamError, Stage, StageError, TaskContext};
use flow_lm::config::{Activations, Group, ModelConfig, Weights};
use flow_lm::infer::{Session, Uses};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::init::StudentPreset;
use super::train_bitnet::teacher_here;
use crate::eval::dryrun::{execute, training, training_beside};
use crate::task;

/// Whether to allocate and run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(untagged)]
pub enum Run {
    /// Yes or no.
    Always(bool),
    /// Where the plan fits.
    Auto(Auto),
}

/// The word `auto`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Auto {
    /// Run where the plan fits the free memory.
    Auto,
}

/// Parameters of `bitnet.dryrun`.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct DryRunParams {
    /// Shape; `init`: that of the model in `teacher`, its linears ternary in groups of 64 where these divide
    /// its rows, its activations float.
    pub preset: StudentPreset,
    /// Tokens of the forward pass.
    pub seq: usize,
    /// Sequences.
    pub batch: usize,
    /// `true`, `false`, or `auto`: run where the plan fits `max_memory` of what is free.
    pub run: Run,
    /// Share of the free memory that `auto` may take.
    pub max_memory: f64,
    /// Seed of the random weights.
    pub seed: u64,
}

impl Default for DryRunParams {
    fn default() -> Self {
        Self { preset: StudentPreset::B7, seq: 64, batch: 1, run: Run::Auto(Auto::Auto), max_memory: 0.85, seed: 1234 }
    }
}

impl DryRunParams {
    /// The student's shape; over its teacher's vocabulary, where there is one.
    fn config(&self, teacher: Option<&ModelConfig>) -> ModelConfig {
        let shape = match (self.preset.named(), teacher) {
            (None, Some(of)) => ModelConfig {
                weights: Weights::Absmean,
                group: Group::Of(64),
                activations: Activations::Float,
                ternary_embedding: false,
                ternary_head: false,
                ..of.clone()
            },
            (named, _) => named.unwrap_or(flow_lm::config::Preset::B7).config(),
        };
        let divides = |d: usize| d.is_multiple_of(64);
        let group = match shape.group {
            Group::Of(64) if ![shape.dim, shape.mlp, shape.heads * shape.head_dim].into_iter().all(divides) => Group::Tensor,
            group => group,
        };
        ModelConfig { group, vocab: teacher.map_or(shape.vocab, |t| t.vocab), seq: self.seq, ..shape }
    }
}

/// `bitnet.dryrun`.
pub struct DryRunStage;

impl Stage for DryRunStage {
    type Params = DryRunParams;
    const KIND: &'static str = "bitnet.dryrun";
    const REVISION: u32 = 2;
    const SUMMARY: &'static str = "Plans a shape's memory and, where it fits, runs it packed at A8 and A4.";
    const HEAVY: bool = true;

    fn inputs(&self) -> Vec<InputPort> {
        let help = "A model that would be in the loop of a training: its step is planned too.";
        vec![InputPort::optional("teacher", &["Teacher", "Model"], help)]
    }
    fn outputs(&self) -> Vec<OutputPort> {
        vec![OutputPort::measured("report", "DryRun", "Planned and measured memory, speed (JSON).")]
    }
    fn fingerprints(&self, _: &Self::Params, _: &[&str]) -> Vec<(String, String)> {
        crate::fingerprints::inference()
    }
    fn check(&self, p: &DryRunParams) -> Result<Vec<String>, ParamError> {
        if p.seq == 0 || p.batch == 0 {
            return Err(ParamError { path: "seq".into(), message: "seq and batch must be above 0".into(), help: None });
        }
        if !(p.max_memory > 0.0 && p.max_memory <= 1.0) {
            return Err(ParamError { path: "max_memory".into(), message: format!("{} is not in (0, 1]", p.max_memory), help: None });
        }
        Ok(Vec::new())
    }
    fn wiring(&self, p: &DryRunParams, wired: &[&str]) -> Result<(), StageError> {
        if p.preset.named().is_none() && !wired.contains(&"teacher") {
            return Err(
                StageError::new("`preset: init` is the shape of a model: `teacher` is not wired").help("wire `teacher`, or name a preset")
            );
        }
        Ok(())
    }
    fn run(&self, p: DryRunParams, ctx: &TaskContext) -> Result<(), StageError> {
        let teacher = ctx.input_opt("teacher").map(teacher_here).transpose()?.map(|(model, _)| model);
        let config = p.config(teacher.as_ref().map(|t| &t.config));
        if let Some((field, why)) = config.problem() {
            return Err(StageError::new(format!("the student's shape: {field}: {why}")).help("name another preset"));
        }
        let uses = Uses { score: Some((p.batch, p.seq)), logits: true, half_tables: true, ..Uses::default() };
        let device = task::device(ctx)?;
        let planned = Session::planned_bytes_on(&device, config.clone(), &uses);
        let free = device.free_memory();
        let fits = free.is_none_or(|f| planned as f64 <= p.max_memory * f as f64);
        let why_not = match p.run {
            Run::Always(true) => None,
            Run::Always(false) => Some("`run: false`: planned only".to_owned()),
            Run::Auto(_) if fits => None,
            Run::Auto(_) => Some(format!(
                "{} MiB are planned, {} of {} MiB free may be taken",
                planned >> 20,
                (p.max_memory * free.unwrap_or(0) as f64) as u64 >> 20,
                free.unwrap_or(0) >> 20
            )),
        };
        let mut out = json!({
            "preset": p.preset.name(), "config": config, "parameters": config.parameters(), "seq": p.seq, "batch": p.batch,
            "planned_bytes": planned, "free_bytes": free, "ran": why_not.is_none(), "why_not": why_not, "device": device.name(),
            "training": training((p.batch, p.seq), &config),
        });
        if let Some(model) = teacher {
            out["training_in_loop"] = training_beside((p.batch, p.seq), &config, model);
        }
        if why_not.is_none() {
            if !fits && matches!(p.run, Run::Always(true)) {
                return Err(StageError::new(format!(
                    "out of memory before it happens: {} needs {} MiB, {} MiB are free",
                    p.preset.name(),
                    planned >> 20,
                    free.unwrap_or(0) >> 20
                ))
                .help("choose a smaller preset or sequence, or say `run: auto`"));
            }
            let measured = execute((&config, p.preset.name()), uses, p.seed, &device, ctx)?;
            for (key, value) in measured.as_object().into_iter().flatten() {
                out[key] = value.clone();
            }
            if let Some(m) = out["measured_bytes"].as_u64() {
                out["ratio"] = json!(m as f64 / planned as f64);
            }
        }
        task::write_json(ctx.output("report")?, &out)
    }
}
