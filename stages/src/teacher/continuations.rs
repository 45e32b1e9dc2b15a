//! Continuations of prompts by a model that runs here.

use flow_engine::plugin::{StageError, TaskContext};
use flow_lm::config::Bits;
use flow_lm::format::Checkpoint;
use flow_lm::infer::{Constraint, Continuation, Decoding, KvCache, Request, Sampling as Choosing, Session, Uses, generate};
use flow_lm::tokenizer::{TokenId, Tokenizer};
use flow_shaders::device::Device;

use super::collection::CollectParams;
use super::parts::Drawn;
use crate::task::go_on;

/// Activation bits of a model: those that are asked for, those at which its training ended, or eight.
pub fn bits_of(asked: Option<u32>, model: &Checkpoint) -> Bits {
    let ended_at = || model.extra["activation_bits"].as_u64().map(|b| b as u32);
    asked.or_else(ended_at).and_then(Bits::of).unwrap_or_default()
}

/// Sequences that are answered together.
const ANSWERS_TOGETHER: usize = 32;

/// A model's greedy answers to prompts, in their tokens, each held to its constraint where there are some; `visit` is told how
/// many are there.
pub fn answers(
    device: &Device,
    model: &Checkpoint,
    tokenizer: &Tokenizer,
    (prompts, constraints): (Vec<Vec<TokenId>>, Vec<Constraint>),
    (bits, max_tokens, cache): (Bits, usize, KvCache),
    mut visit: impl FnMut(usize) -> Result<(), StageError>,
) -> Result<Vec<Continuation>, StageError> {
    let Some(longest) = prompts.iter().map(Vec::len).max() else { return Ok(Vec::new()) };
    let decoding = Decoding { batch: ANSWERS_TOGETHER, longest, max_tokens, draws: !constraints.is_empty(), cache };
    let uses = decoding.uses(&model.config, prompts.len(), Uses::default());
    let mut session = Session::new(device, model.config.clone(), &model.tensors, uses)?;
    session.set_bits(bits)?;
    let mut requests = requests(prompts, &decoding, &session, tokenizer, &Choosing::greedy());
    requests.iter_mut().zip(constraints).for_each(|(r, c)| r.constraint = Some(c));
    generate(&mut session, &requests, Vec::new(), |all, _| visit(all.len()))
}

/// Requests for continuations of prompts, the place of each its draw.
fn requests(prompts: Vec<Vec<TokenId>>, how: &Decoding, session: &Session, tokenizer: &Tokenizer, sampling: &Choosing) -> Vec<Request> {
    let room = how.room(session.config().seq);
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

/// Draws a continuation of every prompt, from where an earlier attempt stopped.
pub(super) fn draw(
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
