//! The thread that owns the session: it takes tasks from the queue, steps, and tells each request what was said for it.

use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use flow_lm::infer::{Event, Generator, Request, Session, Window, score_batch};
use flow_lm::token::TokenId;
use tokio::sync::mpsc::UnboundedSender;

use crate::queue::{Next, Queue};
use crate::stats::Stats;
use crate::work::{Given, Scored, Task, Told};

struct Running {
    told: UnboundedSender<Told>,
    enough: Arc<[AtomicBool]>,
    choice: usize,
}

impl Running {
    fn is_over(&self) -> bool {
        self.told.is_closed() || self.enough[self.choice].load(Ordering::Relaxed)
    }
}

/// Does what the queue gives until it is closed and empty.
pub fn work(session: &mut Session, queue: &Queue, stats: &Stats) {
    let mut generator = Generator::new(session).chunks_of_a_step(1);
    let mut running: HashMap<u64, Running> = HashMap::new();
    loop {
        while generator.has_room() {
            match queue.next(generator.is_idle()) {
                Next::Task { task: Task::Sequence(choice, request), told, enough } => {
                    let prompt = request.prompt.len();
                    if let Some(reused) = join(&mut generator, &mut running, *request, Running { told, enough, choice }) {
                        stats.prompt(prompt, reused);
                    }
                }
                Next::Task { task: Task::Score(given), told, .. } => {
                    stats.prompt(given.tokens.len(), 0);
                    let scored = catch_unwind(AssertUnwindSafe(|| score(generator.session(), &given)));
                    let _ = told.send(match scored {
                        Ok(Ok(scored)) => Told::Scored(Box::new(scored)),
                        Ok(Err(e)) => Told::Failed(e.to_string()),
                        Err(_) => Told::Failed(FAILED.to_owned()),
                    });
                    // Others take a step between two windows.
                    break;
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
            Err(_) => fail(&mut generator, &mut running, FAILED),
        }
        stats.running(generator.running());
    }
}

const FAILED: &str = "the computation failed";

/// Takes a sequence in; how much of its prompt a slot held.
fn join(generator: &mut Generator<'_>, running: &mut HashMap<u64, Running>, request: Request, one: Running) -> Option<usize> {
    if one.is_over() {
        return None;
    }
    let why = match catch_unwind(AssertUnwindSafe(|| generator.join(request))) {
        Ok(Ok(number)) => {
            let reused = generator.reused(number);
            let _ = one.told.send(Told::Begun { choice: one.choice, reused });
            running.insert(number, one);
            return Some(reused);
        }
        Ok(Err(e)) => e.to_string(),
        Err(_) => "the request could not be begun".to_owned(),
    };
    let _ = one.told.send(Told::Failed(why));
    None
}

fn tell(running: &mut HashMap<u64, Running>, event: Event) {
    let Some(one) = running.get(&event.sequence) else { return };
    let choice = one.choice;
    if let Some(token) = event.token {
        let _ = one.told.send(Told::Token { choice, token, logprobs: event.logprobs });
    }
    if let Some(finish) = event.finish {
        let _ = one.told.send(Told::End { choice, finish });
        running.remove(&event.sequence);
    }
}

fn fail(generator: &mut Generator<'_>, running: &mut HashMap<u64, Running>, why: &str) {
    for (number, one) in running.drain() {
        generator.leave(number);
        let _ = one.told.send(Told::Failed(why.to_owned()));
    }
}

fn score(session: &mut Session, given: &Given) -> flow_lm::Result<Scored> {
    let (windows, seq) = session.windows().unwrap_or_default();
    let (first, targets) = (given.tokens[0], &given.tokens[1..]);
    let batch = score_batch(&[Window { first, targets }], windows, seq);
    session.set_top_k(given.top_k, &given.taus);
    let top = session.top_k(&batch.ids, &batch.mask)?;
    if !given.own {
        return Ok(Scored { top, own: Vec::new() });
    }
    let k = given.top_k;
    let listed = |(row, token): (usize, &TokenId)| {
        let row = row * k..(row + 1) * k;
        top.ids[row.clone()].iter().position(|id| id == token).map(|at| top.logprobs[row.start + at])
    };
    let own: Option<Vec<f32>> = targets.iter().enumerate().map(listed).collect();
    let own = match own {
        Some(own) => own,
        // A token is not among the candidates: its likelihood is computed.
        None => session.nll(&batch.ids, &batch.mask, &batch.labels)?[..targets.len()].iter().map(|nll| -nll).collect(),
    };
    Ok(Scored { top, own: own.into_iter().map(|l| l.min(0.0)).collect() })
}
