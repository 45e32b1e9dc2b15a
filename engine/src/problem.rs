//! What is wrong with a pipeline file or a command line: a message, a place, and what to do.

use std::sync::Arc;

use miette::{NamedSource, SourceSpan};

/// One thing that is wrong, with its place in the file where it has one.
#[derive(Clone, Debug, thiserror::Error, miette::Diagnostic)]
#[error("{message}")]
pub struct Problem {
    /// What is wrong and what was expected.
    pub message: String,
    /// What to do next.
    #[help]
    pub help: Option<String>,
    /// The file.
    #[source_code]
    pub source_code: Option<Arc<NamedSource<Arc<str>>>>,
    /// Where in the file.
    #[label("{label}")]
    pub span: Option<SourceSpan>,
    /// A word or two at the place.
    pub label: String,
}

impl Problem {
    /// A problem without a place.
    pub fn new(message: impl Into<String>) -> Self {
        Self { message: message.into(), help: None, source_code: None, span: None, label: "here".into() }
    }
    /// Adds what to do next.
    #[must_use]
    pub fn help(mut self, help: impl Into<String>) -> Self {
        self.help = Some(help.into());
        self
    }
    /// Adds what to do next, if there is something to say.
    #[must_use]
    pub fn maybe_help(mut self, help: Option<String>) -> Self {
        self.help = help.or(self.help);
        self
    }
    /// Replaces the words at the place.
    #[must_use]
    pub fn label(mut self, label: impl Into<String>) -> Self {
        self.label = label.into();
        self
    }
    /// Line and column (from 1), where the problem has a place.
    pub fn line_column(&self) -> Option<(usize, usize)> {
        let (source, span) = (self.source_code.as_ref()?, self.span?);
        let before = source.inner().get(..span.offset())?;
        let line = before.matches('\n').count() + 1;
        let column = before.rsplit('\n').next().map_or(0, |l| l.chars().count()) + 1;
        Some((line, column))
    }
}

/// Everything that is wrong at once; never empty.
#[derive(Clone, Debug, thiserror::Error, miette::Diagnostic)]
#[error("{}", summary(.list))]
pub struct Problems {
    /// The problems in the order of the file.
    #[related]
    pub list: Vec<Problem>,
}

fn summary(list: &[Problem]) -> String {
    match list {
        [one] => one.message.clone(),
        many => format!("{} problems", many.len()),
    }
}

impl From<Problem> for Problems {
    fn from(problem: Problem) -> Self {
        Self { list: vec![problem] }
    }
}

/// The known name that was probably meant, if one is near.
pub fn nearest<'a>(name: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let limit = (name.chars().count() / 3).clamp(1, 4);
    known
        .into_iter()
        .map(|k| (strsim::damerau_levenshtein(name, k), k))
        .filter(|(d, k)| *d <= limit || (name.len() >= 3 && k.split(['.', '_', '-']).any(|part| part == name)))
        .min_by_key(|(d, _)| *d)
        .map(|(_, k)| k)
}

/// "did you mean `x`?", else the whole list of what there is.
pub fn suggest<'a>(name: &str, known: impl IntoIterator<Item = &'a str> + Clone) -> String {
    if let Some(near) = nearest(name, known.clone()) {
        return format!("did you mean `{near}`?");
    }
    let all: Vec<_> = known.into_iter().map(|k| format!("`{k}`")).collect();
    if all.is_empty() { "there are none".into() } else { format!("known: {}", all.join(", ")) }
}
