//! Results on their way into the cache: committed in groups, told only then.
//!
//! A stage that follows starts as soon as the outputs can be read; a stage counts as finished when its entry is
//! in the cache. A group is closed at [`GROUP`] actions, [`AT_MOST`] after its first, or when nothing else runs.

use std::sync::Arc;
use std::time::Duration;

use flow_cache::CacheError;
use tokio::sync::mpsc;
use tokio::task::{JoinError, JoinHandle};
use tokio::time::{Instant, sleep_until};

use crate::events::RunEvent;
use crate::execute::env::Env;
use crate::execute::execution::Made;
use crate::plan::StageId;

/// Why results could not be committed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CommitError {
    #[error(transparent)]
    Cache(#[from] CacheError),
    #[error("the engine failed: {0}")]
    Engine(#[source] JoinError),
}

impl CommitError {
    /// What to do next.
    const HELP: &str = "free some space or repair the cache directory, then run again; nothing half-written was kept";
}

/// A stage whose result is not in the cache, and why: the error is its whole group's.
type Lost = (StageId, Arc<CommitError>);

const GROUP: usize = 64;
const AT_MOST: Duration = Duration::from_millis(50);

enum Message {
    Made(StageId, Box<Made>),
    /// Nothing runs that could join the group.
    Idle,
}

pub(crate) struct Committer {
    sender: mpsc::UnboundedSender<Message>,
    task: JoinHandle<Vec<Lost>>,
}

impl Committer {
    pub fn start(env: Env) -> Self {
        let (sender, receiver) = mpsc::unbounded_channel();
        Self { sender, task: tokio::spawn(work(env, receiver)) }
    }

    pub fn add(&self, stage: StageId, made: Box<Made>) {
        // The receiver lives until `finish`.
        let _ = self.sender.send(Message::Made(stage, made));
    }

    pub fn idle(&self) {
        let _ = self.sender.send(Message::Idle);
    }

    /// Waits for everything; gives the stages that could not be committed, and why.
    pub async fn finish(self) -> Vec<Lost> {
        drop(self.sender);
        self.task.await.unwrap_or_else(|e| {
            tracing::error!("the committer failed: {e}");
            Vec::new()
        })
    }
}

async fn work(env: Env, mut receiver: mpsc::UnboundedReceiver<Message>) -> Vec<Lost> {
    let mut failed = Vec::new();
    let mut group: Vec<(StageId, Box<Made>)> = Vec::new();
    let mut deadline = Instant::now();
    let mut large = false;
    loop {
        let message = tokio::select! {
            message = receiver.recv() => message,
            () = sleep_until(deadline), if !group.is_empty() => Some(Message::Idle),
        };
        let end = message.is_none();
        let mut full = end;
        match message {
            Some(Message::Made(stage, made)) => {
                if group.is_empty() {
                    deadline = Instant::now() + AT_MOST;
                }
                group.push((stage, made));
                full |= group.len() >= GROUP;
            }
            Some(Message::Idle) => full = true,
            None => {}
        }
        if full && !group.is_empty() {
            large |= group.len() > 1;
            failed.extend(commit(&env, std::mem::take(&mut group)).await);
        }
        if end {
            break;
        }
    }
    if large {
        // The entries of large groups are only renamed into place so far.
        let cache = env.cache.clone();
        if let Ok(Err(e)) = tokio::task::spawn_blocking(move || cache.flush()).await {
            tracing::warn!("{e}");
        }
    }
    failed
}

async fn commit(env: &Env, group: Vec<(StageId, Box<Made>)>) -> Vec<Lost> {
    let told: Vec<_> = group.iter().map(|(id, made)| (*id, made.commit.entry.provenance.stage.clone(), made.seconds)).collect();
    let cache = env.cache.clone();
    let result = tokio::task::spawn_blocking(move || {
        let (mut commits, mut rest) = (Vec::new(), Vec::new());
        for (_, made) in group {
            let Made { commit, dir, lock, .. } = *made;
            commits.push(commit);
            rest.push((dir, lock));
        }
        cache.commit(&commits)?;
        for (dir, lock) in rest {
            // Scratch of a finished task: what cannot be removed now goes with the next `flow cache gc`.
            if let Err(e) = cache.remove(&dir) {
                tracing::warn!("{e}");
            }
            drop(lock);
        }
        Ok::<_, CommitError>(commits)
    })
    .await
    .unwrap_or_else(|e| Err(CommitError::Engine(e)));
    match result {
        Ok(commits) => {
            for (_, stage, seconds) in told {
                env.sink.emit(RunEvent::StageFinished { stage, seconds });
            }
            if let Some(committed) = &env.options.committed {
                commits.into_iter().for_each(|c| committed(c));
            }
            Vec::new()
        }
        Err(error) => {
            let error = Arc::new(error);
            env.stop.raise(1);
            for (_, stage, _) in &told {
                let (message, help) = (error.to_string(), Some(CommitError::HELP.into()));
                env.sink.emit(RunEvent::StageFailed { stage: stage.clone(), message, help, log: Vec::new() });
            }
            told.into_iter().map(|(id, ..)| (id, error.clone())).collect()
        }
    }
}
