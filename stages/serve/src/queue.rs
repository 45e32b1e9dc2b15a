//! Requests that wait for the model: bounded, and fair from request to request.

use std::collections::VecDeque;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use tokio::sync::mpsc::UnboundedSender;

use crate::work::{Task, Told, Work};

/// What comes next.
pub enum Next {
    /// Something to do.
    Task {
        /// What.
        task: Task,
        /// Where the answer goes.
        told: UnboundedSender<Told>,
        /// Whether nothing more is wanted, by choice.
        enough: Arc<[AtomicBool]>,
    },
    /// Nothing waits.
    Nothing,
    /// Nothing waits and nothing will.
    Closed,
}

/// Every place is taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Full;

#[derive(Default)]
struct State {
    /// Tasks of each are in reverse: the next one last.
    waiting: VecDeque<Work>,
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

    /// Whether none waits.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Puts a request at the end; not where the queue is full or closed.
    pub fn put(&self, mut work: Work) -> Result<(), Full> {
        work.tasks.reverse();
        let mut state = self.lock();
        if state.waiting.len() >= self.most {
            // Those whose clients are gone take no place.
            state.waiting.retain(|w| !w.told.is_closed());
        }
        if state.closed || state.waiting.len() >= self.most {
            return Err(Full);
        }
        state.waiting.push_back(work);
        drop(state);
        self.wake.notify_one();
        Ok(())
    }

    /// The next task of the request that waits for longest; its others wait behind those of all others. With `wait` it is
    /// waited for.
    pub fn next(&self, wait: bool) -> Next {
        let mut state = self.lock();
        loop {
            while let Some(mut one) = state.waiting.pop_front() {
                let Some(task) = one.tasks.pop().filter(|_| !one.told.is_closed()) else { continue };
                let (told, enough) = (one.told.clone(), one.enough.clone());
                if !one.tasks.is_empty() {
                    state.waiting.push_back(one);
                }
                return Next::Task { task, told, enough };
            }
            match (wait, state.closed) {
                (false, _) => return Next::Nothing,
                (true, true) => return Next::Closed,
                (true, false) => state = self.wake.wait(state).unwrap_or_else(PoisonError::into_inner),
            }
        }
    }

    /// Takes no more requests; those that wait are still answered.
    pub fn close(&self) {
        self.lock().closed = true;
        self.wake.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};

    fn work(choices: usize) -> (Work, UnboundedReceiver<Told>) {
        let (told, heard) = unbounded_channel();
        let tasks = (0..choices).map(|c| Task::Sequence(c, Box::default())).collect();
        (Work { tasks, told, enough: (0..choices).map(|_| AtomicBool::new(false)).collect() }, heard)
    }

    fn choice(queue: &Queue) -> Option<usize> {
        match queue.next(false) {
            Next::Task { task: Task::Sequence(choice, _), .. } => Some(choice),
            _ => None,
        }
    }

    #[test]
    fn a_request_of_many_choices_lets_others_in_between() {
        let queue = Queue::new(2);
        let ((many, _a), (one, _b), (third, _c)) = (work(3), work(1), work(1));
        assert!(queue.put(many).is_ok() && queue.put(one).is_ok());
        assert_eq!(queue.put(third), Err(Full));
        let order: Vec<Option<usize>> = (0..5).map(|_| choice(&queue)).collect();
        assert_eq!(order, [Some(0), Some(0), Some(1), Some(2), None], "the second request comes after the first's first choice");
    }

    #[test]
    fn requests_of_clients_that_are_gone_are_dropped_and_a_closed_queue_ends() {
        let queue = Queue::new(4);
        let ((gone, heard), (here, _heard)) = (work(2), work(1));
        assert!(queue.put(gone).is_ok() && queue.put(here).is_ok());
        drop(heard);
        assert_eq!((choice(&queue), choice(&queue)), (Some(0), None));
        let full = Queue::new(1);
        let ((gone, heard), (here, _heard)) = (work(1), work(1));
        assert!(full.put(gone).is_ok());
        drop(heard);
        assert!(full.put(here).is_ok(), "who is gone takes no place");
        queue.close();
        assert!(matches!(queue.next(true), Next::Closed));
        assert_eq!(queue.put(work(1).0), Err(Full));
    }
}
