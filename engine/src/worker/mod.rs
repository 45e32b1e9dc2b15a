//! The inside of a child process: reads `task.json`, runs the stage, writes `events.jsonl` and `result.json`.
//!
//! What the process that started it reads of these is in [`result`] and `tail`.

pub mod result;
pub(crate) mod tail;

use std::fs::{File, OpenOptions};
use std::io::{self, BufRead, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use flow_cache::{CacheError, KeyLock};

use crate::kind::run_caught;
use crate::plugin::{EventSink, StageError, Task, TaskContext, TaskEvent};
use crate::registry::Registry;
use result::TaskResult;

/// How long an orphan may take to checkpoint after its parent died.
const ORPHAN_GRACE: Duration = Duration::from_secs(3);
/// Progress more often than this is for nobody.
const PROGRESS_EVERY: Duration = Duration::from_millis(50);

/// Why a task gave no result.
#[derive(Debug, thiserror::Error)]
enum WorkerError {
    /// The stage says what is wrong.
    #[error(transparent)]
    Stage(#[from] StageError),
    #[error(transparent)]
    Lock(#[from] CacheError),
    #[error("{doing} {}: {source}", path.display())]
    Io { doing: &'static str, path: PathBuf, source: io::Error },
    #[error("{}: {source}", path.display())]
    Description { path: PathBuf, source: serde_json::Error },
    #[error("unknown kind `{0}`")]
    UnknownKind(String),
}

impl WorkerError {
    fn io(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io { doing, path, source }
    }
}

/// Runs the task in `dir` and writes its result; gives the exit code of the process.
pub fn main(registry: &Registry, dir: &Path) -> u8 {
    let result = match run(registry, dir) {
        Ok(()) => return 0,
        Err(WorkerError::Stage(error)) => TaskResult::of(&error),
        Err(error) => TaskResult { message: Some(error.to_string()), ..TaskResult::default() },
    };
    if let Err(e) = result.write(dir) {
        eprintln!("{}: {e}", dir.display());
    }
    1
}

fn run(registry: &Registry, dir: &Path) -> Result<(), WorkerError> {
    // Held to the end of the process: a new parent waits for an orphan to be gone.
    let _lock = KeyLock::wait(&dir.join("lock"))?;
    let file = dir.join("task.json");
    let text = std::fs::read(&file).map_err(WorkerError::io("read", &file))?;
    let task: Task = serde_json::from_slice(&text).map_err(|source| WorkerError::Description { path: file, source })?;
    let kind = registry.get(&task.kind).ok_or_else(|| WorkerError::UnknownKind(task.kind.clone()))?.clone();
    let stop = Arc::new(AtomicBool::new(false));
    watch_parent(stop.clone());
    let events = dir.join("events.jsonl");
    let file = OpenOptions::new().create(true).append(true).open(&events).map_err(WorkerError::io("open", &events))?;
    let sink = Arc::new(Lines { file: Mutex::new((file, Instant::now() - PROGRESS_EVERY)) });
    let params = task.params.clone();
    let context = TaskContext::new(task, sink.clone(), stop);
    run_caught(kind.as_ref(), params, &context)?;
    if let Some(held) = crate::memory::resident() {
        sink.emit(TaskEvent::Metric { name: "peak_rss_bytes".into(), value: held.peak as f64 });
    }
    TaskResult::good().write(dir).map_err(WorkerError::io("write the result in", dir))
}

/// The parent holds the other end of standard input: a line asks to stop, its end means that the parent died.
fn watch_parent(stop: Arc<AtomicBool>) {
    std::thread::spawn(move || {
        for line in std::io::stdin().lock().lines() {
            match line {
                Ok(line) if line == "stop" => stop.store(true, Ordering::Relaxed),
                Ok(_) => {}
                Err(_) => break,
            }
        }
        stop.store(true, Ordering::Relaxed);
        std::thread::sleep(ORPHAN_GRACE);
        std::process::exit(130);
    });
}

struct Lines {
    /// The file, and when progress was last written.
    file: Mutex<(File, Instant)>,
}

impl EventSink for Lines {
    fn emit(&self, event: TaskEvent) {
        let mut guard = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        if let TaskEvent::Progress { done, total, .. } = &event
            && done < total
        {
            if guard.1.elapsed() < PROGRESS_EVERY {
                return;
            }
            guard.1 = Instant::now();
        }
        if let Ok(mut line) = serde_json::to_vec(&event) {
            line.push(b'\n');
            // A full disk shows itself when the outputs are written; an event is not worth failing for.
            let _ = guard.0.write_all(&line);
        }
    }
}
