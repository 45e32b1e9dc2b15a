//! A task in a child process: for heavy stages, whose crash must not take the engine down.

use std::fs::File;
use std::path::Path;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use tokio::io::AsyncWriteExt;
use tokio::process::Command;

use crate::execute::failure::{ExecuteError, Failure};
use crate::execute::told::Told;
use crate::plugin::Task;
use crate::run::options::WorkerCommand;
use crate::stop::Stop;
use crate::worker::result::TaskResult;
use crate::worker::tail::Tail;

/// How long a task may take to checkpoint after it was asked to stop by a timeout.
const GRACE: Duration = Duration::from_secs(20);
const TAIL_EVERY: Duration = Duration::from_millis(100);

pub(super) async fn run(
    worker: &WorkerCommand,
    task: &Task,
    dir: &Path,
    timeout: Option<Duration>,
    stop: &Stop,
    told: &mut Told,
) -> Result<(), Failure> {
    let log = dir.join("stderr.log");
    let stderr = File::create(&log).map_err(|source| ExecuteError::Create { path: log.clone(), source })?;
    let mut command = Command::new(&worker.program);
    command.args(&worker.args).arg(dir).envs(worker.env.iter().map(|(k, v)| (k, v)));
    for name in &task.withheld {
        command.env_remove(name);
    }
    // Its own process group: Ctrl-C reaches the engine alone, which asks the task to checkpoint.
    command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(stderr).process_group(0).kill_on_drop(true);
    let mut child = command.spawn().map_err(|source| ExecuteError::Start { program: worker.program.clone(), source })?;
    let mut stdin = child.stdin.take();
    let mut tail = Tail::new(&dir.join("events.jsonl"));
    let deadline = tokio::time::sleep(timeout.unwrap_or(Duration::from_secs(u32::MAX.into())));
    tokio::pin!(deadline);
    let (mut asked, mut timed_out, mut killed) = (false, false, false);
    let status = loop {
        tokio::select! {
            status = child.wait() => break status,
            () = tokio::time::sleep(TAIL_EVERY) => tail.read(&mut |e| told.take(e)),
            () = stop.reached(1), if !asked => {
                asked = true;
                ask(&mut stdin).await;
            }
            () = stop.reached(2), if !killed => {
                killed = true;
                let _ = child.start_kill();
            }
            () = &mut deadline, if !killed => {
                if timed_out {
                    killed = true;
                    let _ = child.start_kill();
                } else {
                    timed_out = true;
                    ask(&mut stdin).await;
                    deadline.as_mut().reset(tokio::time::Instant::now() + GRACE);
                }
            }
        }
    };
    tail.read(&mut |e| told.take(e));
    let status = status.map_err(ExecuteError::Wait)?;
    match TaskResult::read(dir) {
        Some(result) if result.ok => Ok(()),
        _ if timed_out => Err(ExecuteError::TimedOut(timeout.unwrap_or_default()).into()),
        Some(result) => Err(result.error("failed without a message").into()),
        None if killed => Err(ExecuteError::Interrupted.into()),
        None => Err(crash(status, &log, told)),
    }
}

async fn ask(stdin: &mut Option<tokio::process::ChildStdin>) {
    if let Some(pipe) = stdin {
        // A child that is gone already cannot be asked; its exit tells.
        let _ = pipe.write_all(b"stop\n").await;
        let _ = pipe.flush().await;
    }
}

fn crash(status: ExitStatus, log: &Path, told: &Told) -> Failure {
    use std::os::unix::process::ExitStatusExt;
    let mut failure = Failure::from(match status.signal() {
        Some(9) => ExecuteError::Killed,
        Some(signal) => ExecuteError::Crashed(signal),
        None => ExecuteError::NoResult(status.code().unwrap_or(-1)),
    });
    failure.log = told.tail();
    let text = std::fs::read(log).map(|b| String::from_utf8_lossy(&b).into_owned()).unwrap_or_default();
    let lines: Vec<_> = text.lines().collect();
    failure.log.extend(lines[lines.len().saturating_sub(20)..].iter().map(ToString::to_string));
    failure
}
