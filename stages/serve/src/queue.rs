//! Requests that wait for a slot: bounded, and fair from request to request.

use std::collections::VecDeque;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use flow_lm::infer::Request;
use tokio::sync::mpsc::UnboundedSender;

use crate::worker::{Told, Work};

/// What comes next.
pub enum Next {
    /// A sequence to answer.
    Sequence {
        /// What is asked.
        request: Box<Request>,
        /// Where the answer goes.
        told: UnboundedSender<Told>,
        /// Whether nothing more is wanted, by sequence.
        enough: Arc<[AtomicBool]>,
        /// Which of its request's sequences it is.
        choice: usize,
    },
    /// Nothing waits.
    Nothing,
    /// Nothing waits and nothing will.
    Closed,
}

/// Every place is taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Full;

struct Waiting {
    work: Work,
    /// Sequences that are left, the next one last.
    left: Vec<(usize, Request)>,
}

#[derive(Default)]
struct State {
    waiting: VecDeque<Waiting>,
    closed: bool,
}

/// Requests that wait.
pub struct Queue {
    state: Mutex<State>,
    wake: Condvar,
    most: usize,
}

impl Queue {
    /// A queue in which `most` requests wait at the most.
    pub fn new(most: usize) -> Self {
        Self { state: Mutex::default(), wake: Condvar::new(), most }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing is left half done under this lock.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Requests that wait.
    pub fn len(&self) -> usize {
        self.lock().waiting.len()
    }

    /// Puts a request at the end; none where the queue is full or closed.
    pub fn put(&self, mut work: Work) -> Result<(), Full> {
        let mut state = self.lock();
        if state.closed || state.waiting.len() >= self.most {
            return Err(Full);
        }
        let left = std::mem::take(&mut work.sequences).into_iter().enumerate().rev().collect();
        state.waiting.push_back(Waiting { work, left });
        drop(state);
        self.wake.notify_one();
        Ok(())
    }

    /// The next sequence of the request that waits for longest; its others wait behind those of all others. With `wait` it
    /// is waited for.
    pub fn next(&self, wait: bool) -> Next {
        let mut state = self.lock();
        loop {
            while let Some(mut one) = state.waiting.pop_front() {
                let Some((choice, request)) = one.left.pop().filter(|_| !one.work.told.is_closed()) else { continue };
                let (told, enough) = (one.work.told.clone(), one.work.enough.clone());
                if !one.left.is_empty() {
                    state.waiting.push_back(one);
                }
                return Next::Sequence { request: Box::new(request), told, enough, choice };
            }
            if state.closed && wait {
                return Next::Closed;
            }
            if !wait {
                return Next::Nothing;
            }
            state = self.wake.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Takes no more requests; those that wait are still answered.
    pub fn close(&self) {
        self.lock().closed = true;
        self.wake.notify_one();
    }
}
