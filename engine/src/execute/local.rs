//! A task in this process: for light stages.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::sync::mpsc;

use crate::execute::failure::ExecuteError;
use crate::execute::told::Told;
use crate::kind::{Kind, run_caught};
use crate::plugin::{EventSink, Task, TaskContext, TaskEvent};
use crate::stop::Stop;

struct Channel(mpsc::UnboundedSender<TaskEvent>);

impl EventSink for Channel {
    fn emit(&self, event: TaskEvent) {
        // The receiver outlives the task; if it is gone, so is the run.
        let _ = self.0.send(event);
    }
}

pub(super) async fn run(
    kind: &Arc<dyn Kind>,
    task: &Task,
    timeout: Option<Duration>,
    stop: &Stop,
    told: &mut Told,
) -> Result<(), ExecuteError> {
    let (sender, mut events) = mpsc::unbounded_channel();
    let flag = Arc::new(AtomicBool::new(false));
    let context = TaskContext::new(task.clone(), Arc::new(Channel(sender)), flag.clone());
    let (kind, params) = (kind.clone(), task.params.clone());
    let mut work = tokio::task::spawn_blocking(move || run_caught(kind.as_ref(), params, &context));
    let deadline = tokio::time::sleep(timeout.unwrap_or(Duration::from_secs(u32::MAX.into())));
    tokio::pin!(deadline);
    let mut timed_out = false;
    let result = loop {
        tokio::select! {
            done = &mut work => break done,
            Some(event) = events.recv() => told.take(event),
            () = stop.reached(1), if !flag.load(Ordering::Relaxed) => flag.store(true, Ordering::Relaxed),
            () = &mut deadline, if !timed_out => {
                timed_out = true;
                flag.store(true, Ordering::Relaxed);
            }
        }
    };
    while let Ok(event) = events.try_recv() {
        told.take(event);
    }
    match result {
        Ok(Ok(())) => Ok(()),
        Ok(Err(_)) if timed_out => Err(ExecuteError::TimedOut(timeout.unwrap_or_default())),
        Ok(Err(e)) => Err(e.into()),
        Err(e) => Err(ExecuteError::NotRun(e)),
    }
}
