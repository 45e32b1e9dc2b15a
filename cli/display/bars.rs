//! Progress on a terminal: a bar for every running stage, and one for the run.

use std::collections::HashMap;
use std::fmt::Write;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use flow_engine::events::RunEvent;
use indicatif::{MultiProgress, ProgressBar, ProgressState, ProgressStyle};

use crate::display::lines::line_of;

/// Below so many columns a bar says less.
const NARROW: u16 = 64;

pub struct Bars {
    width: usize,
    all: MultiProgress,
    running: Mutex<HashMap<String, ProgressBar>>,
    /// Stages of the run that are settled, always the last line.
    total: ProgressBar,
}

impl Bars {
    pub fn new(width: usize) -> Self {
        let all = MultiProgress::new();
        let total = all.add(ProgressBar::new(0));
        Self { width, all, running: Mutex::default(), total }
    }

    pub fn show(&self, event: &RunEvent) {
        let mut running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        match event {
            RunEvent::RunStarted { stages, .. } => self.begin(stages.len()),
            RunEvent::StageStarted { stage, causes, .. } => {
                let bar = self.all.insert_before(&self.total, ProgressBar::new_spinner());
                bar.set_style(style("{spinner} {prefix}  {elapsed}  {wide_msg}"));
                bar.set_prefix(self.name(stage));
                bar.set_message(causes.join("; "));
                bar.enable_steady_tick(Duration::from_millis(120));
                running.insert(stage.clone(), bar);
                return;
            }
            RunEvent::StageProgress { stage, done, total, unit } => {
                if let Some(bar) = running.get(stage) {
                    if bar.length() != Some(*total) {
                        bar.set_style(style(if columns() < NARROW {
                            "{spinner} {prefix} {wide_bar} {percent}%"
                        } else {
                            "{spinner} {prefix}  {wide_bar} {pos}/{len} {msg}  {rate}  {eta} left"
                        }));
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
                self.total.inc(1);
            }
            RunEvent::StageReused { .. } => self.total.inc(1),
            _ => {}
        }
        drop(running);
        if let Some(line) = line_of(event, self.width) {
            // The terminal may be gone; the run goes on.
            let _ = self.all.println(line);
        }
    }

    fn begin(&self, stages: usize) {
        self.total.set_style(style(if columns() < NARROW {
            "{wide_bar} {pos}/{len}"
        } else {
            "{wide_bar} {pos} of {len} stages in {elapsed}"
        }));
        self.total.set_length(stages as u64);
    }

    /// A stage's name, as wide as the others where there is room for it.
    fn name(&self, stage: &str) -> String {
        let room = self.width.min(usize::from(columns()) / 3).max(8);
        if stage.chars().count() > room {
            return stage.chars().take(room - 1).chain(['…']).collect();
        }
        format!("{stage:room$}")
    }

    pub fn close(&self) {
        self.total.finish_and_clear();
        let _ = self.all.clear();
    }
}

/// Columns of the terminal.
fn columns() -> u16 {
    console::Term::stderr().size().1
}

fn rate(state: &ProgressState, out: &mut dyn Write) {
    let per_second = state.per_sec();
    // A terminal that does not take text shows nothing.
    let _ = match per_second {
        x if x >= 10_000.0 => write!(out, "{:.1}k/s", x / 1000.0),
        x if x >= 10.0 => write!(out, "{x:.0}/s"),
        x => write!(out, "{x:.2}/s"),
    };
}

fn style(template: &str) -> ProgressStyle {
    let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_spinner());
    style.with_key("rate", rate).progress_chars("=> ")
}
