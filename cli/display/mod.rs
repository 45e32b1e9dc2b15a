//! Displays: consumers of the one event stream.

pub mod amounts;
mod bars;
pub mod json;
mod lines;
mod plain;
pub mod table;

use std::io::IsTerminal;
use std::sync::Arc;

use flow_engine::events::{RunEvent, RunSink};

use crate::print::say;
use lines::line_of;

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
