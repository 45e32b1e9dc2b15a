//! `kd.collect` from a model whose tokenizer is known, wherever it runs: rows of given text, of its own continuations, and of a
//! student's.

use std::path::Path;

use flow_engine::plugin::{StageError, TaskContext};
use flow_lm::config::ModelConfig;
use flow_lm::format::load_with_tokenizer;
use flow_lm::infer::{Continuation, Decoding, Session, Uses, Window};
use flow_lm::tokenizer::{Fidelity, TokenId, Tokenizer};

use super::collection::{CollectParams, Precision};
use super::continuations::{bits_of, draw};
use super::method::{self, Method};
use super::parts::Parts;
use super::scoring::Keep;
use super::template::Template;
use crate::data::spread::{spread, spread_numbered};
use crate::data::{faithful, read_prompts, read_text};
use crate::task::{self, go_on};
use crate::traces::{Origin, RawRow, SequenceRow, TraceMeta};

/// Whose tokenizer it is, in messages.
const WHOSE: &str = "the teacher's";

/// What a collection asks of a teacher.
pub trait Teaches {
    /// Continues every prompt: the place of each is its draw.
    fn draw(&mut self, prompts: Vec<Vec<TokenId>>, how: &Decoding) -> Result<Vec<Continuation>, StageError>;

    /// Rows of every window (at most as many as are kept together): row `t` is the distribution that token `t` was drawn from.
    /// `keys` name the windows: what is drawn for one does not depend on the others.
    fn score(&mut self, windows: &[Window<'_>], keys: &[(i64, i32)]) -> Result<Vec<Vec<RawRow>>, StageError>;
}

/// What is to be collected, in the teacher's tokens.
pub struct Wanted<'a> {
    p: &'a CollectParams,
    ctx: &'a TaskContext,
    tokenizer: &'a Tokenizer,
    keep: Keep,
    /// The text in the teacher's tokens.
    text: Option<Vec<TokenId>>,
    /// Places of the prompts in their file.
    places: Vec<i64>,
    /// The prompts as the teacher reads them, as text and as its tokens.
    rendered: Vec<String>,
    contexts: Vec<Vec<TokenId>>,
    /// Which of them are continued, each with its samples.
    asked: Vec<(usize, i32)>,
    /// The directory of the student that continues in the teacher's place.
    student: Option<&'a Path>,
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

impl<'a> Wanted<'a> {
    /// Reads the task's inputs for a teacher of `vocab` tokens.
    pub fn read(
        (p, ctx): (&'a CollectParams, &'a TaskContext),
        (tokenizer, template): (&'a Tokenizer, &Template),
        keep: Keep,
    ) -> Result<Self, StageError> {
        if !p.stop.is_empty() {
            return Err(StageError::new("`stop` is for teachers that keep their tokenizer to themselves: this one ends at its own EOS")
                .help("leave it out"));
        }
        let whose = (tokenizer, WHOSE);
        let text = match ctx.input_opt("text").map(read_text).transpose()? {
            Some(text) => Some(faithful::encode(whose, &text, p.lossy, ctx)?.0),
            None => None,
        };
        // A prompt keeps its place in the file as its number, however many are taken.
        let (places, prompts): (Vec<i64>, Vec<String>) = match ctx.input_opt("prompts") {
            Some(path) => {
                spread_numbered(read_prompts(path)?, p.max_prompts, p.seed).into_iter().map(|(i, q)| (i as i64, q.prompt)).unzip()
            }
            None => Default::default(),
        };
        if p.method == Method::Full {
            let of_text = text.as_ref().map_or(0, |t| t.len() as u64).min(p.text_tokens.unwrap_or(u64::MAX));
            let of_prompts = (prompts.len() * p.samples * p.max_tokens) as u64;
            method::check_full(tokenizer.vocab_size(), of_text + of_prompts)?;
        }
        let rendered: Vec<String> = prompts.iter().map(|q| template.render(q)).collect::<Result<_, _>>()?;
        let contexts =
            faithful::encode_all(whose, &rendered, p.lossy, ctx)?.into_iter().map(|ids| tokenizer.with_bos(ids)).collect::<Vec<_>>();
        let asked = asked(p, &contexts, keep.seq, ctx);
        let student = ctx.input_opt("student").filter(|_| !prompts.is_empty());
        Ok(Self { p, ctx, tokenizer, keep, text, places, rendered, contexts, asked, student })
    }

    fn inputs(&self) -> Vec<Vec<TokenId>> {
        self.asked.iter().map(|(i, _)| self.contexts[*i].clone()).collect()
    }

    /// What the teacher continues: nothing where a student does.
    pub fn continues(&self) -> Option<(Decoding, usize)> {
        let inputs = self.inputs();
        decoding(self.p, &inputs).filter(|_| self.student.is_none()).map(|how| (how, inputs.len()))
    }

    /// Asks the teacher, and writes the traces.
    pub fn collect(mut self, teacher: impl Teaches, meta: &TraceMeta) -> Result<(), StageError> {
        let (ctx, places) = (self.ctx, self.places.last().map_or(0, |i| i + 1));
        let text = self.text.take();
        let mut job = Collection { parts: Parts::new(ctx.state_dir(), meta), wanted: self, teacher };
        if let Some(text) = text {
            // Windows of the text are numbered after the prompts, so that (prompt_idx, sample_idx) stays a key.
            job.text(&text, places)?;
        }
        let continued = match job.wanted.student {
            Some(student) => job.wanted.student_continues(student)?,
            None => job.teacher_continues()?,
        };
        job.score(&continued)?;
        ctx.metric("rows", job.parts.join(ctx.output("traces")?)? as f64);
        Ok(())
    }
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

/// What a model is, in the words of traces.
pub fn named(config: &ModelConfig) -> String {
    format!("{} parameters, {} layers", config.parameters(), config.layers)
}

/// The metadata of traces; `teacher` and `digest` say whose they are.
pub fn meta(p: &CollectParams, tokenizer: &Tokenizer, template: &Template, keep: Keep, (teacher, digest): (String, String)) -> TraceMeta {
    TraceMeta {
        teacher,
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

struct Collection<'a, T> {
    wanted: Wanted<'a>,
    teacher: T,
    parts: Parts<'a>,
}

impl<T: Teaches> Collection<'_, T> {
    fn text(&mut self, tokens: &[TokenId], first: i64) -> Result<(), StageError> {
        let windows = self.wanted.windows(tokens);
        let total: usize = windows.iter().map(|w| w.targets.len()).sum();
        let (keep, ctx, teacher) = (self.wanted.keep, self.wanted.ctx, &mut self.teacher);
        let (part, together) = (keep.part(), keep.batch);
        for (n, windows) in windows.chunks(part).enumerate() {
            self.parts.next(|writer| {
                for (group, windows) in windows.chunks(together).enumerate() {
                    go_on(ctx)?;
                    let at = n * part + group * together;
                    let keys: Vec<(i64, i32)> = (0..windows.len()).map(|i| (first + (at + i) as i64, 0)).collect();
                    for ((prompt_idx, sample_idx), rows) in keys.iter().copied().zip(teacher.score(windows, &keys)?) {
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
            let done = ((n + 1) * part * keep.seq).min(total);
            ctx.progress(done as u64, total as u64, "text tokens");
        }
        Ok(())
    }

    fn score(&mut self, all: &[Continued]) -> Result<(), StageError> {
        let (keep, ctx, teacher) = (self.wanted.keep, self.wanted.ctx, &mut self.teacher);
        let (places, rendered) = (&self.wanted.places, &self.wanted.rendered);
        for part in all.chunks(keep.part()) {
            self.parts.next(|writer| {
                for group in part.chunks(keep.batch) {
                    go_on(ctx)?;
                    let views: Vec<Window<'_>> = group.iter().map(|c| Window { first: c.tokens[0], targets: &c.tokens[1..] }).collect();
                    let keys: Vec<(i64, i32)> = group.iter().map(|c| (places[c.prompt], c.sample)).collect();
                    for (c, mut rows) in group.iter().zip(teacher.score(&views, &keys)?) {
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

    fn teacher_continues(&mut self) -> Result<Vec<Continued>, StageError> {
        let wanted = &self.wanted;
        let Some((how, _)) = wanted.continues() else { return Ok(Vec::new()) };
        let answers = self.teacher.draw(wanted.inputs(), &how)?;
        let continued = wanted.asked.iter().zip(answers);
        Ok(continued.map(|(asked, a)| wanted.continued(*asked, Origin::Sample, &a.tokens, a.stopped)).collect())
    }
}

impl Wanted<'_> {
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

    /// The student draws, in its own tokens; the teacher reads the bytes in its.
    fn student_continues(&self, dir: &Path) -> Result<Vec<Continued>, StageError> {
        let device = task::device(self.ctx)?;
        let (student, theirs) = load_with_tokenizer(dir)?;
        let inputs: Vec<Vec<TokenId>> = self.asked.iter().map(|(i, _)| theirs.context(&self.rendered[*i])).collect();
        let Some(how) = decoding(self.p, &inputs) else { return Ok(Vec::new()) };
        let uses = how.uses(&student.config, inputs.len(), Uses::default());
        let mut session = Session::new(&device, student.config.clone(), &student.tensors, uses)?;
        session.set_bits(bits_of(None, &student))?;
        let answers = draw((self.p, self.ctx), &mut session, &theirs, inputs, &how)?;
        // Rows are the bytes that the student wrote, or none.
        let mut lost = Fidelity::default();
        let continued = self.asked.iter().zip(answers).map(|(asked, a)| {
            let written = theirs.decode_bytes(&a.tokens);
            let tokens = self.tokenizer.encode_bytes(&written);
            lost.add(Fidelity::of(&written, &self.tokenizer.decode_bytes(&tokens)));
            self.continued(*asked, Origin::OnPolicy, &tokens, a.stopped)
        });
        let continued = continued.collect();
        faithful::judge(&lost, WHOSE, self.p.lossy, self.ctx)?;
        Ok(continued)
    }

    fn continued(&self, (prompt, sample): (usize, i32), source: Origin, answer: &[TokenId], stopped: bool) -> Continued {
        let context = &self.contexts[prompt];
        let end = stopped.then(|| self.tokenizer.eos());
        let (before, finish) = (context.len(), if stopped { "stop" } else { "length" });
        let tokens = context.iter().chain(answer).copied().chain(end).take(self.keep.seq + 1).collect();
        Continued { prompt, sample, source, tokens, context: before, finish }
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
