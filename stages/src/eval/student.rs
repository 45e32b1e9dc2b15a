//! The student against its teacher on held-out text and prompts, and QEI from measured figures.

use std::path::Path;
use std::time::UNIX_EPOCH;

use flow_engine::plugin::{StageError, TaskContext};
use flow_lm::config::{Bits, ModelConfig, Weights};
use flow_lm::format::{Checkpoint, load_with_tokenizer};
use flow_lm::infer::{KvCache, Session};
use flow_lm::tokenizer::{TokenId, Tokenizer};
use flow_shaders::device::Device;
use serde_json::json;

use super::quality::{Heldout, agreement, bits_of, bits_per_byte, scorer};
use super::sides::{side, tokenizer_of};
use super::speed::{self, Speed};
use super::windows::{self, Read};
use super::{compressors, hosted};
use crate::data::{Lossy, Prompt, faithful, read_text};
use crate::measurements::{
    Answer, Baseline, BitsPerByte, EqualContext, EvalConfig, EvalReport, EvalResult, Fidelities, ModelMeta, Pair, Perplexity, QeiMetrics,
    Sides, read,
};
use crate::task;
use crate::teacher::continuations::{answers, bits_of as trained_bits};
use crate::teacher::http::spec::Spec;
use crate::teacher::json::{Said, held_validity, json_validity};

/// What is measured, and how.
#[derive(Clone, Copy, Debug)]
pub struct Asked {
    /// Bytes of the held-out text to compare distributions on.
    pub agreement_bytes: usize,
    /// Candidates of the teacher's distributions.
    pub top_k: usize,
    /// Activation bits, where they are not those at which training ended.
    pub bits: Option<u32>,
    /// How keys and values are held while a model decodes.
    pub kv_cache: KvCache,
    /// What happens where a tokenizer does not give the text back.
    pub lossy: Lossy,
}

/// A model of a comparison, and the held-out text in its tokens.
struct Model<'a> {
    files: &'a Path,
    checkpoint: Checkpoint,
    tokenizer: Tokenizer,
    text: Heldout,
}

impl<'a> Model<'a> {
    fn of(files: &'a Path, whose: &str, text: &str, lossy: Lossy, ctx: &TaskContext) -> Result<Self, StageError> {
        let (checkpoint, tokenizer) = load_with_tokenizer(files)?;
        let text = Heldout::of((&tokenizer, whose), text, lossy, ctx)?;
        Ok(Self { files, checkpoint, tokenizer, text })
    }

    fn named(&self) -> (&Checkpoint, &Tokenizer, &'a Path) {
        (&self.checkpoint, &self.tokenizer, self.files)
    }
}

const OURS: &str = "the student's";

/// Measures what is wired to a task; the report.
pub fn evaluate(p: Asked, ctx: &TaskContext) -> Result<EvalReport, StageError> {
    let text = read_text(ctx.input("text")?)?;
    let student = Model::of(ctx.input("student")?, OURS, &text, p.lossy, ctx)?;
    let spec = Spec::read(ctx.input("teacher")?)?;
    let here = spec.is_none().then(|| Model::of(ctx.input("teacher")?, "the teacher's", &text, p.lossy, ctx));
    let teacher = here.transpose()?;
    let baseline: Baseline = read(ctx.input("baseline")?, "Baseline")?;
    let device = task::device(ctx)?;
    let bits = trained_bits(p.bits, &student.checkpoint);

    let top_k = p.top_k.min(student.tokenizer.vocab_size());
    let mut session = scorer(&device, &student.checkpoint, top_k)?;
    let mut notes: Vec<String> = spec.as_ref().map(hosted::notes).unwrap_or_default();
    let bits_per_byte = held_out((&student, &mut session, bits), teacher.as_ref(), &device, &mut notes, ctx)?;
    ctx.metric("bits_per_byte", bits_per_byte.student.unwrap_or_default());
    ctx.progress(2, 4, "parts");
    session.set_bits(bits)?;
    let agrees = match &teacher {
        Some(t) => {
            let of_student = (&mut session, &student.tokenizer);
            agreement(&device, (&t.checkpoint, &t.tokenizer), of_student, (&t.text, p.agreement_bytes), top_k)?
        }
        None => hosted::agreement(&mut session, &student.tokenizer, &baseline)?,
    };
    drop(session);
    ctx.progress(3, 4, "parts");
    let samples = samples(&student, &device, &baseline, (bits, &p), ctx)?;
    let models: Vec<_> = [(&student.checkpoint, bits)].into_iter().chain(teacher.as_ref().map(|t| (&t.checkpoint, Bits::Eight))).collect();
    let speeds = speed::compare(&device, &models, p.kv_cache)?;
    let sides = Sides {
        student: side(student.named(), (bits, p.kv_cache), &speeds[0])?,
        teacher: teacher.as_ref().zip(speeds.get(1)).map(|(t, s)| side(t.named(), (Bits::Eight, p.kv_cache), s)).transpose()?,
    };
    let train = ctx.input_opt("train").map(read_text).transpose()?;
    let text_fidelity =
        Fidelities { student: Some(student.text.fidelity.clone()), teacher: teacher.as_ref().map(|t| t.text.fidelity.clone()) };
    Ok(EvalReport {
        timestamp: ctx.now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs()),
        device: Some(device.name()),
        dtype: Some(dtype(&student.checkpoint.config, bits)),
        tokenizer: tokenizer_of(&student.tokenizer),
        model_meta: meta(&student.checkpoint, teacher.as_ref(), spec.as_ref()),
        eval_config: EvalConfig {
            bits: bits.count(),
            top_k: p.top_k,
            agreement_bytes: p.agreement_bytes.min(text.len()),
            kv_cache: p.kv_cache,
            holdout_bytes: text.len(),
        },
        qei_metrics: metrics(&bits_per_byte, &sides, &speeds, spec.as_ref().map(|s| (s, &baseline))),
        compared: sides,
        perplexity: perplexity(&bits_per_byte, &student, teacher.as_ref()),
        bits_per_byte,
        compressors: compressors::figures(text.as_bytes(), train.as_deref().map(str::as_bytes))?,
        kl: teacher.as_ref().map(|_| agrees.kl),
        top1_agreement: Some(agrees.top1),
        agreement_tokens: agrees.tokens,
        json_validity: Pair { student: samples.validity, teacher: baseline.json_validity },
        json_validity_constrained: Pair { student: samples.held, teacher: baseline.json_validity_constrained },
        comparable: text_fidelity.are_lossless(),
        text_fidelity,
        notes,
        results: results(baseline, samples.texts),
    })
}

/// Bits per byte of both sides, and why one is not there.
fn held_out(
    (student, session, bits): (&Model<'_>, &mut Session, Bits),
    teacher: Option<&Model<'_>>,
    device: &Device,
    notes: &mut Vec<String>,
    ctx: &TaskContext,
) -> Result<BitsPerByte, StageError> {
    let mut of_student = |bits: Bits, sliding: bool| {
        session.set_bits(bits)?;
        bits_per_byte(session, &student.text, sliding, ctx)
    };
    let (at_bits, at_8) = (of_student(bits, false)?, of_student(Bits::Eight, false)?);
    let mut all = BitsPerByte { student: Some(at_bits), student_a8: Some(at_8), ..BitsPerByte::default() };
    all.student_sliding = Some(of_student(bits, true)?);
    ctx.progress(1, 4, "parts");
    let Some(teacher) = teacher else { return Ok(all) };
    let mut lm = scorer(device, &teacher.checkpoint, 0)?;
    let of_teacher = bits_per_byte(&mut lm, &teacher.text, false, ctx)?;
    all.teacher = Some(of_teacher);
    all.teacher_sliding = Some(bits_per_byte(&mut lm, &teacher.text, true, ctx)?);
    all.equal_context = equal_context((student, session, at_bits), (teacher, &mut lm, of_teacher), ctx)?;
    if all.equal_context.is_none() {
        notes.push(
            "no figure of equal context: a tokenizer does not give the text back byte for byte, or the two end no token at the same byte \
             within a window"
                .into(),
        );
    }
    Ok(all)
}

/// Both sides in windows of the same bytes; figures that there are already, where these are their own windows. The student's
/// session is at its final bits.
fn equal_context(
    (student, ours, at_bits): (&Model<'_>, &mut Session, f64),
    (teacher, theirs, of_teacher): (&Model<'_>, &mut Session, f64),
    ctx: &TaskContext,
) -> Result<Option<EqualContext>, StageError> {
    let ends = |m: &Model<'_>| windows::ends(&m.tokenizer, &m.text);
    let (Some(our_ends), Some(their_ends)) = (ends(student), ends(teacher)) else { return Ok(None) };
    let room = (ours.config().seq, theirs.config().seq);
    let Some(shared) = windows::shared((&our_ends, room.0), (&their_ends, room.1)) else { return Ok(None) };
    let (mine, others): (Vec<_>, Vec<_>) =
        shared.into_iter().map(|(a, b)| (Read { tokens: a, skip: 0 }, Read { tokens: b, skip: 0 })).unzip();
    let figure = |m: &Model<'_>, session: &mut Session, all: &[Read], known: f64| {
        let seq = session.config().seq;
        if *all == windows::strided(m.text.tokens.len(), seq, seq) { Ok(known) } else { bits_of(session, &m.text, all, ctx) }
    };
    Ok(Some(EqualContext {
        student: figure(student, ours, &mine, at_bits)?,
        teacher: figure(teacher, theirs, &others, of_teacher)?,
        windows: mine.len(),
        mean_bytes: student.text.bytes as f64 / mine.len().max(1) as f64,
    }))
}

/// Weights and activations of a student in words.
fn dtype(config: &ModelConfig, bits: Bits) -> String {
    match (config.weights, config.quantises()) {
        (Weights::Float, _) => "float".into(),
        (_, false) => "ternary, float activations".into(),
        (_, true) => format!("ternary, A{}", bits.count()),
    }
}

fn meta(student: &Checkpoint, teacher: Option<&Model<'_>>, spec: Option<&Spec>) -> ModelMeta {
    let of_teacher = teacher.map(|t| &t.checkpoint.config);
    ModelMeta {
        config: json!(student.config),
        parameters: Some(student.config.parameters() as u64),
        preset: student.extra["preset"].clone(),
        teacher_config: spec.map_or_else(|| json!(of_teacher), hosted::meta),
        teacher_parameters: of_teacher.map(|c| c.parameters() as u64),
    }
}

/// e to the mean negative log-likelihood of a token, in windows of each side's own length; of the teacher where both have one
/// tokenizer, so that their tokens are the same.
fn perplexity(bits: &BitsPerByte, student: &Model<'_>, teacher: Option<&Model<'_>>) -> Perplexity {
    let of_token = student.text.bytes as f64 / student.text.tokens.len().max(1) as f64;
    let same = teacher.is_some_and(|t| t.tokenizer.digest() == student.tokenizer.digest());
    perplexities(bits.student, bits.teacher.filter(|_| same), of_token)
}

/// Perplexities from bits per byte, `of_token` bytes a token.
fn perplexities(student: Option<f64>, teacher: Option<f64>, of_token: f64) -> Perplexity {
    let of = |bits_per_byte: f64| libm::exp2(bits_per_byte * of_token);
    Perplexity { student: student.map(of), teacher: teacher.map(of), ratio: student.zip(teacher).map(|(s, t)| of(s - t)) }
}

/// Quality, memory and speed of both sides; a hosted teacher's as its baseline and a person say.
fn metrics(bits: &BitsPerByte, sides: &Sides, speeds: &[Speed], hosted: Option<(&Spec, &Baseline)>) -> QeiMetrics {
    let quality = |bits: Option<f64>| bits.map(|b| 1.0 / b);
    let (of_student, of_teacher) = (speeds.first(), speeds.get(1));
    let seen = hosted.map(|(_, baseline)| baseline);
    QeiMetrics {
        student_tokens_per_second: of_student.map(|s| s.decode),
        teacher_tokens_per_second: of_teacher.map(|s| s.decode).or_else(|| seen?.decode_tokens_per_second),
        student_prefill_tokens_per_second: of_student.map(|s| s.prefill),
        teacher_prefill_tokens_per_second: of_teacher.map(|s| s.prefill),
        student_speed_measured: of_student.map(|s| s.how.clone()),
        teacher_speed_measured: of_teacher.map(|s| s.how.clone()).or_else(|| seen?.speed_measured.clone()),
        student_memory_planned_bytes: Some(sides.student.memory_planned_bytes),
        teacher_memory_planned_bytes: sides.teacher.as_ref().map(|t| t.memory_planned_bytes),
        teacher_memory_given_bytes: hosted.and_then(|(spec, _)| spec.memory_bytes),
        student_quality: quality(bits.student),
        teacher_quality: quality(bits.teacher),
        quality_metric: Some("1 / held-out bits per byte".into()),
        ..QeiMetrics::default()
    }
    .indexed()
}

/// The student's greedy answers to the baseline's prompts.
struct Samples {
    texts: Vec<String>,
    /// Share of the JSON prompts that they answer, and of those that the student answers where it is held to their schemas.
    validity: Option<f64>,
    held: Option<f64>,
}

fn samples(
    student: &Model<'_>,
    device: &Device,
    baseline: &Baseline,
    (bits, p): (Bits, &Asked),
    ctx: &TaskContext,
) -> Result<Samples, StageError> {
    let (model, tokenizer) = (&student.checkpoint, &student.tokenizer);
    let rendered: Vec<String> = baseline.results.iter().map(|a| a.rendered(&baseline.template)).collect();
    let prompts = faithful::encode_all((tokenizer, OURS), &rendered, p.lossy, ctx)?;
    let prompts: Vec<Vec<TokenId>> = prompts.into_iter().map(|ids| tokenizer.with_bos(ids)).collect();
    let how = (bits, baseline.max_tokens, p.kv_cache);
    let asked: Vec<Prompt> = baseline.results.iter().map(Answer::asked).collect();
    let held = held_validity(device, (model, tokenizer), (&asked, &prompts), how, || Ok(()))?;
    let answers = answers(device, model, tokenizer, (prompts, Vec::new()), how, |_| Ok(()))?;
    let texts: Vec<String> = answers.iter().map(|a| tokenizer.decode_lossy(&a.tokens)).collect();
    let said = answers.iter().zip(&texts).map(|(a, text)| Said { text, whole: a.stopped });
    let validity = json_validity(asked.iter().zip(said));
    Ok(Samples { texts, validity, held })
}

/// Both answers to each prompt.
fn results(baseline: Baseline, texts: Vec<String>) -> Vec<EvalResult> {
    let both = |(a, student): (Answer, String)| EvalResult { id: a.id, kind: a.kind, prompt: a.prompt, student, teacher: a.text };
    baseline.results.into_iter().zip(texts).map(both).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn perplexities_by_hand() {
        let p = perplexities(Some(1.5), Some(1.0), 4.0);
        assert_eq!((p.student, p.teacher, p.ratio), (Some(64.0), Some(16.0), Some(4.0)));
        assert!(perplexities(Some(1.5), None, 4.0).ratio.is_none());
    }
}
