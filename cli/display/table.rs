//! The short table at the end of a run.

use std::path::Path;

use flow_engine::run::RunOutcome;

use crate::commands::print;
use crate::display::seconds;

/// Prints stages, headline figures, warnings and published paths.
pub fn print_outcome(outcome: &RunOutcome, root: &Path) {
    let width = outcome.stages.iter().map(|s| s.stage.len()).max().unwrap_or(0);
    for stage in &outcome.stages {
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
    if !outcome.headline.is_empty() {
        print("");
        let width = outcome.headline.iter().map(|(k, _)| k.chars().count()).max().unwrap_or(0);
        for (key, value) in &outcome.headline {
            print(&format!("{key:width$}  {value}"));
        }
    }
    if !outcome.published.is_empty() {
        print("");
    }
    for path in &outcome.published {
        let here = std::env::current_dir().unwrap_or_else(|_| root.to_owned());
        print(&path.strip_prefix(&here).unwrap_or(path).display().to_string());
    }
    for (stage, warning) in &outcome.warnings {
        eprintln!("warning: {stage}: {warning}");
    }
    for error in &outcome.publish_errors {
        eprintln!("error: {error}");
    }
    for stage in &outcome.refused {
        eprintln!("gate `{stage}` refused");
    }
}
