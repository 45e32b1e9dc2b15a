//! The student against its teacher on held-out text and prompts, and QEI from measured figures.

use std::time::UNIX_EPOCH;

use flow_engine::plugin::{StageError, TaskContext};
use flow_lm::config::{Bits, ModelConfig, Weights};
use flow_lm::format::{Checkpoint, load_with_tokenizer};
use flow_lm::infer::KvCache;
use flow_lm::tokenizer::{Fidelity, TokenId, Tokenizer};
use serde_json::{Value, json};

use super::baseline::{Answer, Baseline, read_baseline};
use super::quality::{Agreement, Heldout, agreement, bits_per_byte, scorer};
use super::speed::{self, Speed};
use super::{compressors, hosted};
use crate::data::{Lossy, Prompt, faithful, read_text};
use crate::task;
use crate::teacher::continuations::{answers, bits_of};
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

/// Measures what is wired to a task; the report.
pub fn evaluate(p: Asked, ctx: &TaskContext) -> Result<Value, StageError> {
    let (student, tokenizer) = load_with_tokenizer(ctx.input("student")?)?;
    let spec = Spec::read(ctx.input("teacher")?)?;
    let teacher = if spec.is_none() { Some(load_with_tokenizer(ctx.input("teacher")?)?) } else { None };
    let text = read_text(ctx.input("text")?)?;
    let train = ctx.input_opt("train").map(read_text).transpose()?;
    let baseline = read_baseline(ctx.input("baseline")?)?;
    let device = task::device(ctx)?;
    let bits = bits_of(p.bits, &student);

    let top_k = p.top_k.min(tokenizer.vocab_size());
    let mut lm_student = scorer(&device, &student, top_k)?;
    let heldout = Heldout::of((&tokenizer, "the student's"), &text, p.lossy, ctx)?;
    let mut of_student = |bits: Bits, sliding: bool| {
        lm_student.set_bits(bits)?;
        bits_per_byte(&mut lm_student, &heldout, sliding, ctx)
    };
    let (at_bits, at_8, sliding) = (of_student(bits, false)?, of_student(Bits::Eight, false)?, of_student(bits, true)?);
    ctx.progress(1, 4, "parts");
    let theirs = match &teacher {
        Some((model, tokenizer)) => Some((model, tokenizer, Heldout::of((tokenizer, "the teacher's"), &text, p.lossy, ctx)?)),
        None => None,
    };
    let of_teacher = match &theirs {
        Some((model, _, text)) => {
            let mut lm = scorer(&device, model, 0)?;
            let plain = bits_per_byte(&mut lm, text, false, ctx)?;
            Some((plain, bits_per_byte(&mut lm, text, true, ctx)?))
        }
        None => None,
    };
    ctx.progress(2, 4, "parts");
    lm_student.set_bits(bits)?;
    let agrees = match &theirs {
        Some((model, of, text)) => agreement(&device, (model, of), (&mut lm_student, &tokenizer), (text, p.agreement_bytes), top_k)?,
        None => hosted::agreement(&mut lm_student, &tokenizer, &baseline)?,
    };
    ctx.progress(3, 4, "parts");
    let rendered: Vec<String> = baseline.results.iter().map(|a| a.rendered(&baseline.template)).collect();
    let prompts = faithful::encode_all((&tokenizer, "the student's"), &rendered, p.lossy, ctx)?;
    let prompts = prompts.into_iter().map(|ids| tokenizer.with_bos(ids)).collect();
    let samples = samples((&student, &tokenizer), &device, (&baseline, prompts), (bits, baseline.max_tokens, p.kv_cache))?;
    let models: Vec<_> = [(&student, bits)].into_iter().chain(teacher.as_ref().map(|t| (&t.0, Bits::Eight))).collect();
    let speeds = speed::compare(&device, &models, p.kv_cache)?;
    ctx.metric("bits_per_byte", at_bits);
    let of_teacher = match (&teacher, &spec) {
        (Some((model, _)), _) => OfTeacher::of_model(model, of_teacher, speeds.get(1)),
        (None, Some(spec)) => OfTeacher::of_hosted(spec, &baseline),
        (None, None) => OfTeacher::default(),
    };
    let of_token = text.len() as f64 / heldout.tokens.len().max(1) as f64;
    let same = teacher.as_ref().is_some_and(|t| t.1.digest() == tokenizer.digest());
    let perplexity = perplexity(at_bits, of_teacher.bits_per_byte.filter(|_| same), of_token);
    let figures = Figures { at_bits, at_8, sliding, bits, agrees, perplexity, kl: teacher.as_ref().map(|_| agrees.kl) };
    let compressed = compressors::figures(text.as_bytes(), train.as_deref().map(str::as_bytes))?;
    let mut report = report(&figures, &student, &of_teacher, &baseline, &speeds[0], &samples);
    if let Some(spec) = &spec {
        report["notes"] = json!(hosted::notes(spec));
    }
    report["compressors"] = json!(compressed);
    let of_theirs = theirs.as_ref().map(|(.., text)| &text.fidelity);
    report["text_fidelity"] = json!({"student": heldout.fidelity, "teacher": of_theirs});
    report["comparable"] = [Some(&heldout.fidelity), of_theirs].into_iter().flatten().all(Fidelity::is_lossless).into();
    report["timestamp"] = ctx.now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs()).into();
    report["device"] = device.name().into();
    report["tokenizer"] = json!({"digest": tokenizer.digest(), "vocab": tokenizer.vocab_size()});
    report["eval_config"] = json!({"bits": bits.count(), "top_k": p.top_k, "agreement_bytes": p.agreement_bytes.min(text.len()), "kv_cache": p.kv_cache, "holdout_bytes": text.len(),
        "window": student.config.seq, "stride": student.config.seq});
    Ok(report)
}

/// Weights and activations of a student in words.
fn dtype(config: &ModelConfig, bits: Bits) -> String {
    match (config.weights, config.quantises()) {
        (Weights::Float, _) => "float".into(),
        (_, false) => "ternary, float activations".into(),
        (_, true) => format!("ternary, A{}", bits.count()),
    }
}

/// e to the mean negative log-likelihood of a token, in windows of each side's own length; of the teacher where both have one
/// tokenizer, so that their tokens are the same.
#[derive(serde::Serialize)]
struct Perplexity {
    student: f64,
    teacher: Option<f64>,
    /// Student over teacher.
    ratio: Option<f64>,
}

/// Perplexities from bits per byte, `of_token` bytes a token.
fn perplexity(student: f64, teacher: Option<f64>, of_token: f64) -> Perplexity {
    let of = |bits_per_byte: f64| libm::exp2(bits_per_byte * of_token);
    Perplexity { student: of(student), teacher: teacher.map(of), ratio: teacher.map(|t| of(student - t)) }
}

struct Figures {
    perplexity: Perplexity,
    at_bits: f64,
    at_8: f64,
    sliding: f64,
    bits: Bits,
    agrees: Agreement,
    kl: Option<f64>,
}

/// The teacher's side; what nobody can measure is not there.
#[derive(Default)]
struct OfTeacher {
    meta: Value,
    parameters: Option<usize>,
    bits_per_byte: Option<f64>,
    sliding: Option<f64>,
    decode: Option<f64>,
    prefill: Option<f64>,
    bytes: Option<u64>,
}

impl OfTeacher {
    fn of_model(model: &Checkpoint, bits_per_byte: Option<(f64, f64)>, speed: Option<&Speed>) -> Self {
        Self {
            meta: json!(model.config),
            parameters: Some(model.config.parameters()),
            bits_per_byte: bits_per_byte.map(|b| b.0),
            sliding: bits_per_byte.map(|b| b.1),
            decode: speed.map(|s| s.decode),
            prefill: speed.map(|s| s.prefill),
            bytes: speed.map(|s| s.bytes),
        }
    }
    fn of_hosted(spec: &Spec, baseline: &Baseline) -> Self {
        Self { meta: hosted::meta(spec), decode: baseline.decode_tokens_per_second, bytes: spec.memory_bytes, ..Self::default() }
    }
}

/// The student's greedy answers to the baseline's prompts.
struct Samples {
    texts: Vec<String>,
    /// Share of the JSON prompts that they answer, and of those that the student answers where it is held to their schemas.
    validity: Option<f64>,
    held: Option<f64>,
}

fn samples(
    (student, tokenizer): (&Checkpoint, &Tokenizer),
    device: &flow_shaders::device::Device,
    (baseline, prompts): (&Baseline, Vec<Vec<TokenId>>),
    how: (Bits, usize, KvCache),
) -> Result<Samples, StageError> {
    let asked: Vec<Prompt> = baseline.results.iter().map(Answer::asked).collect();
    let held = held_validity(device, (student, tokenizer), (&asked, &prompts), how, || Ok(()))?;
    let answers = answers(device, student, tokenizer, (prompts, Vec::new()), how, |_| Ok(()))?;
    let texts: Vec<String> = answers.iter().map(|a| tokenizer.decode_lossy(&a.tokens)).collect();
    let said = answers.iter().zip(&texts).map(|(a, text)| Said { text, whole: a.stopped });
    let validity = json_validity(asked.iter().zip(said));
    Ok(Samples { texts, validity, held })
}

fn report(f: &Figures, student: &Checkpoint, t: &OfTeacher, baseline: &Baseline, s: &Speed, samples: &Samples) -> Value {
    let (qs, qt) = (1.0 / f.at_bits, t.bits_per_byte.map(|b| 1.0 / b));
    let qei = qt.zip(t.bytes).map(|(qt, bytes)| (qs / qt) / (s.bytes as f64 / bytes as f64));
    let results: Vec<Value> = baseline
        .results
        .iter()
        .zip(&samples.texts)
        .map(|(a, student)| json!({"id": a.id, "kind": a.kind, "prompt": a.prompt, "student": student, "teacher": a.text}))
        .collect();
    json!({
        "dtype": dtype(&student.config, f.bits),
        "model_meta": {"config": student.config, "parameters": student.config.parameters(), "preset": student.extra["preset"],
            "teacher_config": t.meta, "teacher_parameters": t.parameters},
        "qei_metrics": {
            "student_tokens_per_second": s.decode, "teacher_tokens_per_second": t.decode,
            "student_prefill_tokens_per_second": s.prefill, "teacher_prefill_tokens_per_second": t.prefill,
            "student_memory_bytes": s.bytes, "teacher_memory_bytes": t.bytes,
            "student_quality": qs, "teacher_quality": qt, "quality_metric": "1 / held-out bits per byte",
            "qei": qei, "qei_speed": qei.zip(t.decode).map(|(qei, decode)| qei * s.decode / decode),
        },
        "bits_per_byte": {"student": f.at_bits, "student_a8": f.at_8, "teacher": t.bits_per_byte,
            "student_sliding": f.sliding, "teacher_sliding": t.sliding},
        "perplexity": f.perplexity,
        "kl": f.kl, "top1_agreement": f.agrees.top1, "agreement_tokens": f.agrees.tokens,
        "json_validity": {"student": samples.validity, "teacher": baseline.json_validity},
        "json_validity_constrained": {"student": samples.held, "teacher": baseline.json_validity_constrained},
        "results": results,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn perplexities_by_hand() {
        let p = perplexity(1.5, Some(1.0), 4.0);
        assert_eq!((p.student, p.teacher, p.ratio), (64.0, Some(16.0), Some(4.0)));
        assert!(perplexity(1.5, None, 4.0).ratio.is_none());
    }
}
