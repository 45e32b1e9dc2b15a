//! `kd.collect` from a hosted teacher: everything that is missing is asked for, then the traces are written in order
//! from what is kept. So they are the same however often and wherever the asking was interrupted.

use std::collections::BTreeMap;
use std::sync::Arc;

use flow_engine::plugin::{StageError, TaskContext};

use super::refusals::Refusals;
use super::rows::rows_of;
use super::scores::Scores;
use super::text;
use crate::data::spread::spread_numbered;
use crate::data::{read_prompts, read_text};
use crate::teacher::collection::{CollectParams, Precision};
use crate::teacher::http::ask::{Asker, Questions};
use crate::teacher::http::probe::{Found, Logprobs, probe};
use crate::teacher::http::shape::{Call, Draw, Reply, call};
use crate::teacher::http::spec::Endpoint;
use crate::teacher::method::Method;
use crate::teacher::{render, template};
use crate::traces::{Origin, RawRow, SequenceRow, TraceMeta, TraceWriter};

/// Answers that are looked through for the tokens that end one, before rows are made.
const SHOWN: usize = 64;

/// One continuation to ask for.
struct Wanted {
    prompt_idx: i64,
    sample_idx: i32,
    /// What the teacher reads.
    prompt: String,
    /// What the student reads before the answer.
    context: String,
}

/// Runs the stage.
pub fn collect(p: &CollectParams, ctx: &TaskContext, asker: &Asker) -> Result<(), StageError> {
    if p.method != Method::TopK || ctx.input_opt("student").is_some() {
        return Err(StageError::new("a hosted teacher tells its most likely tokens only: no other `method`, and no `student` to score")
            .help("leave `method` and `student` out, or take a teacher that runs here (`teacher.file`)"));
    }
    let found = probe(asker, ctx)?;
    if found.logprobs == Logprobs::AfterTemperature && (p.temperature - 1.0).abs() > 1e-6 {
        ctx.warn(format!(
            "the teacher's logprobs are those after temperature {}: collect with `temperature: 1` for its own",
            p.temperature
        ));
    }
    let mut wanted = of_prompts(p, ctx, asker)?;
    let mut windows: Vec<Arc<str>> = Vec::new();
    let given = ctx.input_opt("text").map(read_text).transpose()?;
    // Windows of the text are numbered after the prompts, so that (prompt_idx, sample_idx) stays a key.
    let first = wanted.last().map_or(0, |w| w.prompt_idx + 1);
    let scoring = asker.spec().preset().scoring.filter(|_| asker.spec().ask_top_k > 0);
    if let Some(given) = &given {
        match scoring {
            Some(_) => windows = text::to_score(given, p.text_tokens, p.seed).into_iter().map(Arc::from).collect(),
            None => wanted.extend(
                text::to_continue(given, p.text_tokens, p.max_tokens, p.seed).into_iter().zip(first..).map(|(beginning, n)| Wanted {
                    prompt_idx: n,
                    sample_idx: 0,
                    prompt: beginning.into(),
                    context: beginning.into(),
                }),
            ),
        }
    }
    let mut writer = TraceWriter::<RawRow>::create(ctx.output("traces")?, &meta(p, asker, &found))?;
    let mut without = continuations(p, ctx, asker, &wanted, &mut writer)?;
    if let Some(scoring) = scoring.filter(|_| !windows.is_empty()) {
        without.extend(Scores { p, ctx, asker, scoring, windows: &windows, first }.write(&mut writer)?);
    }
    let counts = writer.finish()?;
    if counts.rows == 0 {
        let why = if without.is_empty() { "all answers are empty".into() } else { without.join("; ") };
        return Err(StageError::new(format!("the teacher gave no token: {why}")).help("correct what the messages say; see `max_tokens`"));
    }
    ctx.metric("rows", counts.rows as f64);
    Ok(())
}

fn meta(p: &CollectParams, asker: &Asker, found: &Found) -> TraceMeta {
    let spec = asker.spec();
    TraceMeta {
        teacher: spec.named(),
        teacher_digest: spec.digest(),
        template: p.template.clone(),
        // Nobody tells a hosted teacher's tokenizer: its ids are never taken for a student's.
        tokenizer_hash: "unknown".into(),
        eos_id: None,
        vocab: 0,
        method: p.method.name().into(),
        logprob_bits: (p.logprob_precision == Precision::Bits10).then_some(10),
        top_k: p.top_k,
        taus: Vec::new(),
        sampling: p.sampling(),
        conventions: BTreeMap::from([("logprobs".to_owned(), found.logprobs.convention(f64::from(p.temperature)))]),
        ..TraceMeta::default()
    }
}

fn of_prompts(p: &CollectParams, ctx: &TaskContext, asker: &Asker) -> Result<Vec<Wanted>, StageError> {
    let template = template::of_hosted(&p.template)?;
    let Some(path) = ctx.input_opt("prompts") else { return Ok(Vec::new()) };
    let prompts = spread_numbered(read_prompts(path)?, p.max_prompts, p.seed);
    let mut wanted = Vec::new();
    for (i, prompt) in prompts {
        let context = render(template, &prompt.prompt);
        for sample_idx in 0..p.samples as i32 {
            // In a chat the server's own template is around the prompt.
            let asked = if asker.spec().endpoint == Endpoint::Chat { &prompt.prompt } else { &context };
            wanted.push(Wanted { prompt_idx: i as i64, sample_idx, prompt: asked.clone(), context: context.clone() });
        }
    }
    Ok(wanted)
}

/// The request of a continuation.
fn request(p: &CollectParams, asker: &Asker, w: &Wanted) -> Call {
    let draw = Draw {
        max_tokens: p.max_tokens,
        temperature: short(p.temperature),
        top_p: short(p.top_p),
        // Servers take 31 bits.
        seed: Some(p.seed.wrapping_add(w.sample_idx as u64) & 0x7fff_ffff),
        stop: p.stop.clone(),
        logprobs: true,
    };
    call(asker.spec(), &w.prompt, w.sample_idx, &draw)
}

/// A parameter as a person wrote it: 0.8, not 0.800000011920929.
pub fn short(x: f32) -> f64 {
    x.to_string().parse().unwrap_or_else(|_| f64::from(x))
}

/// Asks for continuations and writes their rows; the first reasons why some have none.
fn continuations(
    p: &CollectParams,
    ctx: &TaskContext,
    asker: &Asker,
    wanted: &[Wanted],
    writer: &mut TraceWriter<RawRow>,
) -> Result<Vec<String>, StageError> {
    let label = |n: usize| {
        let w: &Wanted = &wanted[n];
        if p.samples > 1 { format!("prompt {} sample {}", w.prompt_idx, w.sample_idx) } else { format!("prompt {}", w.prompt_idx) }
    };
    let questions = Questions {
        count: wanted.len(),
        call: &|n| request(p, asker, &wanted[n]),
        label: &label,
        max_failed: p.max_failed,
        max_refused: p.max_refused,
        unit: "answers",
    };
    let failed = asker.ask(ctx, &questions)?;
    for w in wanted.iter().take(SHOWN) {
        if let Some((Reply { answer: Ok(answer), .. }, _)) = asker.answer(&request(p, asker, w))? {
            asker.learn(&answer);
        }
    }
    // A request that failed may have been wanted several times.
    let reasons: BTreeMap<_, _> = failed.iter().map(|(n, why)| (request(p, asker, &wanted[*n]).key(asker.spec()), why)).collect();
    let mut refusals = Refusals::of(&questions);
    for (n, w) in wanted.iter().enumerate() {
        let call = request(p, asker, w);
        let (rows, finish_reason) = match asker.answer(&call)? {
            // A text that ends an answer looks like the model's own end.
            Some((Reply { answer: Ok(answer), .. }, _)) => (rows_of(&answer, p.top_k, p.stop.is_empty()), answer.finish.to_string()),
            Some((Reply { answer: Err(refusal), .. }, _)) => (Vec::new(), refusals.add(n, refusal)),
            None => {
                let why = reasons.get(&call.key(asker.spec())).map_or("no answer was kept", |w| w.as_str());
                (Vec::new(), format!("error: {why}"))
            }
        };
        let sequence = SequenceRow {
            prompt_idx: w.prompt_idx,
            sample_idx: w.sample_idx,
            source: Origin::Sample,
            context: w.context.clone().into_bytes(),
            context_ids: None,
            finish_reason,
        };
        writer.push(sequence, rows)?;
    }
    refusals.tell(ctx)?;
    if !failed.is_empty() {
        ctx.warn(format!("{} of {} prompts failed; `finish_reason` in sequences.parquet says why", failed.len(), wanted.len()));
    }
    let failed = failed.iter().take(3).map(|(n, why)| format!("{}: {why}", label(*n)));
    Ok(failed.chain(refusals.reasons()).collect())
}
