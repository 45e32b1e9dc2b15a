//! Displays: consumers of the one event stream.

mod bars;
pub mod json;
mod plain;
pub mod table;

use std::io::IsTerminal;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use flow_engine::events::{RunEvent, RunSink};

use crate::commands::say;

/// The display of a run.
pub enum Display {
    Json,
    Plain(plain::Plain),
    Bars(bars::Bars),
    /// Width of the names.
    Quiet(usize),
}

impl RunSink for Display {
    fn emit(&self, event: RunEvent) {
        match self {
            Self::Json => json::line(&event),
            Self::Plain(plain) => plain.show(&event),
            Self::Bars(bars) => bars.show(&event),
            Self::Quiet(width) => {
                if matches!(
                    event,
                    RunEvent::StageFailed { .. } | RunEvent::GateRefused { .. } | RunEvent::StageChecked { difference: Some(_), .. }
                ) && let Some(line) = line_of(&event, *width)
                {
                    say(&line);
                }
            }
        }
    }
}

impl Display {
    /// Leaves the terminal tidy.
    pub fn close(&self) {
        if let Self::Bars(bars) = self {
            bars.close();
        }
    }
}

/// JSON where asked for, bars on a terminal, plain lines elsewhere, failures only where quiet is asked for.
pub fn choose(as_json: bool, quiet: bool, width: usize) -> Arc<Display> {
    Arc::new(if as_json {
        Display::Json
    } else if quiet {
        Display::Quiet(width)
    } else if std::io::stderr().is_terminal() {
        Display::Bars(bars::Bars::new(width))
    } else {
        Display::Plain(plain::Plain::new(width))
    })
}

/// Wall seconds for people.
pub fn seconds(s: f64) -> String {
    if s < 10.0 {
        format!("{s:.2} s")
    } else if s < 120.0 {
        format!("{s:.1} s")
    } else {
        format!("{} min {:02} s", (s / 60.0) as u64, (s % 60.0) as u64)
    }
}

/// Bytes for people.
pub fn bytes(n: u64) -> String {
    match n {
        0..1024 => format!("{n} B"),
        1024..1_048_576 => format!("{:.1} KiB", n as f64 / 1024.0),
        1_048_576..1_073_741_824 => format!("{:.1} MiB", n as f64 / 1_048_576.0),
        _ => format!("{:.2} GiB", n as f64 / 1_073_741_824.0),
    }
}

/// A moment in the past for people.
pub fn ago(unix: u64) -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs());
    let past = now.saturating_sub(unix);
    match past {
        0..60 => format!("{past} s ago"),
        60..7200 => format!("{} min ago", past / 60),
        7200..172_800 => format!("{} h ago", past / 3600),
        _ => format!("{} days ago", past / 86_400),
    }
}

/// What is worth a line, whichever way lines are shown.
fn line_of(event: &RunEvent, width: usize) -> Option<String> {
    Some(match event {
        RunEvent::StageStarted { stage, causes, attempt, .. } => {
            let again = if *attempt > 1 { format!(" (attempt {attempt})") } else { String::new() };
            format!("{stage:width$}  runs{again}: {}", causes.join("; "))
        }
        RunEvent::StageFinished { stage, seconds: s } => format!("{stage:width$}  done in {}", seconds(*s)),
        RunEvent::StageWaiting { stage, reason } => format!("{stage:width$}  waits: {reason}"),
        RunEvent::StageLog { stage, message } => format!("{stage:width$}  {message}"),
        RunEvent::StageWarning { stage, message } => format!("{stage:width$}  warning: {message}"),
        RunEvent::StageRetried { stage, message, wait } => format!("{stage:width$}  failed, tried again in {wait:.0} s: {message}"),
        RunEvent::StageFailed { stage, message, help, log } => {
            let mut text = format!("{stage:width$}  FAILED: {message}");
            for line in log {
                text.push_str(&format!("\n{:width$}  | {line}", ""));
            }
            if let Some(help) = help {
                text.push_str(&format!("\n{:width$}  help: {help}", ""));
            }
            text
        }
        RunEvent::StageSkipped { stage, because } => format!("{stage:width$}  not run: {because}"),
        RunEvent::StageChecked { stage, difference: None } => format!("{stage:width$}  made again, byte for byte the same"),
        RunEvent::StageChecked { stage, difference: Some(d) } => format!("{stage:width$}  DIFFERS: {}", d.message),
        RunEvent::GateRefused { stage, reasons } => format!("{stage:width$}  gate refused: {}", reasons.join("; ")),
        _ => return None,
    })
}
