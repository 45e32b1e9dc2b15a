//! Events as lines.

use flow_engine::events::RunEvent;

use crate::display::amounts::seconds;

/// What is worth a line, whichever way lines are shown.
pub fn line_of(event: &RunEvent, width: usize) -> Option<String> {
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
