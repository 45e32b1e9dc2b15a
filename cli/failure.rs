//! How a command fails: what is printed, and the exit code.

use flow_cache::CacheError;
use flow_engine::problem::{Problem, Problems};
use flow_engine::publish::guard::PublishError;
use flow_engine::run::RunError;
use miette::{GraphicalReportHandler, GraphicalTheme, NarratableReportHandler};
use std::io::IsTerminal;

use crate::print::say;

/// A failure with its exit code.
pub enum Failure {
    /// The pipeline or the command line is wrong: 2.
    Wrong(Problems),
    /// The cache or the environment is broken: 4.
    Broken(String),
}

impl From<Problem> for Failure {
    fn from(problem: Problem) -> Self {
        Self::Wrong(problem.into())
    }
}

impl From<Problems> for Failure {
    fn from(problems: Problems) -> Self {
        Self::Wrong(problems)
    }
}

impl From<CacheError> for Failure {
    fn from(error: CacheError) -> Self {
        match error {
            CacheError::BadRemote { .. } => Problem::new(error.to_string()).into(),
            other => Self::Broken(other.to_string()),
        }
    }
}

impl From<PublishError> for Failure {
    fn from(error: PublishError) -> Self {
        match error {
            PublishError::Cache(error) => error.into(),
            PublishError::Record(error) => Self::Broken(error.to_string()),
        }
    }
}

impl From<RunError> for Failure {
    fn from(error: RunError) -> Self {
        match error {
            RunError::Cache(error) => error.into(),
            RunError::Publish(error) => error.into(),
        }
    }
}

impl Failure {
    /// Prints it on standard error and gives the exit code.
    pub fn report(self) -> u8 {
        match self {
            Self::Wrong(problems) => {
                for problem in &problems.list {
                    say(&render(problem));
                }
                2
            }
            Self::Broken(message) => {
                say(&format!("error: {message}"));
                4
            }
        }
    }
    /// The messages, for `--json`.
    pub fn messages(&self) -> Vec<String> {
        match self {
            Self::Wrong(problems) => problems.list.iter().map(|p| p.message.clone()).collect(),
            Self::Broken(message) => vec![message.clone()],
        }
    }
    /// The exit code.
    pub fn code(&self) -> u8 {
        match self {
            Self::Wrong(_) => 2,
            Self::Broken(_) => 4,
        }
    }
}

fn render(problem: &Problem) -> String {
    let mut out = String::new();
    let tty = std::io::stderr().is_terminal();
    if std::env::var_os("NO_GRAPHICS").is_some() {
        let _ = NarratableReportHandler::new().render_report(&mut out, problem);
        return out;
    }
    let theme = match (tty, std::env::var_os("NO_COLOR").is_some()) {
        (true, false) => GraphicalTheme::unicode(),
        (true, true) => GraphicalTheme::unicode_nocolor(),
        _ => GraphicalTheme::unicode_nocolor(),
    };
    let handler = GraphicalReportHandler::new_themed(theme).with_links(false).with_width(100);
    match handler.render_report(&mut out, problem) {
        Ok(()) => out,
        Err(_) => format!("error: {problem}"),
    }
}
