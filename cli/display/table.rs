//! The short table at the end of a run.

use std::path::Path;

use flow_engine::run::outcome::RunOutcome;

use crate::display::amounts::seconds;
use crate::print::{print, say};

/// Prints stages, headline figures, warnings and published paths.
pub fn print_outcome(outcome: &RunOutcome, root: &Path, quiet: bool) {
    // What was reused is of interest in a short list only.
    let short = outcome.stages.len() <= 40;
    let shown: Vec<_> = outcome.stages.iter().filter(|s| !quiet && (short || s.state != "reused")).collect();
    let width = shown.iter().map(|s| s.stage.len()).max().unwrap_or(0);
    for stage in shown {
        let time = stage.seconds.map(seconds).unwrap_or_default();
        print(&format!("{:width$}  {:8}  {time:>12}", stage.stage, stage.state));
    }
    print(&format!(
        "{} executed, {} reused{} in {}",
        outcome.executed.len(),
        outcome.reused.len(),
        if outcome.failed.is_empty() { String::new() } else { format!(", {} failed", outcome.failed.len()) },
        seconds(outcome.seconds)
    ));
    if !outcome.checked.is_empty() {
        let different = outcome.different().count();
        print(&format!("{} made again, {different} different", outcome.checked.len()));
    }
    if !quiet && !outcome.headline.is_empty() {
        print("");
        let width = outcome.headline.iter().map(|(k, _)| k.chars().count()).max().unwrap_or(0);
        for (key, value) in &outcome.headline {
            print(&format!("{key:width$}  {value}"));
        }
    }
    if !quiet && !outcome.published.is_empty() {
        print("");
    }
    for path in outcome.published.iter().filter(|_| !quiet) {
        let here = std::env::current_dir().unwrap_or_else(|_| root.to_owned());
        print(&path.strip_prefix(&here).unwrap_or(path).display().to_string());
    }
    for stray in &outcome.strays {
        say(&format!("of another run: {} ({}, run {}): {}", stray.path, stray.from, stray.run, stray.why));
    }
    for (stage, warning) in &outcome.warnings {
        say(&format!("warning: {stage}: {warning}"));
    }
    for error in &outcome.publish_errors {
        say(&format!("error: {error}"));
    }
    for stage in &outcome.withheld {
        say(&format!("withheld: {stage}"));
    }
    for stage in &outcome.refused {
        let reasons = outcome.reasons.get(stage).map(|r| r.join("; ")).filter(|r| !r.is_empty());
        say(&format!("gate `{stage}` refused{}", reasons.map_or(String::new(), |r| format!(": {r}"))));
    }
}
