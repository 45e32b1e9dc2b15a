//! Sending results to the remote cache while a run goes on.

use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use serde::Serialize;

use crate::action::ActionFile;
use crate::cache::Cache;
use crate::remote::Remote;

/// Sends what an action produced: objects first, then the entry. Gives the objects and bytes that the remote did not have; `None`
/// where not all of it could be sent, and what the remote has to do with that is in its trouble.
fn push(remote: &Remote, cache: &Cache, action: &ActionFile) -> Option<(u64, u64)> {
    let (mut count, mut bytes) = (0, 0);
    for artifact in action.entry.outputs.values() {
        let mut digests = Vec::new();
        if artifact.tree {
            digests.extend(cache.manifest(artifact).ok()?.entries().iter().map(|e| e.digest));
        }
        digests.push(artifact.digest);
        for digest in digests {
            if let Some(sent) = remote.push_object(&cache.layout().object(&digest), &digest)? {
                count += 1;
                bytes += sent;
            }
        }
    }
    remote.push_entry(&action.entry.key, serde_json::to_vec(action).ok()?)?;
    Some((count, bytes))
}

/// What was sent in the background.
#[derive(Clone, Debug, Default, Serialize)]
pub struct UploadSummary {
    /// Actions.
    pub actions: u64,
    /// Objects that the remote did not have.
    pub objects: u64,
    /// Bytes of them.
    pub bytes: u64,
    /// Actions that could not be sent.
    pub failed: u64,
}

/// Sends results in the background.
pub struct Uploader {
    queue: Sender<ActionFile>,
    thread: JoinHandle<UploadSummary>,
    done: Mutex<Receiver<()>>,
}

impl Uploader {
    /// Starts the thread that sends.
    pub fn start(remote: Arc<Remote>, cache: Arc<Cache>) -> Self {
        let (queue, jobs) = channel::<ActionFile>();
        let (finished, done) = channel();
        let thread = std::thread::spawn(move || {
            let mut summary = UploadSummary::default();
            for action in jobs {
                match push(&remote, &cache, &action) {
                    Some((objects, bytes)) => {
                        summary.actions += 1;
                        summary.objects += objects;
                        summary.bytes += bytes;
                    }
                    None => summary.failed += 1,
                }
            }
            let _ = finished.send(());
            summary
        });
        Self { queue, thread, done: Mutex::new(done) }
    }

    /// Adds an action.
    pub fn submit(&self, action: ActionFile) {
        // The thread ends when this queue does.
        let _ = self.queue.send(action);
    }

    /// Waits until everything is sent or the time is over; `None` then.
    pub fn finish(self, limit: Duration) -> Option<UploadSummary> {
        drop(self.queue);
        let done = self.done.into_inner().unwrap_or_else(PoisonError::into_inner);
        match done.recv_timeout(limit) {
            Ok(()) => self.thread.join().ok(),
            Err(_) => None,
        }
    }
}
