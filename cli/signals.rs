//! Signals, in one place for all commands: a run that listens is asked to stop, anything else ends at once.

use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex, Once, PoisonError};

use flow_engine::stop::Stop;
use tokio::signal::unix::{SignalKind, signal};

use crate::print::say;

struct Listener {
    stop: Arc<Stop>,
    /// Whether a person is told what a signal does.
    tell: bool,
}

static LISTENER: Mutex<Option<Listener>> = Mutex::new(None);
static STARTED: Once = Once::new();

/// Held while a run listens; without one, Ctrl-C and SIGTERM end the process with exit code 130.
pub struct Listening(());

impl Listening {
    /// From now on signals ask this run to stop: once to checkpoint, twice to be killed.
    pub fn of(stop: &Arc<Stop>, tell: bool) -> Self {
        *LISTENER.lock().unwrap_or_else(PoisonError::into_inner) = Some(Listener { stop: stop.clone(), tell });
        // A handler cannot be taken back, so that from the first run on this thread decides for all commands.
        STARTED.call_once(|| {
            let (tell, ready) = channel();
            drop(std::thread::Builder::new().name("signals".into()).spawn(move || wait(&tell)));
            // A signal that comes before its handler would end the process at once.
            let _ = ready.recv();
        });
        Self(())
    }
}

impl Drop for Listening {
    fn drop(&mut self) {
        *LISTENER.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }
}

fn wait(ready: &Sender<()>) {
    let Ok(runtime) = tokio::runtime::Builder::new_current_thread().enable_io().build() else { return };
    runtime.block_on(async {
        let (Ok(mut interrupt), Ok(mut terminate)) = (signal(SignalKind::interrupt()), signal(SignalKind::terminate())) else { return };
        let _ = ready.send(());
        loop {
            tokio::select! {
                Some(()) = interrupt.recv() => obey(true),
                Some(()) = terminate.recv() => obey(false),
                else => return,
            }
        }
    });
}

fn obey(keyboard: bool) {
    match &*LISTENER.lock().unwrap_or_else(PoisonError::into_inner) {
        None => std::process::exit(130),
        Some(listener) => {
            // The third time nothing is waited for any more: what is done is kept, what is begun is begun again.
            if listener.stop.level() > 1 {
                std::process::exit(130);
            }
            listener.stop.ask();
            if keyboard && listener.tell {
                let word = if listener.stop.level() > 1 { "killing" } else { "stopping at the next checkpoint; Ctrl-C again kills" };
                say(&format!("\n{word}"));
            }
        }
    }
}
