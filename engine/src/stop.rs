//! Asking a run to stop: once to checkpoint, twice to be killed.

use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};

use tokio::sync::Notify;

/// Shared by who asks and who obeys.
#[derive(Debug, Default)]
pub struct Stop {
    level: AtomicU8,
    asked: AtomicBool,
    notify: Notify,
}

impl Stop {
    /// Asks for one level more: first 1 (checkpoint and stop), then 2 (kill).
    pub fn ask(&self) {
        self.asked.store(true, Ordering::SeqCst);
        self.raise(self.level().saturating_add(1).min(2));
    }
    /// Asks for at least `level`.
    pub fn raise(&self, level: u8) {
        self.level.fetch_max(level, Ordering::SeqCst);
        self.notify.notify_waiters();
    }
    /// Whether a person asked, rather than the run stopping itself after a failure.
    pub fn asked(&self) -> bool {
        self.asked.load(Ordering::SeqCst)
    }
    /// What was asked so far: 0, 1 or 2.
    pub fn level(&self) -> u8 {
        self.level.load(Ordering::SeqCst)
    }
    /// Waits until `level` is asked for.
    pub async fn reached(&self, level: u8) {
        loop {
            let notified = self.notify.notified();
            tokio::pin!(notified);
            notified.as_mut().enable();
            if self.level() >= level {
                return;
            }
            notified.await;
        }
    }
}
