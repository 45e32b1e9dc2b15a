//! `kd.collect` from a model that runs here: rows of given text, of its own continuations, and of a student's.

use flow_engine::plugin::{StageError, TaskContext};
use flow_lm::config::Bits;
use flow_lm::format::{Checkpoint, load_with_tokenizer};
use flow_lm::infer::{Continuation, Decoding, KvCache, Request, Sampling as Choosing, Session, Uses, Window, generate, windows_together};
use flow_lm::tokenizer::{TokenId, Tokenizer};
use flow_shaders::device::Device;

use super::collection::{CollectParams, Precision};
use super::method::{self, Method};
use super::parts::{Drawn, Parts};
use super::scoring::{Keep, Scorer};
use super::template::Template;
use crate::data::spread::{spread, spread_numbered};
use crate::data::{read_prompts, read_text};
use crate::task::{self, go_on};
use crate::traces::{Origin, SequenceRow, TraceMeta};

/// Activation bits of a model: those that are asked for, those at which its training ended, or eight.
pub fn bits_of(asked: Option<u32>, model: &Checkpoint) -> Bits {
    let ended_at = || model.extra["activation_bits"].as_u64().map(|b| b as u32);
    asked.or_else(ended_at).and_then(Bits::of).unwrap_or_default()
}

/// Sequences that are answered together.
const ANSWERS_TOGETHER: usize = 32;

/// A model's greedy answers to prompts, in their tokens; `visit` is told how many are there.
pub fn answers(
    device: &Device,
    model: &Checkpoint,
    tokenizer: &Tokenizer,
    prompts: Vec<Vec<TokenId>>,
    (bits, max_tokens, cache): (Bits, usize, KvCache),
    mut visit: impl FnMut(usize) -> Result<(), StageError>,
) -> Result<Vec<Continuation>, StageError> {
    let Some(longest) = prompts.iter().map(Vec::len).max() else { return Ok(Vec::new()) };
    let decoding = Decoding { batch: ANSWERS_TOGETHER, longest, max_tokens, draws: false, cache };
    let uses = decoding.uses(&model.config, prompts.len(), Uses::default());
    let mut session = Session::new(device, model.config.clone(), &model.tensors, uses)?;
    session.set_bits(bits)?;
    let requests = requests(prompts, &decoding, &session, tokenizer, &Choosing::greedy());
    generate(&mut session, &requests, Vec::new(), |all, _| visit(all.len()))
}

/// Requests for continuations of prompts, the place of each its draw.
fn requests(prompts: Vec<Vec<TokenId>>, how: &Decoding, session: &Session, tokenizer: &Tokenizer, sampling: &Choosing) -> Vec<Request> {
    let room = how.room(session.config());
    let one = |(draw, prompt): (usize, Vec<TokenId>)| Request {
        max_tokens: how.max_tokens.min(room + 1 - prompt.len()),
        prompt,
        sampling: sampling.clone(),
        draw: draw as u64,
        ends: tokenizer.ends().to_vec(),
        ..Request::default()
    };
    prompts.into_iter().enumerate().map(one).collect()
}

/// A sequence that is still to be scored, in the teacher's tokens.
struct Continued {
    prompt: usize,
    sample: i32,
    source: Origin,
    /// The context's tokens, then those that are scored.
    tokens: Vec<TokenId>,
    context: usize,
    finish: &'static str,
}

/// Collects from the model in the input `teacher`.
pub fn collect(p: &CollectParams, ctx: &TaskContext) -> Result<(), StageError> {
    if !p.stop.is_empty() {
        return Err(StageError::new("`stop` is for hosted teachers: a model that runs here ends at its own EOS").help("leave it out"));
    }
    let dir = ctx.input("teacher")?;
    let (teacher, tokenizer) = load_with_tokenizer(dir)?;
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
    let device = task::device(ctx)?;
    let rendered: Vec<String> = prompts.iter().map(|q| template.render(q)).collect::<Result<_, _>>()?;
    let contexts: Vec<Vec<TokenId>> = rendered.iter().map(|r| tokenizer.context(r)).collect();
    let asked = asked(p, &contexts, keep.seq, ctx);
    let student = ctx.input_opt("student").filter(|_| !prompts.is_empty());
    // One session of the teacher scores and, where it continues prompts itself, decodes: its weights are there once.
    let mut uses = keep.uses(&p.taus);
    let inputs: Vec<Vec<TokenId>> = asked.iter().map(|(i, _)| contexts[*i].clone()).collect();
    let decoding = decoding(p, &inputs);
    if let (None, Some(decoding)) = (student, &decoding) {
        uses = decoding.uses(&teacher.config, inputs.len(), uses);
    }
    let session = Session::new(&device, teacher.config.clone(), &teacher.tensors, uses)?;
    let scorer = Scorer::new(session, &tokenizer, keep, &p.taus, p.seed);
    let meta = meta(p, &teacher, &tokenizer, &template, keep, task::digest(dir)?);
    let mut job =
        Collection { p, ctx, tokenizer: &tokenizer, scorer, keep, parts: Parts::new(ctx.state_dir(), &meta), places, rendered, contexts };
    if let Some(text) = text {
        // Windows of the text are numbered after the prompts, so that (prompt_idx, sample_idx) stays a key.
        job.text(&text, job.places.last().map_or(0, |i| i + 1))?;
    }
    if !prompts.is_empty() {
        let continued = match (student, decoding) {
            (Some(student), _) => job.student_continues(student, &device, &asked)?,
            (None, Some(decoding)) => job.teacher_continues(inputs, &asked, &decoding)?,
            (None, None) => Vec::new(),
        };
        job.score(&continued)?;
    }
    ctx.metric("rows", job.parts.join(ctx.output("traces")?)? as f64);
    Ok(())
}

/// Which prompts are continued, each with its samples: those whose context leaves room in the window.
fn asked(p: &CollectParams, contexts: &[Vec<TokenId>], seq: usize, ctx: &TaskContext) -> Vec<(usize, i32)> {
    let room = seq.saturating_sub(1);
    let too_long = contexts.iter().filter(|e| e.len() > room).count();
    if too_long > 0 {
        ctx.warn(format!("{too_long} prompts are longer than the teacher's window of {seq} tokens and were left out"));
    }
    let fits = (0..contexts.len()).filter(|i| contexts[*i].len() <= room);
    fits.flat_map(|i| (0..p.samples as i32).map(move |s| (i, s))).collect()
}

/// How these prompts are continued; nothing where there are none.
fn decoding(p: &CollectParams, inputs: &[Vec<TokenId>]) -> Option<Decoding> {
    let longest = inputs.iter().map(Vec::len).max()?;
    Some(Decoding { batch: p.batch, longest, max_tokens: p.max_tokens, draws: true, cache: p.kv_cache })
}

/// Draws a continuation of every prompt, from where an earlier attempt stopped.
fn draw(
    (p, ctx): (&CollectParams, &TaskContext),
    session: &mut Session,
    tokenizer: &Tokenizer,
    inputs: Vec<Vec<TokenId>>,
    decoding: &Decoding,
) -> Result<Vec<Continuation>, StageError> {
    let (mut drawn, before) = Drawn::resume(ctx.state_dir())?;
    let total = inputs.len() as u64;
    let requests = requests(inputs, decoding, session, tokenizer, &Choosing::nucleus(p.temperature, p.top_p, p.seed));
    generate(session, &requests, before, |all, new| {
        drawn.keep(&all[all.len() - new..])?;
        ctx.progress(all.len() as u64, total, "prompts");
        go_on(ctx)
    })
}

fn meta(p: &CollectParams, teacher: &Checkpoint, tokenizer: &Tokenizer, template: &Template, keep: Keep, digest: String) -> TraceMeta {
    TraceMeta {
        teacher: format!("{} parameters, {} layers", teacher.config.parameters(), teacher.config.layers),
        teacher_digest: digest,
        template: template.source().into(),
        tokenizer_hash: tokenizer.digest(),
        eos_id: Some(tokenizer.eos().signed()),
        vocab: tokenizer.vocab_size(),
        method: p.method.name().into(),
        top_k: keep.top_k,
        taus: p.taus[..keep.taus].to_vec(),
        logprob_bits: (p.logprob_precision == Precision::Bits10).then_some(10),
        sampling: p.sampling(),
        ..TraceMeta::default()
    }
}

struct Collection<'a> {
    p: &'a CollectParams,
    ctx: &'a TaskContext,
    tokenizer: &'a Tokenizer,
    scorer: Scorer,
    keep: Keep,
    parts: Parts<'a>,
    /// Places of the prompts in their file.
    places: Vec<i64>,
    /// The prompts as the teacher reads them, as text and as its tokens.
    rendered: Vec<String>,
    contexts: Vec<Vec<TokenId>>,
}

impl Collection<'_> {
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
                            source: Origin::Text,
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
    fn windows<'a>(&self, tokens: &'a [TokenId]) -> Vec<Window<'a>> {
        let budget = self.p.text_tokens.map_or(tokens.len(), |n| n as usize).min(tokens.len());
        let all: Vec<&[TokenId]> = tokens.chunks(self.keep.seq).collect();
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

    fn teacher_continues(
        &mut self,
        inputs: Vec<Vec<TokenId>>,
        asked: &[(usize, i32)],
        how: &Decoding,
    ) -> Result<Vec<Continued>, StageError> {
        let answers = draw((self.p, self.ctx), self.scorer.session(), self.tokenizer, inputs, how)?;
        let continued = asked.iter().zip(answers);
        Ok(continued.map(|(asked, a)| self.continued(*asked, Origin::Sample, &a.tokens, a.stopped)).collect())
    }

    /// The student draws, in its own tokens; the teacher reads the bytes in its.
    fn student_continues(&self, dir: &std::path::Path, device: &Device, asked: &[(usize, i32)]) -> Result<Vec<Continued>, StageError> {
        let (student, theirs) = load_with_tokenizer(dir)?;
        let inputs: Vec<Vec<TokenId>> = asked.iter().map(|(i, _)| theirs.context(&self.rendered[*i])).collect();
        let Some(how) = decoding(self.p, &inputs) else { return Ok(Vec::new()) };
        let uses = how.uses(&student.config, inputs.len(), Uses::default());
        let mut session = Session::new(device, student.config.clone(), &student.tensors, uses)?;
        session.set_bits(bits_of(None, &student))?;
        let answers = draw((self.p, self.ctx), &mut session, &theirs, inputs, &how)?;
        let continued = asked.iter().zip(answers).map(|(asked, a)| {
            let tokens = self.tokenizer.encode_bytes(&theirs.decode_bytes(&a.tokens));
            self.continued(*asked, Origin::OnPolicy, &tokens, a.stopped)
        });
        Ok(continued.collect())
    }

    fn continued(&self, (prompt, sample): (usize, i32), source: Origin, answer: &[TokenId], stopped: bool) -> Continued {
        let context = &self.contexts[prompt];
        let end = stopped.then(|| self.tokenizer.eos());
        let (before, finish) = (context.len(), if stopped { "stop" } else { "length" });
        let tokens = context.iter().chain(answer).copied().chain(end).take(self.keep.seq + 1).collect();
        Continued { prompt, sample, source, tokens, context: before, finish }
    }

    fn score(&mut self, all: &[Continued]) -> Result<(), StageError> {
        let (together, ctx, scorer, places) = (self.keep.batch, self.ctx, &mut self.scorer, &self.places);
        let rendered = &self.rendered;
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
