//! `kd.collect`: the teacher's Top-K + Other on given text, and on its own sampled continuations of prompts.

use flow_engine::plugin::{InputPort, OutputPort, ParamError, Stage, StageError, TaskContext};
use flow_shaders::device::Device;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::POC_TEMPLATE;
use super::scoring::{Keep, score};
use super::template::{self, Template};
use crate::data::{read_prompts, read_text};
use crate::lm::{self, Generation, Window, generate, windows_together};
use crate::model::checkpoint::Checkpoint;
use crate::model::inference::{Inference, Uses};
use crate::tokenizer::Tokenizer;
use crate::traces::{RawRow, Sampling, SequenceRow, Source, TraceMeta, TraceWriter};
use crate::train::device_error;

/// Parameters of `kd.collect`.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct CollectParams {
    /// Candidates kept per row.
    pub top_k: usize,
    /// Temperatures at which the tail's log-sum-exp is stored, at most three.
    pub taus: Vec<f32>,
    /// Tokens of the text to score, in the teacher's tokens; all where null.
    pub text_tokens: Option<u64>,
    /// How a prompt is put to the teacher: a text with `{prompt}`, or `chat` for the teacher's own chat template.
    pub template: String,
    /// Prompts to continue; all where null.
    pub max_prompts: Option<usize>,
    /// Continuations of each prompt.
    pub samples: usize,
    /// Temperature of the continuations.
    pub temperature: f32,
    /// Nucleus of the continuations.
    pub top_p: f32,
    /// Tokens of a continuation, at most; the teacher's window also limits it.
    pub max_tokens: usize,
    /// Seed of the continuations.
    pub seed: u64,
    /// Texts that end a continuation; of hosted teachers only.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub stop: Vec<String>,
    /// Share of prompts that may fail before the stage does; of hosted teachers only.
    #[schemars(extend("x-key" = false))]
    pub max_failed: f64,
    /// Sequences decoded together; changes nothing but speed.
    #[schemars(extend("x-key" = false))]
    pub batch: usize,
}

impl Default for CollectParams {
    fn default() -> Self {
        Self {
            top_k: 20,
            taus: vec![1.0, 1.3, 2.0],
            text_tokens: None,
            template: POC_TEMPLATE.into(),
            max_prompts: None,
            samples: 1,
            temperature: 0.8,
            top_p: 0.95,
            max_tokens: 512,
            seed: 1234,
            stop: Vec::new(),
            max_failed: 0.02,
            batch: 64,
        }
    }
}

/// `kd.collect`.
pub struct CollectStage;

impl Stage for CollectStage {
    type Params = CollectParams;
    const KIND: &'static str = "kd.collect";
    const REVISION: u32 = 1;
    const SUMMARY: &'static str = "Collects a teacher's Top-K + Other on text and on its own continuations.";
    const HEAVY: bool = true;
    const NEEDS_SECRETS: bool = true;

    fn inputs(&self) -> Vec<InputPort> {
        vec![
            InputPort::required("teacher", &["Teacher"], "Who answers."),
            InputPort::optional("text", &["Text"], "Text to score."),
            InputPort::optional("prompts", &["Prompts"], "Prompts to continue."),
        ]
    }
    fn outputs(&self) -> Vec<OutputPort> {
        vec![OutputPort::pure("traces", "Traces", "Parquet: sequences and rows.")]
    }
    fn fingerprints(&self) -> Vec<(String, String)> {
        crate::fingerprints::inference()
    }
    fn check(&self, p: &CollectParams) -> Result<Vec<String>, ParamError> {
        let wrong = |path: &str, message: String| Err(ParamError { path: path.into(), message, help: None });
        if p.top_k == 0 || p.top_k > 64 {
            return wrong("top_k", format!("{} is not between 1 and 64", p.top_k));
        }
        if p.taus.len() > 3 || p.taus.iter().any(|t| !(t.is_finite() && *t > 0.0)) {
            return wrong("taus", "at most three temperatures above 0".into());
        }
        if !(p.temperature.is_finite() && p.temperature > 0.0) {
            return wrong("temperature", format!("{} is not above 0", p.temperature));
        }
        if !(p.top_p > 0.0 && p.top_p <= 1.0) {
            return wrong("top_p", format!("{} is not in (0, 1]", p.top_p));
        }
        template::check(&p.template)?;
        if p.samples == 0 || p.max_tokens == 0 || p.batch == 0 {
            return wrong("samples", "samples, max_tokens and batch must be above 0".into());
        }
        if !(0.0..=1.0).contains(&p.max_failed) {
            return wrong("max_failed", format!("{} is not a share between 0 and 1", p.max_failed));
        }
        Ok(Vec::new())
    }
    fn run(&self, p: CollectParams, ctx: &TaskContext) -> Result<(), StageError> {
        if let Some(asker) = super::hosted::open(ctx)? {
            return super::hosted::collect::collect(&p, ctx, &asker);
        }
        if !p.stop.is_empty() {
            return Err(StageError::new("`stop` is for hosted teachers: a model that runs here ends at its own EOS").help("leave it out"));
        }
        let dir = ctx.input("teacher")?;
        let (teacher, tokenizer) = lm::load(dir)?;
        if ctx.input_opt("text").is_none() && ctx.input_opt("prompts").is_none() {
            return Err(StageError::new("neither `text` nor `prompts` is wired: there is nothing to ask the teacher"));
        }
        let seq = teacher.config.seq;
        let batch = windows_together(&teacher.config);
        let keep = Keep { top_k: p.top_k.min(teacher.config.vocab), taus: p.taus.len(), batch, seq };
        let template = Template::of(&p.template, dir, &tokenizer)?;
        let meta = TraceMeta {
            teacher: format!("{} parameters, {} layers", teacher.config.parameters(), teacher.config.layers),
            teacher_digest: lm::digest(dir)?,
            template: template.source().into(),
            tokenizer_hash: tokenizer.digest(),
            eos_id: Some(tokenizer.eos() as i32),
            vocab: tokenizer.vocab_size(),
            top_k: keep.top_k,
            taus: p.taus.clone(),
            sampling: Sampling {
                temperature: f64::from(p.temperature),
                top_p: f64::from(p.top_p),
                max_tokens: p.max_tokens,
                samples: p.samples,
                seed: p.seed,
            },
            ..TraceMeta::default()
        };
        let device = lm::device(ctx)?;
        let uses = Uses { score: Some((batch, seq)), top_k: keep.top_k, taus: p.taus.clone(), ..Uses::default() };
        let mut scorer = Inference::new(&device, teacher.config.clone(), &teacher.tensors, uses).map_err(device_error)?;
        let mut writer = TraceWriter::<RawRow>::create(ctx.output("traces")?, &meta)?;
        let mut job = Job { p: &p, ctx, template: &template, tokenizer: &tokenizer, scorer: &mut scorer, keep, writer: &mut writer };
        let prompts: Vec<String> = match ctx.input_opt("prompts") {
            Some(path) => read_prompts(path)?.into_iter().take(p.max_prompts.unwrap_or(usize::MAX)).map(|q| q.prompt).collect(),
            None => Vec::new(),
        };
        if let Some(path) = ctx.input_opt("text") {
            // Windows of the text are numbered after the prompts, so that (prompt_idx, sample_idx) stays a key.
            job.text(&read_text(path)?, prompts.len())?;
        }
        job.prompts(&teacher, &device, &prompts)?;
        let counts = writer.finish()?;
        ctx.metric("rows", counts.rows as f64);
        Ok(())
    }
}

struct Job<'a> {
    p: &'a CollectParams,
    ctx: &'a TaskContext,
    template: &'a Template,
    tokenizer: &'a Tokenizer,
    scorer: &'a mut Inference,
    keep: Keep,
    writer: &'a mut TraceWriter<RawRow>,
}

impl Job<'_> {
    fn text(&mut self, text: &str, first: usize) -> Result<(), StageError> {
        let mut tokens = self.tokenizer.encode(text);
        tokens.truncate(self.p.text_tokens.map_or(usize::MAX, |n| n as usize));
        let first_token = self.tokenizer.bos();
        let windows: Vec<Window<'_>> = tokens.chunks(self.keep.seq).map(|targets| Window { first: first_token, targets }).collect();
        for (group, windows) in windows.chunks(self.keep.batch).enumerate() {
            if self.ctx.should_stop() {
                return Err(StageError::interrupted());
            }
            for (i, rows) in score(self.scorer, self.tokenizer, windows, self.keep)?.into_iter().enumerate() {
                let sequence = SequenceRow {
                    prompt_idx: (first + group * self.keep.batch + i) as i64,
                    sample_idx: 0,
                    source: Source::Text,
                    context: Vec::new(),
                    context_ids: None,
                    finish_reason: "text".into(),
                };
                self.writer.push(sequence, rows)?;
            }
            let done = ((group + 1) * self.keep.batch * self.keep.seq).min(tokens.len());
            self.ctx.progress(done as u64, tokens.len() as u64, "text tokens");
        }
        Ok(())
    }

    fn prompts(&mut self, teacher: &Checkpoint, device: &Device, prompts: &[String]) -> Result<(), StageError> {
        if prompts.is_empty() {
            return Ok(());
        }
        let rendered: Vec<String> = prompts.iter().map(|q| self.template.render(q)).collect::<Result<_, _>>()?;
        let room = self.keep.seq.saturating_sub(1);
        let encoded: Vec<Vec<u32>> = rendered.iter().map(|r| self.tokenizer.context(r)).collect();
        let too_long = encoded.iter().filter(|e| e.len() > room).count();
        if too_long > 0 {
            self.ctx.warn(format!("{too_long} prompts are longer than the teacher's window of {} tokens and were left out", self.keep.seq));
        }
        let asked: Vec<(usize, i32)> = (0..prompts.len())
            .filter(|i| encoded[*i].len() <= room)
            .flat_map(|i| (0..self.p.samples as i32).map(move |s| (i, s)))
            .collect();
        let inputs: Vec<Vec<u32>> = asked.iter().map(|(i, _)| encoded[*i].clone()).collect();
        let how = Generation {
            batch: self.p.batch,
            max_tokens: self.p.max_tokens,
            sampling: Some((self.p.temperature, self.p.top_p)),
            seed: self.p.seed,
            bits: 8,
        };
        let answers = generate(teacher, self.tokenizer, device, &inputs, &how, |done| {
            self.ctx.progress(done as u64, inputs.len() as u64, "prompts");
            if self.ctx.should_stop() { Err(StageError::interrupted()) } else { Ok(()) }
        })?;
        let whole: Vec<Vec<u32>> = inputs
            .iter()
            .zip(&answers)
            .map(|(prompt, a)| {
                let end = a.stopped.then(|| self.tokenizer.eos());
                prompt.iter().chain(&a.tokens).copied().chain(end).take(self.keep.seq + 1).collect()
            })
            .collect();
        for (group, windows) in whole.chunks(self.keep.batch).enumerate() {
            let views: Vec<Window<'_>> = windows.iter().map(|w| Window { first: w[0], targets: &w[1..] }).collect();
            for (i, mut rows) in score(self.scorer, self.tokenizer, &views, self.keep)?.into_iter().enumerate() {
                let n = group * self.keep.batch + i;
                let (prompt, sample) = asked[n];
                let sequence = SequenceRow {
                    prompt_idx: prompt as i64,
                    sample_idx: sample,
                    source: Source::Sample,
                    context: rendered[prompt].clone().into_bytes(),
                    context_ids: None,
                    finish_reason: if answers[n].stopped { "stop" } else { "length" }.into(),
                };
                rows.drain(..(inputs[n].len() - 1).min(rows.len()));
                self.writer.push(sequence, rows)?;
            }
        }
        Ok(())
    }
}
