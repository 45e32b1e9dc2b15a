//! What a teacher really gives: asked with a token or two before the work, and by `flow teacher probe`.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use flow_engine::plugin::{EventSink, StageError, Task, TaskContext};
use serde_json::Value;

use super::ask::{Asker, Questions};
use super::client::Outcome;
use super::params::HttpParams;
use super::preset::{Offered, Provider, When};
use super::shape::{Answer, Call, Draw, Expect, Reply, call};
use super::spec::{Endpoint, Limits};

/// Of which distribution the logprobs are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Logprobs {
    /// None come.
    None,
    /// Before temperature and top-p.
    BeforeTemperature,
    /// After the temperature that is asked for.
    AfterTemperature,
}

impl Logprobs {
    /// For the metadata of traces.
    pub fn convention(self, temperature: f64) -> String {
        match self {
            Logprobs::None => "none: hard targets, each drawn token with probability 1 - 1e-6".into(),
            Logprobs::BeforeTemperature => "natural log, teacher at temperature 1, before top_p".into(),
            Logprobs::AfterTemperature => format!("natural log, teacher at temperature {temperature}, as its API sends them"),
        }
    }
}

/// What the probe found.
#[derive(Clone, Debug)]
pub struct Found {
    /// Logprobs, and of what.
    pub logprobs: Logprobs,
    /// Alternatives of a token.
    pub alternatives: usize,
    /// Whether tokens come with ids.
    pub ids: bool,
    /// Milliseconds of the first answer.
    pub millis: u32,
    /// Tokens that it used.
    pub usage: Option<(u64, u64)>,
}

fn calls(asker: &Asker) -> [Call; 2] {
    // Two temperatures: if a logprob changes with them, it is of the tempered distribution.
    [1.0, 0.25].map(|temperature| {
        let draw = Draw { max_tokens: 1, temperature, top_p: 1.0, seed: Some(0), stop: Vec::new(), logprobs: true };
        let call = call(asker.spec(), "Count from one to ten: one, two,", 0, &draw);
        // A token of reasoning tells as much as one of an answer.
        Call { expect: if asker.spec().ask_top_k > 0 { Expect::Probe } else { call.expect }, ..call }
    })
}

/// Asks for one token at two temperatures, unless that is known already; says what to change where it cannot work. What
/// the answers show of the teacher, its later answers are read by.
pub fn probe(asker: &Asker, ctx: &TaskContext) -> Result<Found, StageError> {
    let calls = calls(asker);
    // Without logprobs there is nothing about temperatures to learn.
    let count = if asker.spec().ask_top_k == 0 { 1 } else { calls.len() };
    let questions =
        Questions { count, call: &|n| calls[n].clone(), label: &|_| "the probe".into(), max_failed: 1.0, max_refused: 1.0, unit: "probes" };
    let failed = asker.ask(ctx, &questions)?;
    let (mut answers, mut why) = (Vec::new(), failed.into_values().next());
    for call in &calls[..count] {
        match asker.answer(call)? {
            Some((Reply { answer: Ok(answer), usage, .. }, millis)) => {
                asker.learn(&answer);
                answers.push((answer, usage, millis));
            }
            Some((Reply { answer: Err(refusal), .. }, _)) => why = why.or(Some(refusal.why)),
            None => {}
        }
    }
    let Some(((first, usage, millis), rest)) = answers.split_first() else {
        return Err(unusable(asker, &why.unwrap_or_else(|| "no answer was kept".into())));
    };
    let logprobs = match (first.steps.first(), rest.first()) {
        (None, _) => Logprobs::None,
        (Some(_), Some((second, ..))) if changed(first, second) => Logprobs::AfterTemperature,
        _ => Logprobs::BeforeTemperature,
    };
    let step = first.steps.first();
    Ok(Found {
        logprobs,
        alternatives: step.map_or(0, |s| s.top.len()),
        ids: step.is_some_and(|s| s.top.iter().any(|t| t.1.is_some())),
        millis: *millis,
        usage: *usage,
    })
}

/// Whether the same alternative of the first token has another logprob.
fn changed(a: &Answer, b: &Answer) -> bool {
    let (Some(a), Some(b)) = (a.steps.first(), b.steps.first()) else { return false };
    let of: BTreeMap<&[u8], f64> = b.top.iter().map(|t| (t.0.as_slice(), t.2)).collect();
    let differences = a.top.iter().filter_map(|t| Some((t.2 - of.get(t.0.as_slice())?).abs()));
    differences.fold(0.0, f64::max) > 0.05
}

/// The probe came to nothing: which setting to change.
fn unusable(asker: &Asker, why: &str) -> StageError {
    let spec = asker.spec();
    let error = StageError::new(format!("{} gives no usable answer: {why}", spec.named()));
    if why.contains("logprob") {
        let help = match (spec.preset().offered, spec.provider) {
            (_, Provider::Ollama) => {
                "update Ollama: older versions leave logprobs out without a word; or set `ask_top_k: 0` for hard targets"
            }
            (_, Provider::OpenRouter) => {
                "pin a route that gives them: `body: {provider: {order: [NAME], require_parameters: true}}`; or set `ask_top_k: 0` for hard targets"
            }
            (Offered::Some, _) => "choose a `model` that gives logprobs (no reasoning model), or set `ask_top_k: 0` for hard targets",
            _ => "set `ask_top_k` to what the server allows (vLLM: --max-logprobs), or 0 for hard targets",
        };
        return error.help(help);
    }
    if why.contains("HTML") || why.contains("choices") {
        return error.help("see that `base_url` is that of the API; it usually ends in /v1");
    }
    error.help("see `provider`, `model`, `base_url` and `endpoint` of the teacher's stage")
}

/// What a stage of the pipeline is going to ask of the teacher.
#[derive(Clone, Debug)]
pub struct Work {
    /// Its name.
    pub stage: String,
    /// Its parameters.
    pub params: Value,
}

/// `flow teacher probe`: asks the teacher of a `teacher.http` stage with these parameters, keeps nothing beyond `scratch`,
/// and says line by line what it gives and what the stages that read it may cost. What is waited for is told meanwhile.
pub fn standalone(params: &Value, work: &[Work], scratch: &Path, tell: Arc<dyn EventSink>) -> Result<Vec<String>, StageError> {
    let params: HttpParams = serde_json::from_value(params.clone()).map_err(|e| StageError::new(e.to_string()))?;
    let spec = params.spec().map_err(|e| StageError::new(format!("{}: {}", e.path, e.message)))?;
    let limits = params.limits()?;
    let task = Task {
        flow: 1,
        stage: "probe".into(),
        kind: "teacher.http".into(),
        key: String::new(),
        params: Value::Null,
        inputs: Vec::new(),
        outputs: BTreeMap::new(),
        dir: scratch.to_owned(),
        state: scratch.join("state"),
        answers: scratch.join("answers"),
        withheld: Vec::new(),
        device: String::new(),
        threads: 1,
        provenance: Vec::new(),
        run: String::new(),
    };
    let ctx = TaskContext::new(task, tell, Arc::new(AtomicBool::new(false)));
    let asker = Asker::open(&ctx, &spec, &limits)?;
    let mut lines = report(&asker, &ctx)?;
    lines.extend(work.iter().map(|w| estimate(w, &limits)));
    Ok(lines)
}

/// What a stage may use, for each prompt: how many there are is known only when the stage runs.
fn estimate(work: &Work, limits: &Limits) -> String {
    let number = |name: &str| work.params[name].as_u64();
    let (samples, tokens) = (number("samples").unwrap_or(1), number("max_tokens").unwrap_or(0));
    let prompts = number("max_prompts");
    let n = prompts.unwrap_or(1_000) * samples;
    let mut text = format!("{:<13} {n} answers", work.stage);
    if prompts.is_none() {
        text += " (for a thousand prompts)";
    }
    text += &format!(": at most {} answer tokens", n * tokens);
    if let (Some(each), Some(all)) = (limits.cost(0, tokens), limits.cost(0, n * tokens)) {
        text += &format!(", which cost at most {all:.4} ({each:.6} each) without the prompts");
    }
    let by_requests = limits.requests_per_minute.map(|r| n as f64 / r);
    let by_tokens = limits.tokens_per_minute.map(|t| (n * tokens) as f64 / t);
    if let Some(minutes) = by_requests.into_iter().chain(by_tokens).reduce(f64::max) {
        text += &format!(", at least {minutes:.1} minutes by the limits if all are that long");
    }
    text
}

/// What was found, line by line.
pub fn report(asker: &Asker, ctx: &TaskContext) -> Result<Vec<String>, StageError> {
    let (spec, preset) = (asker.spec().clone(), asker.spec().preset());
    let mut lines = vec![format!("teacher       {}", spec.named())];
    match asker.block_on(asker.client().models()) {
        Ok(Some(names)) if names.contains(&spec.model) => lines.push("model         is listed by the server".into()),
        Ok(Some(names)) => {
            let shown: Vec<_> = names.iter().take(8).map(String::as_str).collect();
            lines.push(format!("model         `{}` is not among the {} that are listed: {}", spec.model, names.len(), shown.join(", ")));
        }
        Ok(None) => lines.push("model         the server lists none".into()),
        Err(Outcome::Stop(e)) => return Err(e.into()),
        Err(Outcome::Again { why, .. } | Outcome::Never(why)) => lines.push(format!("model         the list did not come: {why}")),
        Err(Outcome::Answer { .. }) => {}
    }
    let found = probe(asker, ctx)?;
    lines.push(match found.logprobs {
        Logprobs::None => "logprobs      none: hard targets only".into(),
        Logprobs::BeforeTemperature => "logprobs      come, before temperature".into(),
        Logprobs::AfterTemperature => "logprobs      come, AFTER temperature: collect with `temperature: 1`".into(),
    });
    if found.logprobs == Logprobs::BeforeTemperature && preset.when == When::Unknown {
        lines.push("              (found by asking at two temperatures; the provider documents nothing)".into());
    }
    if found.logprobs != Logprobs::None {
        let ids = if found.ids { "with token ids" } else { "without token ids" };
        lines.push(format!("alternatives  {} of {} asked for, {ids}", found.alternatives, spec.ask_top_k));
    }
    let ends = asker.manner().ends();
    if !ends.is_empty() {
        lines.push(format!("ends with     {}", ends.join(", ")));
    }
    let endpoint = if spec.endpoint == Endpoint::Chat { "chat" } else { "completions" };
    let scoring = if preset.scoring.is_some() { "given text can be scored" } else { "given text is continued, not scored" };
    lines.push(format!("endpoint      {endpoint}; {scoring}"));
    lines.push(format!(
        "first answer  {} ms{}",
        found.millis,
        found.usage.map_or(String::new(), |u| format!(", {} prompt and {} answer tokens", u.0, u.1))
    ));
    lines.push(format!("terms         {} (as of {}): {}", preset.name, preset.written, preset.terms));
    Ok(lines)
}
