//! `teacher.baseline` from a hosted teacher: its greedy answers, and its speed as seen from here.

use flow_engine::plugin::{StageError, TaskContext};
use serde_json::json;

use super::refusals::Refusals;
use crate::data::Prompt;
use crate::measurements::{self, Baseline, Usage};
use crate::teacher::http::ask::{Asker, Questions};
use crate::teacher::http::shape::{Answer, Call, Draw, Finish, call};
use crate::teacher::http::spec::Endpoint;
use crate::teacher::json::{self, json_validity};
use crate::teacher::render;

/// The baseline without its digests: greedy answers of at most `max_tokens` to prompts put by `template`, of which the share
/// `max_refused` may be refused.
pub fn baseline(
    (template, max_tokens, max_refused): (&str, usize, f64),
    ctx: &TaskContext,
    asker: &Asker,
    prompts: &[Prompt],
) -> Result<Baseline, StageError> {
    let draw = Draw { max_tokens, temperature: 0.0, top_p: 1.0, seed: Some(0), stop: Vec::new(), logprobs: false };
    let request = |n: usize| -> Call {
        let rendered = render(template, &prompts[n].prompt);
        let asked = if asker.spec().endpoint == Endpoint::Chat { &prompts[n].prompt } else { &rendered };
        call(asker.spec(), asked, 0, &draw)
    };
    // A baseline with holes compares nothing.
    let questions = Questions {
        count: prompts.len(),
        call: &request,
        label: &|n| format!("prompt {}", prompts[n].id),
        max_failed: 0.0,
        max_refused,
        unit: "prompts",
    };
    asker.ask(ctx, &questions)?;
    let mut refusals = Refusals::of(&questions);
    let mut answers = Vec::with_capacity(prompts.len());
    for (n, prompt) in prompts.iter().enumerate() {
        let kept = asker.answer(&request(n))?;
        let (reply, millis) =
            kept.ok_or_else(|| StageError::new(format!("prompt {}: its answer is not kept", prompt.id)).help("run again"))?;
        let said = match reply.answer {
            Ok(answer) => Said { finish: answer.finish.to_string(), answer: Some(answer), usage: reply.usage, millis },
            Err(refusal) => Said { finish: refusals.add(n, refusal), answer: None, usage: reply.usage, millis },
        };
        answers.push(said);
    }
    refusals.tell(ctx)?;
    let decode = decode_rate(&answers);
    if let Some(rate) = decode {
        ctx.metric("decode_tokens_per_second", rate);
    }
    let results = prompts.iter().zip(&answers).map(|(q, a)| measurements::Answer {
        tokens: a.usage.map(|u| u.1),
        finish_reason: Some(a.finish.clone()),
        ..measurements::Answer::of(q, a.text().unwrap_or_default().to_owned())
    });
    let sum = |of: fn((u64, u64)) -> u64| answers.iter().filter_map(|a| a.usage).map(of).sum::<u64>();
    Ok(Baseline {
        teacher: json!(asker.spec()),
        max_tokens,
        decode_tokens_per_second: decode,
        speed_measured: Some(
            "over the network: as the server says, else answer tokens over the time of the request, median over the answers".into(),
        ),
        memory_given_bytes: asker.spec().memory_bytes,
        json_validity: json_validity(prompts.iter().zip(&answers).filter_map(|(q, a)| Some((q, a.said()?)))),
        usage: Usage { prompt_tokens: sum(|u| u.0), completion_tokens: sum(|u| u.1) },
        results: results.collect(),
        ..Baseline::default()
    })
}

/// What came for a prompt.
struct Said {
    /// Nothing where it is refused.
    answer: Option<Answer>,
    finish: String,
    usage: Option<(u64, u64)>,
    millis: u32,
}

impl Said {
    fn text(&self) -> Option<&str> {
        self.answer.as_ref().map(|a| a.text.as_str())
    }
    fn said(&self) -> Option<json::Said<'_>> {
        Some(json::Said { text: self.text()?, whole: self.finish == Finish::Stop.to_string() })
    }
    /// Tokens a second, as the server says, else over the time of the request.
    fn rate(&self) -> Option<f64> {
        let of_request = || self.usage.filter(|u| u.1 > 0 && self.millis > 0).map(|u| u.1 as f64 * 1e3 / f64::from(self.millis));
        self.answer.as_ref().and_then(|a| a.decode_rate.or_else(of_request))
    }
}

/// Tokens a second: the median over the answers.
fn decode_rate(answers: &[Said]) -> Option<f64> {
    let mut rates: Vec<f64> = answers.iter().filter_map(Said::rate).collect();
    rates.sort_by(f64::total_cmp);
    rates.get(rates.len() / 2).copied()
}
