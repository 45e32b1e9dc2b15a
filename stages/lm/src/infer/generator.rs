//! Continuing prompts: sequences that join and leave the slots of a session between steps, each with its own way to choose
//! tokens.

use serde::{Deserialize, Serialize};

use super::constrain::Constraint;
use super::sampling::{Mask, Sampling};
use super::session::{Choice, Next, Session};
use crate::error::{Error, RequestError, Result};
use crate::rng::Rng;
use crate::tokenizer::TokenId;

/// A prompt to continue.
#[derive(Clone, Debug, Default)]
pub struct Request {
    /// Tokens of the prompt, as the model reads it ([`crate::tokenizer::Tokenizer::context`]).
    pub prompt: Vec<TokenId>,
    /// Tokens of the continuation, at most; none of it is made where it is 0, the prompt is read all the same.
    pub max_tokens: usize,
    /// How they are chosen.
    pub sampling: Sampling,
    /// What the continuation must be.
    pub constraint: Option<Constraint>,
    /// Which of several draws with this seed it is ([`Sampling::rng`]).
    pub draw: u64,
    /// Tokens that end it.
    pub ends: Vec<TokenId>,
    /// Alternatives whose logprobs are told with every token; none: neither these nor its own.
    pub logprobs: Option<usize>,
}

/// Why a continuation ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Finish {
    /// A token that ends an answer was chosen, or nothing can follow by the request's constraint.
    Stop,
    /// It has as many tokens as were asked for, or its slot is full.
    Length,
    /// Its constraint cannot be followed further within its limits.
    Stuck,
}

/// Logprobs of a token and its alternatives (nats), as the model gives them: sampling changes none.
#[derive(Clone, Debug, PartialEq)]
pub struct Logprobs {
    /// The token's own.
    pub own: f32,
    /// The most likely tokens, the likeliest first, equals by their ids.
    pub top: Vec<(TokenId, f32)>,
}

/// What a step did for a sequence.
#[derive(Clone, Debug, PartialEq)]
pub struct Event {
    /// The number that [`Generator::join`] gave.
    pub sequence: u64,
    /// The token that was chosen; none where it ended the sequence.
    pub token: Option<TokenId>,
    /// Of that token, where they were asked for.
    pub logprobs: Option<Logprobs>,
    /// Set with the last token.
    pub finish: Option<Finish>,
}

/// How many times as many chunks a step reads at the most while more wait than decode.
const MOST_AT_ONCE: usize = 4;

/// Sequences in the slots of a session. The tokens of one depend neither on which others there are nor on how many.
pub struct Generator<'s> {
    session: &'s mut Session,
    slots: Vec<Slot>,
    joined: u64,
    steps: u64,
    /// Chunks of prompts that a step reads while others decode; 0: all of them.
    chunks: usize,
}

#[derive(Default)]
struct Slot {
    sequence: Option<Sequence>,
    /// Tokens of a prompt whose keys and values, read by chunks, are in the cache.
    held: Vec<TokenId>,
    /// The step in which it was used last.
    used: u64,
}

struct Sequence {
    number: u64,
    request: Request,
    /// The prompt, then what was chosen.
    tokens: Vec<TokenId>,
    rng: Rng,
    /// Tokens of the prompt that were in the cache when it joined.
    reused: usize,
}

impl<'s> Generator<'s> {
    /// No sequence yet.
    pub fn new(session: &'s mut Session) -> Self {
        let slots = (0..session.slots().0).map(|_| Slot::default()).collect();
        Self { session, slots, joined: 0, steps: 0, chunks: 0 }
    }

    /// Lets a step read so many chunks of prompts at the most while others decode, so that these do not wait for a long one (a
    /// few times as many while more wait than decode); 0: all of them.
    #[must_use]
    pub fn chunks_of_a_step(mut self, chunks: usize) -> Self {
        self.chunks = chunks;
        self
    }

    /// The session, for what is no continuation: what the slots hold stays as it is.
    pub fn session(&mut self) -> &mut Session {
        self.session
    }

    /// Whether another sequence can join.
    pub fn has_room(&self) -> bool {
        self.slots.iter().any(|s| s.sequence.is_none())
    }

    /// Whether there is no sequence.
    pub fn is_idle(&self) -> bool {
        self.slots.iter().all(|s| s.sequence.is_none())
    }

    /// Sequences that are in slots.
    pub fn running(&self) -> usize {
        self.slots.iter().filter(|s| s.sequence.is_some()).count()
    }

    /// What cannot be joined, now or later.
    pub fn check(&self, request: &Request) -> Result<()> {
        let refuse = |e: RequestError| Err(Error::from(e));
        let vocab = self.session.config().vocab;
        request.sampling.check(vocab)?;
        if let Some(id) = request.prompt.iter().copied().find(|id| id.index() >= vocab) {
            return refuse(RequestError::Token { id, vocab });
        }
        let room = self.session.slots().1;
        match request.prompt.len() {
            0 => return refuse(RequestError::Empty),
            tokens if tokens >= room => return refuse(RequestError::Long { tokens, room }),
            tokens if tokens > 1 && self.session.chunk() == 0 => return refuse(RequestError::Unprepared { what: "prefill" }),
            _ => {}
        }
        if !request.is_greedy() && !self.session.draws() {
            return refuse(RequestError::Unprepared { what: "draws" });
        }
        Ok(())
    }

    /// Takes a sequence in, from the next step on; its number.
    pub fn join(&mut self, request: Request) -> Result<u64> {
        self.check(&request)?;
        let Some((slot, reused)) = self.place_for(&request.prompt) else {
            return Err(RequestError::Full { slots: self.slots.len() }.into());
        };
        let number = self.joined;
        self.joined += 1;
        let (tokens, rng) = (request.prompt.clone(), request.sampling.rng(request.draw));
        let slot = &mut self.slots[slot];
        slot.held.truncate(reused);
        slot.sequence = Some(Sequence { number, tokens, rng, reused, request });
        Ok(number)
    }

    /// The free slot that holds most of a prompt, and how much of it: whole chunks, because how a prompt is cut decides on
    /// roundings. Else one beside those that are taken (a pass over few slots is a small one), the one unused for longest.
    fn place_for(&self, prompt: &[TokenId]) -> Option<(usize, usize)> {
        let chunk = self.session.chunk().max(1);
        let common = |s: &Slot| {
            let n = s.held.iter().zip(&prompt[..prompt.len() - 1]).take_while(|(a, b)| a == b).count();
            n / chunk * chunk
        };
        let taken: Vec<usize> = (0..self.slots.len()).filter(|i| self.slots[*i].sequence.is_some()).collect();
        let span = |i: usize| {
            let (first, last) = (taken.first().map_or(i, |t| i.min(*t)), taken.last().map_or(i, |t| i.max(*t)));
            self.session.span(first..last + 1).len()
        };
        let free = self.slots.iter().enumerate().filter(|(_, s)| s.sequence.is_none());
        let best = free.min_by_key(|(i, s)| (usize::MAX - common(s), span(*i), s.used, *i))?;
        Some((best.0, common(best.1)))
    }

    /// Tokens of a sequence's prompt that did not have to be read, because a slot held them.
    pub fn reused(&self, number: u64) -> usize {
        self.slots.iter().filter_map(|s| s.sequence.as_ref()).find(|s| s.number == number).map_or(0, |s| s.reused)
    }

    /// Lets a sequence go before its end.
    pub fn leave(&mut self, number: u64) {
        for slot in &mut self.slots {
            if slot.sequence.as_ref().is_some_and(|s| s.number == number) {
                slot.sequence = None;
            }
        }
    }

    /// Reads the prompts of those that have joined, and chooses a token for every sequence whose prompt is read.
    pub fn step(&mut self) -> Result<Vec<Event>> {
        self.steps += 1;
        self.read_prompts()?;
        let (mut events, masks) = self.masks();
        let ready: Vec<usize> = (0..self.slots.len()).filter(|i| self.slots[*i].is_ready()).collect();
        let (Some(first), Some(last)) = (ready.first(), ready.last()) else { return Ok(events) };
        let span = self.session.span(*first..last + 1);
        let idle = Sampling::greedy();
        let (mut ids, mut pos, mut uniform) = (Vec::new(), Vec::new(), Vec::new());
        for slot in &mut self.slots[span.clone()] {
            let ((id, at), ready) = (slot.fed(), slot.is_ready());
            ids.push(id);
            pos.push(at as u32);
            let draws = slot.sequence.as_mut().filter(|s| ready && s.request.sampling.temperature > 0.0);
            uniform.push(draws.map_or(0.0, |s| s.rng.uniform()));
        }
        let samplings: Vec<Option<Sampling>> = span.clone().map(|i| masks[i].clone().and_then(|m| self.slots[i].masked(m))).collect();
        let choices: Vec<Choice<'_>> = self.slots[span.clone()]
            .iter()
            .zip(uniform.iter().zip(&samplings))
            .map(|(slot, (uniform, masked))| match slot.sequence.as_ref().filter(|_| slot.is_ready()) {
                Some(s) => Choice {
                    sampling: masked.as_ref().unwrap_or(&s.request.sampling),
                    tokens: &s.tokens,
                    prompt: s.request.prompt.len(),
                    uniform: *uniform,
                    tell: s.request.logprobs.is_some(),
                },
                None => Choice { sampling: &idle, tokens: &[], prompt: 0, uniform: 0.0, tell: false },
            })
            .collect();
        let next = self.session.step_with(span.start, &ids, &pos, &choices)?;
        let room = self.session.slots().1;
        for (slot, next) in self.slots[span].iter_mut().zip(next) {
            if !slot.is_ready() {
                continue;
            }
            slot.used = self.steps;
            let Some(sequence) = &mut slot.sequence else { continue };
            let event = sequence.take(next, room);
            if event.finish.is_some() {
                slot.sequence = None;
            }
            events.push(event);
        }
        Ok(events)
    }

    /// Masks of sequences that are held to something; those that cannot be followed further end.
    fn masks(&mut self) -> (Vec<Event>, Vec<Option<Mask>>) {
        let (mut events, mut masks) = (Vec::new(), vec![None; self.slots.len()]);
        for (slot, mask) in self.slots.iter_mut().zip(&mut masks) {
            if !slot.is_ready() {
                continue;
            }
            let Some(s) = &mut slot.sequence else { continue };
            let Some(constraint) = &mut s.request.constraint else { continue };
            let words = constraint.mask().map(|words| s.request.sampling.mask.as_ref().map_or(words.clone(), |own| both(&words, own)));
            match words {
                Ok(words) if words.iter().any(|w| *w != 0) => *mask = Some(words.into()),
                _ => {
                    events.push(Event { sequence: s.number, token: None, logprobs: None, finish: Some(Finish::Stuck) });
                    slot.sequence = None;
                }
            }
        }
        (events, masks)
    }

    /// Puts prompts, but for their last tokens, into the cache: all of them, or as many chunks as a step may read.
    fn read_prompts(&mut self) -> Result<()> {
        let left = |s: &Slot| s.sequence.as_ref().map_or(0, |q| (q.request.prompt.len() - 1).saturating_sub(s.held.len()));
        let waiting: Vec<usize> = (0..self.slots.len()).filter(|i| left(&self.slots[*i]) > 0).collect();
        let running = self.running();
        let fresh = waiting.iter().all(|i| self.slots[*i].held.is_empty());
        if waiting.len() == running && running > 1 && fresh && self.chunks == 0 {
            // All begin: their prompts are read together.
            let starts: Vec<Vec<TokenId>> = self.slots.iter().map(|s| s.start(0, usize::MAX)).collect();
            self.session.read_starts(&starts.iter().map(Vec::as_slice).collect::<Vec<_>>())?;
            self.slots.iter_mut().zip(starts).filter(|(s, _)| s.sequence.is_some()).for_each(|(s, start)| s.held = start);
            return Ok(());
        }
        let chunk = self.session.chunk();
        let decoding = running - waiting.len();
        // Where more wait than decode, it is they who are kept waiting.
        let fair = waiting.len().div_ceil(decoding.max(1)).clamp(1, MOST_AT_ONCE);
        let mut budget = if decoding > 0 && self.chunks > 0 { self.chunks * fair } else { usize::MAX };
        // Who waits for longest reads first.
        let mut order = waiting;
        order.sort_by_key(|i| self.slots[*i].sequence.as_ref().map(|s| s.number));
        for i in order {
            while left(&self.slots[i]) > 0 {
                if budget == 0 {
                    return Ok(());
                }
                // A short prompt is read at once: its first token would wait for a step of the others between two halves.
                let short = self.slots[i].held.is_empty() && left(&self.slots[i]) <= 2 * chunk;
                budget = (budget - 1).max(usize::from(short && left(&self.slots[i]) > chunk));
                let first = self.slots[i].held.len();
                let part = self.slots[i].start(first, chunk);
                self.session.read_part(i, first, &part)?;
                self.slots[i].held.extend(part);
            }
            if self.chunks > 0 && decoding == 0 {
                // The others begin to read when this one has begun to answer.
                return Ok(());
            }
        }
        Ok(())
    }
}

impl Slot {
    /// Whether all of its prompt but the last token is in the cache.
    fn is_ready(&self) -> bool {
        self.sequence.as_ref().is_some_and(|s| self.held.len() + 1 >= s.request.prompt.len())
    }

    /// The token that a pass feeds here, and its position. Where nothing is to be fed, it stands where it is overwritten
    /// before it is read.
    fn fed(&self) -> (TokenId, usize) {
        match &self.sequence {
            Some(s) if self.is_ready() => (s.tokens[s.tokens.len() - 1], s.tokens.len() - 1),
            // Not where its prompt ends: attention would go over all that is not there yet.
            _ => (TokenId(0), self.held.len()),
        }
    }

    /// At most `most` tokens of the prompt from `first` on, without its last one.
    fn start(&self, first: usize, most: usize) -> Vec<TokenId> {
        let Some(s) = &self.sequence else { return Vec::new() };
        let start = &s.request.prompt[first..s.request.prompt.len() - 1];
        start[..start.len().min(most)].to_vec()
    }

    /// The sequence's sampling under a mask.
    fn masked(&self, mask: Mask) -> Option<Sampling> {
        let s = self.sequence.as_ref()?;
        Some(Sampling { mask: Some(mask), ..s.request.sampling.clone() })
    }
}

impl Request {
    /// Whether the most likely token is taken, and nothing is told of the others.
    fn is_greedy(&self) -> bool {
        self.sampling.is_greedy() && self.constraint.is_none() && self.logprobs.is_none()
    }
}

impl Sequence {
    /// What a chosen token means, in a slot of `room` positions.
    fn take(&mut self, next: Next, room: usize) -> Event {
        let token = next.token;
        let event = |token, logprobs, finish| Event { sequence: self.number, token, logprobs, finish };
        if self.request.ends.contains(&token) {
            return event(None, None, Some(Finish::Stop));
        }
        if self.request.max_tokens == 0 {
            return event(None, None, Some(Finish::Length));
        }
        let logprobs = next.logits.zip(self.request.logprobs).map(|(logits, k)| Logprobs::of(&logits, token, k));
        if let Some(constraint) = &mut self.request.constraint {
            if constraint.take(token).is_err() {
                return event(None, None, Some(Finish::Stuck));
            }
            if constraint.is_over() {
                return event(Some(token), logprobs, Some(Finish::Stop));
            }
        }
        self.tokens.push(token);
        let drawn = self.tokens.len() - self.request.prompt.len();
        let full = drawn >= self.request.max_tokens || self.tokens.len() > room;
        event(Some(token), logprobs, full.then_some(Finish::Length))
    }
}

impl Logprobs {
    /// From logits `[vocab]`.
    fn of(logits: &[f32], token: TokenId, k: usize) -> Self {
        let top = logits.iter().copied().fold(f32::MIN, f32::max);
        let sum: f64 = logits.iter().map(|z| libm::exp(f64::from(z - top))).sum();
        let lse = f64::from(top) + libm::log(sum);
        let of = |id: usize| (f64::from(logits[id]) - lse) as f32;
        let order = |a: &usize, b: &usize| logits[*b].total_cmp(&logits[*a]).then(a.cmp(b));
        let mut ids: Vec<usize> = (0..logits.len()).collect();
        let k = k.min(ids.len());
        if k < ids.len() && k > 0 {
            ids.select_nth_unstable_by(k - 1, order);
        }
        ids.truncate(k);
        ids.sort_unstable_by(order);
        Self { own: of(token.index()), top: ids.into_iter().map(|id| (TokenId(id as u32), of(id))).collect() }
    }
}

/// Tokens that both masks allow.
fn both(a: &[u32], b: &[u32]) -> Vec<u32> {
    a.iter().zip(b).map(|(a, b)| a & b).collect()
}

/// One continuation.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Continuation {
    /// Tokens, without the one that ended it.
    pub tokens: Vec<TokenId>,
    /// Whether EOS, or another token that ends an answer, ended it.
    pub stopped: bool,
}

/// Continues every request, as many together as the session has slots. `done` are the first ones, of an earlier attempt;
/// `visit` is told all that are done so far, and how many of them are new, and says whether to go on: it stops nothing that
/// is not told.
pub fn generate<E: From<Error>>(
    session: &mut Session,
    requests: &[Request],
    done: Vec<Continuation>,
    mut visit: impl FnMut(&[Continuation], usize) -> Result<(), E>,
) -> Result<Vec<Continuation>, E> {
    let mut all = done;
    let slots = session.slots().0.max(1);
    for group in requests.get(all.len()..).unwrap_or_default().chunks(slots) {
        let mut generator = Generator::new(session);
        let mut made = vec![Continuation::default(); group.len()];
        for request in group {
            generator.join(request.clone())?;
        }
        while !generator.is_idle() {
            for event in generator.step()? {
                let one = &mut made[event.sequence as usize];
                one.tokens.extend(event.token);
                one.stopped |= event.finish == Some(Finish::Stop);
            }
        }
        all.extend(made);
        visit(&all, group.len())?;
    }
    Ok(all)
}
