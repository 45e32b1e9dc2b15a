//! Continuing prompts: sequences that join and leave the slots of a session between steps, each with its own way to choose
//! tokens.

use serde::{Deserialize, Serialize};

use super::sampling::Sampling;
use super::session::{Choice, Session};
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
    /// Which of several draws with this seed it is ([`Sampling::rng`]).
    pub draw: u64,
    /// Tokens that end it.
    pub ends: Vec<TokenId>,
}

/// Why a continuation ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Finish {
    /// A token that ends an answer was chosen.
    Stop,
    /// It has as many tokens as were asked for, or its slot is full.
    Length,
}

/// What a step did for a sequence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Event {
    /// The number that [`Generator::join`] gave.
    pub sequence: u64,
    /// The token that was chosen; none where it ended the sequence.
    pub token: Option<TokenId>,
    /// Set with the last token.
    pub finish: Option<Finish>,
}

/// Sequences in the slots of a session. The tokens of one depend neither on which others there are nor on how many.
pub struct Generator<'s> {
    session: &'s mut Session,
    slots: Vec<Option<Sequence>>,
    joined: u64,
}

struct Sequence {
    number: u64,
    request: Request,
    /// The prompt, then what was chosen.
    tokens: Vec<TokenId>,
    rng: Rng,
    /// Whether all of the prompt but its last token is in the cache.
    read: bool,
}

impl<'s> Generator<'s> {
    /// No sequence yet.
    pub fn new(session: &'s mut Session) -> Self {
        let slots = (0..session.slots().0).map(|_| None).collect();
        Self { session, slots, joined: 0 }
    }

    /// Whether another sequence can join.
    pub fn has_room(&self) -> bool {
        self.slots.iter().any(Option::is_none)
    }

    /// Whether there is no sequence.
    pub fn is_idle(&self) -> bool {
        self.slots.iter().all(Option::is_none)
    }

    /// Takes a sequence in, from the next step on; its number.
    pub fn join(&mut self, request: Request) -> Result<u64> {
        let (slots, room) = self.session.slots();
        let vocab = self.session.config().vocab;
        let refuse = |e: RequestError| Err(Error::from(e));
        request.sampling.check(vocab)?;
        if let Some(id) = request.prompt.iter().copied().find(|id| id.index() >= vocab) {
            return refuse(RequestError::Token { id, vocab });
        }
        match request.prompt.len() {
            0 => return refuse(RequestError::Empty),
            tokens if tokens >= room => return refuse(RequestError::Long { tokens, room }),
            tokens if tokens > 1 && self.session.chunk() == 0 => return refuse(RequestError::Unprepared { what: "prefill" }),
            _ => {}
        }
        if !request.sampling.is_greedy() && !self.session.draws() {
            return refuse(RequestError::Unprepared { what: "draws" });
        }
        // The first free slot: a pass over few slots is a small one.
        let Some(slot) = self.slots.iter_mut().find(|s| s.is_none()) else { return refuse(RequestError::Full { slots }) };
        let number = self.joined;
        self.joined += 1;
        let (tokens, rng) = (request.prompt.clone(), request.sampling.rng(request.draw));
        *slot = Some(Sequence { number, tokens, rng, read: false, request });
        Ok(number)
    }

    /// Lets a sequence go before its end.
    pub fn leave(&mut self, number: u64) {
        self.slots.iter_mut().filter(|s| s.as_ref().is_some_and(|s| s.number == number)).for_each(|s| *s = None);
    }

    /// Reads the prompts of those that have joined, and chooses a token for every sequence.
    pub fn step(&mut self) -> Result<Vec<Event>> {
        self.read_prompts()?;
        let Some(last) = self.slots.iter().rposition(Option::is_some) else { return Ok(Vec::new()) };
        // What a free slot computes is seen by nobody: its next sequence begins at its first position.
        let idle = Sampling::greedy();
        let (mut ids, mut pos, mut uniform) = (Vec::new(), Vec::new(), Vec::new());
        for slot in &mut self.slots[..=last] {
            let tokens = slot.as_ref().map_or(&[TokenId(0)][..], |s| &s.tokens);
            ids.push(tokens[tokens.len() - 1]);
            pos.push(tokens.len() as u32 - 1);
            let draws = slot.as_mut().filter(|s| s.request.sampling.temperature > 0.0);
            uniform.push(draws.map_or(0.0, |s| s.rng.uniform()));
        }
        let choices: Vec<Choice<'_>> = self.slots[..=last]
            .iter()
            .zip(&uniform)
            .map(|(slot, uniform)| match slot {
                Some(s) => Choice { sampling: &s.request.sampling, tokens: &s.tokens, prompt: s.request.prompt.len(), uniform: *uniform },
                None => Choice { sampling: &idle, tokens: &[], prompt: 0, uniform: 0.0 },
            })
            .collect();
        let next = self.session.step_with(&ids, &pos, &choices)?;
        let room = self.session.slots().1;
        let mut events = Vec::new();
        for (slot, token) in self.slots.iter_mut().zip(next) {
            let Some(sequence) = slot else { continue };
            let event = sequence.take(token, room);
            if event.finish.is_some() {
                *slot = None;
            }
            events.push(event);
        }
        Ok(events)
    }

    /// Puts the prompts of new sequences, but for their last tokens, into the cache.
    fn read_prompts(&mut self) -> Result<()> {
        let is_new = |s: &Option<Sequence>| s.as_ref().is_some_and(|s| !s.read);
        let (new, there) = (self.slots.iter().filter(|s| is_new(s)).count(), self.slots.iter().flatten().count());
        if new == there && new > 1 {
            // All begin: their prompts are read together.
            let start = |s: &'_ Option<Sequence>| s.as_ref().map_or(0, |s| s.tokens.len() - 1);
            let starts: Vec<&[TokenId]> = self.slots.iter().map(|s| s.as_ref().map_or(&[][..], |x| &x.tokens[..start(s)])).collect();
            self.session.read_starts(&starts)?;
        } else if new > 0 {
            for (slot, s) in self.slots.iter().enumerate().filter(|(_, s)| is_new(s)) {
                let tokens = s.as_ref().map_or(&[][..], |s| &s.tokens);
                self.session.read_start(slot, &tokens[..tokens.len() - 1])?;
            }
        }
        self.slots.iter_mut().flatten().for_each(|s| s.read = true);
        Ok(())
    }
}

impl Sequence {
    /// What a chosen token means, in a slot of `room` positions.
    fn take(&mut self, token: TokenId, room: usize) -> Event {
        if self.request.ends.contains(&token) {
            return Event { sequence: self.number, token: None, finish: Some(Finish::Stop) };
        }
        if self.request.max_tokens == 0 {
            return Event { sequence: self.number, token: None, finish: Some(Finish::Length) };
        }
        self.tokens.push(token);
        let drawn = self.tokens.len() - self.request.prompt.len();
        let full = drawn >= self.request.max_tokens || self.tokens.len() > room;
        Event { sequence: self.number, token: Some(token), finish: full.then_some(Finish::Length) }
    }
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
