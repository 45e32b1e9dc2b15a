//! Sending results to the remote cache while a run goes on.

use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use serde::Serialize;

use crate::action::ActionFile;
use crate::cache::Cache;
use crate::remote::Remote;

/// Sends what an action produced: objects first, then the entry. Gives the objects and bytes that it did not have.
fn push(remote: &Remote, cache: &Cache, action: &ActionFile) -> Result<(u64, u64), String> {
    let failed = || remote.trouble().unwrap_or_else(|| "the remote cache cannot be used".into());
    let (mut count, mut bytes) = (0, 0);
    for artifact in action.entry.outputs.values() {
        let mut digests = Vec::new();
        if artifact.tree {
            digests.extend(cache.manifest(artifact).map_err(|e| e.to_string())?.entries().iter().map(|e| e.digest));
        }
        digests.push(artifact.digest);
        for digest in digests {
            if let Some(sent) = remote.push_object(&cache.layout().object(&digest), &digest).ok_or_else(failed)? {
                count += 1;
                bytes += sent;
            }
        }
    }
    let text = serde_json::to_vec(action).map_err(|e| e.to_string())?;
    remote.push_entry(&action.entry.key, text).ok_or_else(failed)?;
    Ok((count, bytes))
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
                    Ok((objects, bytes)) => {
                        summary.actions += 1;
                        summary.objects += objects;
                        summary.bytes += bytes;
                    }
                    Err(_) => summary.failed += 1,
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
