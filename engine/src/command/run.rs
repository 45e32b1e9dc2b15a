//! One command from start to end: process group, output, timeout, leftovers.

use std::collections::VecDeque;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::process::{Pid, Signal, kill_process_group, test_kill_process_group};

use crate::command::sandbox;
use crate::plugin::{StageError, TaskContext};

/// A command may print so much; more is taken for a mistake.
const FLOOD: u64 = 64 << 20;
/// Lines that go to the log.
const LINES_TOLD: usize = 1000;
const LAST: usize = 20;
/// Between asking a command to end and killing it.
const GRACE: Duration = Duration::from_secs(5);
const TICK: Duration = Duration::from_millis(100);

/// How a command ended.
pub(super) enum Ended {
    /// With this exit code.
    Exit(i32),
    /// It was asked to stop (timeout or interruption).
    Stopped,
}

/// Starts `command` in its own process group, confined to `dir`, tells what it prints as log lines, and waits for it.
/// Whatever it leaves running is ended too, and is a failure. `tick` is called now and then.
pub(super) fn run(command: Command, dir: &Path, ctx: &TaskContext, tick: &mut dyn FnMut()) -> Result<Ended, StageError> {
    let (reader, writer) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).map_err(|e| StageError::new(format!("pipe: {e}")))?;
    let child = start(command, dir, writer)?;
    let mut running = Running { group: Pid::from_child(&child), child, reader: Some(reader), output: Output::new(ctx) };
    let result = running.supervise(ctx, tick);
    if result.is_err() {
        running.kill();
    }
    running.output.finish();
    result
}

fn start(mut command: Command, dir: &Path, writer: OwnedFd) -> Result<Child, StageError> {
    let second = writer.try_clone().map_err(|e| StageError::new(format!("pipe: {e}")))?;
    command.stdout(writer).stderr(second);
    confined(command, dir)
}

/// Starts a command without input in a process group of its own, where it writes below `dir` only. From a thread of its own:
/// Landlock confines a thread for good, and what it starts inherits that.
pub(super) fn confined(mut command: Command, dir: &Path) -> Result<Child, StageError> {
    use std::os::unix::process::CommandExt;
    let program = command.get_program().to_string_lossy().into_owned();
    command.stdin(Stdio::null()).process_group(0);
    let started = std::thread::scope(|scope| {
        let worker = scope.spawn(|| {
            if let Err(e) = sandbox::restrict(dir) {
                return Err(StageError::new(format!("cannot confine the command to its directory: {e}")));
            }
            command.spawn().map_err(|e| {
                StageError::new(format!("cannot start {program}: {e}")).help("is it installed, and in PATH as the stage sees it?")
            })
        });
        worker.join()
    });
    started.unwrap_or_else(|_| Err(StageError::new("the thread that starts commands failed")))
}

struct Running<'a> {
    child: Child,
    group: Pid,
    /// `None` when all ends of the other side are closed.
    reader: Option<OwnedFd>,
    output: Output<'a>,
}

impl Running<'_> {
    fn supervise(&mut self, ctx: &TaskContext, tick: &mut dyn FnMut()) -> Result<Ended, StageError> {
        let exit = rustix::process::pidfd_open(self.group, rustix::process::PidfdFlags::empty()).ok();
        let mut asked: Option<Instant> = None;
        loop {
            self.wait_for_something(exit.as_ref())?;
            tick();
            if let Some(status) = self.child.try_wait().map_err(|e| StageError::new(format!("wait for the command: {e}")))? {
                self.leftovers(asked.is_some())?;
                use std::os::unix::process::ExitStatusExt;
                return match (asked, status.signal()) {
                    (Some(_), _) => Ok(Ended::Stopped),
                    (None, Some(signal)) => Err(crashed(signal)),
                    (None, None) => Ok(Ended::Exit(status.code().unwrap_or(-1))),
                };
            }
            match asked {
                None if ctx.should_stop() => {
                    asked = Some(Instant::now());
                    let _ = kill_process_group(self.group, Signal::TERM);
                }
                Some(since) if since.elapsed() > GRACE => self.kill(),
                _ => {}
            }
        }
    }

    /// Waits for output, for the end of the process, or for a tick; takes the output in.
    fn wait_for_something(&mut self, exit: Option<&OwnedFd>) -> Result<(), StageError> {
        let mut fds = Vec::with_capacity(2);
        let reads = self.reader.is_some();
        if let Some(reader) = &self.reader {
            fds.push(PollFd::new(reader, PollFlags::IN));
        }
        if let Some(exit) = exit {
            fds.push(PollFd::new(exit, PollFlags::IN));
        }
        let tick = if exit.is_some() { TICK } else { Duration::from_millis(5) };
        let tick = rustix::event::Timespec { tv_sec: 0, tv_nsec: tick.subsec_nanos().into() };
        match poll(&mut fds, Some(&tick)) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(e) => return Err(StageError::new(format!("poll: {e}"))),
        }
        let readable = reads && !fds[0].revents().is_empty();
        drop(fds);
        if readable { self.read() } else { Ok(()) }
    }

    fn read(&mut self) -> Result<(), StageError> {
        let Some(reader) = &self.reader else { return Ok(()) };
        let mut buffer = [0; 16 << 10];
        match rustix::io::read(reader.as_fd(), &mut buffer) {
            Ok(0) => self.reader = None,
            Ok(n) => self.output.take(&buffer[..n])?,
            Err(rustix::io::Errno::INTR | rustix::io::Errno::AGAIN) => {}
            Err(e) => return Err(StageError::new(format!("read the command's output: {e}"))),
        }
        Ok(())
    }

    /// Reads what is left of the output, and ends processes that outlive the command.
    fn leftovers(&mut self, stopped: bool) -> Result<(), StageError> {
        let mut left = test_kill_process_group(self.group).is_ok();
        // A process that left the group still holds the pipe, unless it closed that too.
        let patience = Instant::now();
        while self.reader.is_some() && patience.elapsed() < TICK {
            self.wait_for_something(None)?;
        }
        left |= self.reader.is_some();
        if left {
            self.kill();
            end_marked(self.output.ctx.task_dir());
            if !stopped {
                return Err(StageError::new("the command ended and left processes running; they were ended")
                    .help("wait for what the command starts (`wait`), or start it detached outside of flow"));
            }
        }
        Ok(())
    }

    fn kill(&mut self) {
        let _ = kill_process_group(self.group, Signal::KILL);
    }
}

/// The variable that marks every process of a task: the task's directory. The action key would not do: two caches on one
/// machine may execute the same action at the same time.
pub(super) const MARK: &str = "FLOW_TASK";

/// Ends every process that carries the mark of a task: one that left its process group (`setsid`), or what an engine
/// that was killed left behind.
pub(crate) fn end_marked(task: &Path) {
    let mark = [MARK.as_bytes(), b"=", task.as_os_str().as_encoded_bytes()].concat();
    // What is killed is gone a moment later, and may have started another just before.
    for _ in 0..100 {
        let mut found = false;
        for item in std::fs::read_dir("/proc").into_iter().flatten().flatten() {
            let Some(pid) = item.file_name().to_str().and_then(|n| n.parse::<i32>().ok()).and_then(Pid::from_raw) else { continue };
            let Ok(environment) = std::fs::read(item.path().join("environ")) else { continue };
            if environment.split(|b| *b == 0).any(|v| v == mark) {
                found = true;
                let _ = rustix::process::kill_process(pid, Signal::KILL);
            }
        }
        if !found {
            return;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn crashed(signal: i32) -> StageError {
    match signal {
        9 => StageError::new("the command was killed (signal 9)")
            .help("often the system was out of memory: close other programs, or make the stage smaller"),
        signal => StageError::new(format!("the command crashed (signal {signal})")),
    }
}

/// What a command prints, line by line for the log.
struct Output<'a> {
    ctx: &'a TaskContext,
    rest: Vec<u8>,
    bytes: u64,
    lines: usize,
    /// The last lines, where there are too many to tell.
    last: VecDeque<String>,
}

impl<'a> Output<'a> {
    fn new(ctx: &'a TaskContext) -> Self {
        Self { ctx, rest: Vec::new(), bytes: 0, lines: 0, last: VecDeque::new() }
    }

    fn take(&mut self, bytes: &[u8]) -> Result<(), StageError> {
        self.bytes += bytes.len() as u64;
        if self.bytes > FLOOD {
            return Err(StageError::new(format!("the command printed more than {} MiB and was ended", FLOOD >> 20))
                .help("send what it prints to an output (`> \"$out\"`) or to /dev/null"));
        }
        self.rest.extend_from_slice(bytes);
        let taken = std::mem::take(&mut self.rest);
        let mut lines = taken.split(|b| *b == b'\n');
        let unfinished = lines.next_back().unwrap_or_default();
        lines.for_each(|line| self.line(line));
        self.rest.extend_from_slice(unfinished);
        // One endless line is cut.
        if self.rest.len() > 64 << 10 {
            let line = std::mem::take(&mut self.rest);
            self.line(&line);
        }
        Ok(())
    }

    fn line(&mut self, line: &[u8]) {
        self.lines += 1;
        match self.lines.cmp(&LINES_TOLD) {
            std::cmp::Ordering::Less => self.ctx.log(String::from_utf8_lossy(line)),
            std::cmp::Ordering::Equal => self.ctx.log(format!("… more than {LINES_TOLD} lines; then only the last ones")),
            std::cmp::Ordering::Greater => {
                if self.last.len() == LAST {
                    self.last.pop_front();
                }
                self.last.push_back(String::from_utf8_lossy(line).into_owned());
            }
        }
    }

    fn finish(&mut self) {
        if !self.rest.is_empty() {
            let line = std::mem::take(&mut self.rest);
            self.line(&line);
        }
        for line in self.last.drain(..) {
            self.ctx.log(line);
        }
    }
}
