//! `kd.collect` from a model that runs here: rows of given text, of its own continuations, and of a student's.

use flow_engine::plugin::{StageError, TaskContext};
use flow_shaders::device::Device;

use super::collect::{CollectParams, Precision};
use super::method::{self, Method};
use super::parts::{Drawn, Parts};
use super::scoring::{Keep, Scorer};
use super::template::Template;
use crate::data::{read_prompts, read_text};
use crate::lm::{self, Continuation, Generation, Window, generate, windows_together};
use crate::model::checkpoint::Checkpoint;
use crate::sample::{spread, spread_numbered};
use crate::tokenizer::Tokenizer;
use crate::traces::{SequenceRow, Source, TraceMeta};

/// A sequence that is still to be scored, in the teacher's tokens.
struct Continued {
    prompt: usize,
    sample: i32,
    source: Source,
    /// The context's tokens, then those that are scored.
    tokens: Vec<u32>,
    context: usize,
    finish: &'static str,
}

/// Collects from the model in the input `teacher`.
pub fn collect(p: &CollectParams, ctx: &TaskContext) -> Result<(), StageError> {
    if !p.stop.is_empty() {
        return Err(StageError::new("`stop` is for hosted teachers: a model that runs here ends at its own EOS").help("leave it out"));
    }
    let dir = ctx.input("teacher")?;
    let (teacher, tokenizer) = lm::load(dir)?;
    let text = ctx.input_opt("text").map(read_text).transpose()?;
    // A prompt keeps its place in the file as its number, however many are taken.
    let (places, prompts): (Vec<i64>, Vec<String>) = match ctx.input_opt("prompts") {
        Some(path) => spread_numbered(read_prompts(path)?, p.max_prompts, p.seed).into_iter().map(|(i, q)| (i as i64, q.prompt)).unzip(),
        None => Default::default(),
    };
    let vocab = teacher.config.vocab;
    if p.method == Method::Full {
        let of_text = text.as_deref().map_or(0, |t| tokenizer.encode(t).len() as u64).min(p.text_tokens.unwrap_or(u64::MAX));
        let of_prompts = (prompts.len() * p.samples * p.max_tokens) as u64;
        method::check_full(tokenizer.vocab_size(), of_text + of_prompts)?;
    }
    let keep = Keep {
        method: p.method,
        top_k: match p.method {
            Method::TopK => p.top_k.min(vocab),
            Method::Sampled => p.draws.min(vocab),
            Method::Full => tokenizer.vocab_size(),
        },
        draws: p.draws,
        // Drawn tokens hold for τ = 1 only.
        taus: if p.method == Method::Sampled { 0 } else { p.taus.len() },
        batch: windows_together(&teacher.config),
        seq: teacher.config.seq,
    };
    let template = Template::of(&p.template, dir, &tokenizer)?;
    let device = lm::device(ctx)?;
    let scorer = Scorer::new(&device, &teacher, &tokenizer, keep, &p.taus, p.seed)?;
    let meta = meta(p, &teacher, &tokenizer, &template, keep, lm::digest(dir)?);
    let mut job = Job { p, ctx, tokenizer: &tokenizer, scorer, keep, parts: Parts::new(ctx.state_dir(), &meta), places };
    if let Some(text) = text {
        // Windows of the text are numbered after the prompts, so that (prompt_idx, sample_idx) stays a key.
        job.text(&text, job.places.last().map_or(0, |i| i + 1))?;
    }
    if !prompts.is_empty() {
        let rendered: Vec<String> = prompts.iter().map(|q| template.render(q)).collect::<Result<_, _>>()?;
        let continued = match ctx.input_opt("student") {
            Some(student) => job.student_continues(student, &device, &rendered)?,
            None => job.teacher_continues(&teacher, &device, &rendered)?,
        };
        job.score(&continued, &rendered)?;
    }
    ctx.metric("rows", job.parts.join(ctx.output("traces")?)? as f64);
    Ok(())
}

fn meta(p: &CollectParams, teacher: &Checkpoint, tokenizer: &Tokenizer, template: &Template, keep: Keep, digest: String) -> TraceMeta {
    TraceMeta {
        teacher: format!("{} parameters, {} layers", teacher.config.parameters(), teacher.config.layers),
        teacher_digest: digest,
        template: template.source().into(),
        tokenizer_hash: tokenizer.digest(),
        eos_id: Some(tokenizer.eos() as i32),
        vocab: tokenizer.vocab_size(),
        method: p.method.name().into(),
        top_k: keep.top_k,
        taus: p.taus[..keep.taus].to_vec(),
        logprob_bits: (p.logprob_precision == Precision::Bits10).then_some(10),
        sampling: p.sampling(),
        ..TraceMeta::default()
    }
}

struct Job<'a> {
    p: &'a CollectParams,
    ctx: &'a TaskContext,
    tokenizer: &'a Tokenizer,
    scorer: Scorer,
    keep: Keep,
    parts: Parts<'a>,
    /// Places of the prompts in their file.
    places: Vec<i64>,
}

impl Job<'_> {
    fn text(&mut self, text: &str, first: i64) -> Result<(), StageError> {
        let tokens = self.tokenizer.encode(text);
        let windows = self.windows(&tokens);
        let total: usize = windows.iter().map(|w| w.targets.len()).sum();
        let (together, ctx, scorer) = (self.keep.batch, self.ctx, &mut self.scorer);
        let part = self.keep.part();
        for (n, windows) in windows.chunks(part).enumerate() {
            self.parts.next(|writer| {
                for (group, windows) in windows.chunks(together).enumerate() {
                    go_on(ctx)?;
                    let at = n * part + group * together;
                    let keys: Vec<(i64, i32)> = (0..windows.len()).map(|i| (first + (at + i) as i64, 0)).collect();
                    for ((prompt_idx, sample_idx), rows) in keys.iter().copied().zip(scorer.score(windows, &keys)?) {
                        let sequence = SequenceRow {
                            prompt_idx,
                            sample_idx,
                            source: Source::Text,
                            context: Vec::new(),
                            context_ids: None,
                            finish_reason: "text".into(),
                        };
                        writer.push(sequence, rows)?;
                    }
                }
                Ok(())
            })?;
            let done = ((n + 1) * part * self.keep.seq).min(total);
            self.ctx.progress(done as u64, total as u64, "text tokens");
        }
        Ok(())
    }

    /// Windows of the text, spread over the whole of it where `text_tokens` are fewer.
    fn windows<'a>(&self, tokens: &'a [u32]) -> Vec<Window<'a>> {
        let budget = self.p.text_tokens.map_or(tokens.len(), |n| n as usize).min(tokens.len());
        let all: Vec<&[u32]> = tokens.chunks(self.keep.seq).collect();
        let count = budget.div_ceil(self.keep.seq);
        let size = |chosen: &[usize]| chosen.iter().map(|i| all[*i].len()).sum::<usize>();
        let mut chosen = spread(all.len(), count, self.p.seed);
        // The last window of a text is short: with it among them one more is needed.
        if size(&chosen) < budget {
            chosen = spread(all.len(), count + 1, self.p.seed);
        }
        let mut left = budget;
        let cut = chosen.into_iter().map(|i| {
            let targets = &all[i][..all[i].len().min(left)];
            left -= targets.len();
            Window { first: self.tokenizer.bos(), targets }
        });
        cut.filter(|w| !w.targets.is_empty()).collect()
    }

    /// Which prompts are continued, each with its samples: those whose context leaves room in the window.
    fn asked(&self, contexts: &[Vec<u32>]) -> Vec<(usize, i32)> {
        let room = self.keep.seq.saturating_sub(1);
        let too_long = contexts.iter().filter(|e| e.len() > room).count();
        if too_long > 0 {
            self.ctx.warn(format!("{too_long} prompts are longer than the teacher's window of {} tokens and were left out", self.keep.seq));
        }
        let fits = (0..contexts.len()).filter(|i| contexts[*i].len() <= room);
        fits.flat_map(|i| (0..self.p.samples as i32).map(move |s| (i, s))).collect()
    }

    fn draw(
        &self,
        model: &Checkpoint,
        tokenizer: &Tokenizer,
        device: &Device,
        inputs: &[Vec<u32>],
        bits: u32,
    ) -> Result<Vec<Continuation>, StageError> {
        let how = Generation {
            batch: self.p.batch,
            max_tokens: self.p.max_tokens,
            sampling: Some((self.p.temperature, self.p.top_p)),
            seed: self.p.seed,
            bits,
            cache: self.p.kv_cache,
        };
        let (mut drawn, before) = Drawn::resume(self.ctx.state_dir())?;
        generate(model, tokenizer, device, inputs, &how, before, |all, new| {
            drawn.keep(&all[all.len() - new..])?;
            self.ctx.progress(all.len() as u64, inputs.len() as u64, "prompts");
            go_on(self.ctx)
        })
    }

    fn teacher_continues(&self, teacher: &Checkpoint, device: &Device, rendered: &[String]) -> Result<Vec<Continued>, StageError> {
        let contexts: Vec<Vec<u32>> = rendered.iter().map(|r| self.tokenizer.context(r)).collect();
        let asked = self.asked(&contexts);
        let inputs: Vec<Vec<u32>> = asked.iter().map(|(i, _)| contexts[*i].clone()).collect();
        let answers = self.draw(teacher, self.tokenizer, device, &inputs, 8)?;
        let continued = asked.iter().zip(inputs).zip(answers);
        Ok(continued.map(|((asked, context), a)| self.continued(*asked, Source::Sample, context, &a.tokens, a.stopped)).collect())
    }

    /// The student draws, in its own tokens; the teacher reads the bytes in its.
    fn student_continues(&self, dir: &std::path::Path, device: &Device, rendered: &[String]) -> Result<Vec<Continued>, StageError> {
        let (student, theirs) = lm::load(dir)?;
        let contexts: Vec<Vec<u32>> = rendered.iter().map(|r| self.tokenizer.context(r)).collect();
        let asked = self.asked(&contexts);
        let inputs: Vec<Vec<u32>> = asked.iter().map(|(i, _)| theirs.context(&rendered[*i])).collect();
        let bits = student.extra["activation_bits"].as_u64().map_or(8, |b| b as u32);
        let answers = self.draw(&student, &theirs, device, &inputs, bits)?;
        let continued = asked.iter().zip(answers).map(|(asked, a)| {
            let tokens = self.tokenizer.encode_bytes(&theirs.decode_bytes(&a.tokens));
            self.continued(*asked, Source::OnPolicy, contexts[asked.0].clone(), &tokens, a.stopped)
        });
        Ok(continued.collect())
    }

    fn continued(&self, (prompt, sample): (usize, i32), source: Source, context: Vec<u32>, answer: &[u32], stopped: bool) -> Continued {
        let end = stopped.then(|| self.tokenizer.eos());
        let (before, finish) = (context.len(), if stopped { "stop" } else { "length" });
        let tokens = context.into_iter().chain(answer.iter().copied()).chain(end).take(self.keep.seq + 1).collect();
        Continued { prompt, sample, source, tokens, context: before, finish }
    }

    fn score(&mut self, all: &[Continued], rendered: &[String]) -> Result<(), StageError> {
        let (together, ctx, scorer, places) = (self.keep.batch, self.ctx, &mut self.scorer, &self.places);
        for part in all.chunks(self.keep.part()) {
            self.parts.next(|writer| {
                for group in part.chunks(together) {
                    go_on(ctx)?;
                    let views: Vec<Window<'_>> = group.iter().map(|c| Window { first: c.tokens[0], targets: &c.tokens[1..] }).collect();
                    let keys: Vec<(i64, i32)> = group.iter().map(|c| (places[c.prompt], c.sample)).collect();
                    for (c, mut rows) in group.iter().zip(scorer.score(&views, &keys)?) {
                        let sequence = SequenceRow {
                            prompt_idx: places[c.prompt],
                            sample_idx: c.sample,
                            source: c.source,
                            context: rendered[c.prompt].clone().into_bytes(),
                            context_ids: None,
                            finish_reason: c.finish.into(),
                        };
                        rows.drain(..(c.context - 1).min(rows.len()));
                        writer.push(sequence, rows)?;
                    }
                }
                Ok(())
            })?;
        }
        Ok(())
    }
}

/// Tokens of a part: what a kill may undo.
const PART_TOKENS: usize = 8_192;

impl Keep {
    /// Windows of a part, whole groups of those that are scored together.
    fn part(&self) -> usize {
        (PART_TOKENS / (self.batch * self.seq)).max(1) * self.batch
    }
}

fn go_on(ctx: &TaskContext) -> Result<(), StageError> {
    if ctx.should_stop() { Err(StageError::interrupted()) } else { Ok(()) }
}
