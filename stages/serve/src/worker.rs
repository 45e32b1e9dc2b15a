//! The thread that owns the session: it takes sequences from the queue into slots, steps, and tells each request what was
//! said for it.

use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use flow_lm::infer::{Event, Finish, Generator, Logprobs, Request, Session};
use flow_lm::token::TokenId;
use tokio::sync::mpsc::UnboundedSender;

use crate::queue::{Next, Queue};
use crate::stats::Stats;

/// What is said for a request, by the number of its sequence.
#[derive(Clone, Debug)]
pub enum Told {
    /// A token.
    Token {
        /// Which of the request's sequences.
        choice: usize,
        /// The token.
        token: TokenId,
        /// Where they were asked for.
        logprobs: Option<Logprobs>,
    },
    /// The end of a sequence.
    End {
        /// Which of the request's sequences.
        choice: usize,
        /// Why it ended.
        finish: Finish,
        /// Tokens of its prompt that a slot held already.
        reused: usize,
    },
    /// The request cannot be answered.
    Failed(String),
}

/// A request: sequences that are answered one beside the other.
pub struct Work {
    /// What each is asked; a bounded number.
    pub sequences: Vec<Request>,
    /// Where the answers go. When nobody listens any more, the sequences end.
    pub told: UnboundedSender<Told>,
    /// Set for a sequence of which nothing more is wanted (a stop text came).
    pub enough: Arc<[AtomicBool]>,
}

struct Running {
    told: UnboundedSender<Told>,
    enough: Arc<[AtomicBool]>,
    choice: usize,
    reused: usize,
}

impl Running {
    fn is_over(&self) -> bool {
        self.told.is_closed() || self.enough[self.choice].load(Ordering::Relaxed)
    }
}

/// Answers what the queue gives until it is closed and empty.
pub fn work(session: &mut Session, queue: &Queue, stats: &Stats) {
    let mut generator = Generator::new(session).chunks_of_a_step(1);
    let mut running: HashMap<u64, Running> = HashMap::new();
    loop {
        while generator.has_room() {
            match queue.next(generator.is_idle()) {
                Next::Sequence { request, told, enough, choice } => {
                    join(&mut generator, &mut running, *request, Running { told, enough, choice, reused: 0 })
                }
                Next::Nothing => break,
                Next::Closed => return,
            }
        }
        running.retain(|number, one| {
            let over = one.is_over();
            if over {
                generator.leave(*number);
            }
            !over
        });
        stats.running(generator.running());
        match catch_unwind(AssertUnwindSafe(|| generator.step())) {
            Ok(Ok(events)) => {
                stats.tokens(events.iter().filter(|e| e.token.is_some()).count());
                events.into_iter().for_each(|event| tell(&mut running, event));
            }
            // Whose sequence it was is not known: all that run end with the reason, and those that wait go on.
            Ok(Err(e)) => fail(&mut generator, &mut running, &e.to_string()),
            Err(_) => fail(&mut generator, &mut running, "the computation failed"),
        }
    }
}

fn join(generator: &mut Generator<'_>, running: &mut HashMap<u64, Running>, request: Request, one: Running) {
    if one.is_over() {
        return;
    }
    match catch_unwind(AssertUnwindSafe(|| generator.join(request))) {
        Ok(Ok(number)) => {
            let reused = generator.reused(number);
            running.insert(number, Running { reused, ..one });
        }
        Ok(Err(e)) => drop(one.told.send(Told::Failed(e.to_string()))),
        Err(_) => drop(one.told.send(Told::Failed("the request could not be begun".into()))),
    }
}

fn tell(running: &mut HashMap<u64, Running>, event: Event) {
    let Some(one) = running.get(&event.sequence) else { return };
    let choice = one.choice;
    if let Some(token) = event.token {
        let _ = one.told.send(Told::Token { choice, token, logprobs: event.logprobs });
    }
    if let Some(finish) = event.finish {
        let _ = one.told.send(Told::End { choice, finish, reused: one.reused });
        running.remove(&event.sequence);
    }
}

fn fail(generator: &mut Generator<'_>, running: &mut HashMap<u64, Running>, why: &str) {
    for (number, one) in running.drain() {
        generator.leave(number);
        let _ = one.told.send(Told::Failed(why.to_owned()));
    }
}
