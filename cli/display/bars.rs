//! Progress bars per running stage, on a terminal.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use flow_engine::events::RunEvent;
use indicatif::{MultiProgress, ProgressBar, ProgressStyle};

use crate::display::line_of;

pub struct Bars {
    width: usize,
    all: MultiProgress,
    running: Mutex<HashMap<String, ProgressBar>>,
}

impl Bars {
    pub fn new(width: usize) -> Self {
        Self { width, all: MultiProgress::new(), running: Mutex::default() }
    }

    pub fn show(&self, event: &RunEvent) {
        let mut running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        match event {
            RunEvent::StageStarted { stage, causes, .. } => {
                let bar = self.all.add(ProgressBar::new_spinner());
                bar.set_style(style("{spinner} {prefix}  {elapsed}  {msg}"));
                bar.set_prefix(format!("{stage:width$}", width = self.width));
                bar.set_message(causes.join("; "));
                bar.enable_steady_tick(Duration::from_millis(120));
                running.insert(stage.clone(), bar);
                return;
            }
            RunEvent::StageProgress { stage, done, total, unit } => {
                if let Some(bar) = running.get(stage) {
                    if bar.length() != Some(*total) {
                        bar.set_style(style("{spinner} {prefix}  [{bar:24}] {pos}/{len} {msg}  {per_sec}  {eta} left"));
                        bar.set_length(*total);
                        bar.set_message(unit.clone());
                    }
                    bar.set_position(*done);
                }
                return;
            }
            RunEvent::StageFinished { stage, .. } | RunEvent::StageFailed { stage, .. } | RunEvent::StageSkipped { stage, .. } => {
                if let Some(bar) = running.remove(stage) {
                    bar.finish_and_clear();
                }
            }
            _ => {}
        }
        drop(running);
        if let Some(line) = line_of(event, self.width) {
            // The terminal may be gone; the run goes on.
            let _ = self.all.println(line);
        }
    }

    pub fn close(&self) {
        let _ = self.all.clear();
    }
}

fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_spinner()).progress_chars("=> ")
}
