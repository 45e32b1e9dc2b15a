//! Plain lines on standard error, for logs and pipes.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use flow_engine::events::RunEvent;

use crate::display::lines::line_of;
use crate::print::say;

/// Progress is worth a line this often.
const EVERY: Duration = Duration::from_secs(10);

pub struct Plain {
    width: usize,
    told: Mutex<HashMap<String, Instant>>,
}

impl Plain {
    pub fn new(width: usize) -> Self {
        Self { width, told: Mutex::default() }
    }

    pub fn show(&self, event: &RunEvent) {
        let width = self.width;
        if let Some(line) = line_of(event, width) {
            say(&line);
        }
        if let RunEvent::StageProgress { stage, done, total, unit } = event {
            let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
            let last = told.entry(stage.clone()).or_insert_with(Instant::now);
            if last.elapsed() >= EVERY {
                *last = Instant::now();
                let percent = if *total > 0 { 100.0 * *done as f64 / *total as f64 } else { 0.0 };
                say(&format!("{stage:width$}  {done} of {total} {unit} ({percent:.0} %)"));
            }
        }
    }
}
