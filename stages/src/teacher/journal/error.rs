//! What can go wrong with kept answers.

use std::fmt::Display;
use std::path::{Path, PathBuf};

/// Kept answers cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    /// The disk says no.
    #[error("{doing} {}: {source}", path.display())]
    Io {
        /// What was tried.
        doing: &'static str,
        /// With which file.
        path: PathBuf,
        /// What came of it.
        source: std::io::Error,
    },
    /// A frame that has changed since it was found.
    #[error("{}: the answer at byte {at} is damaged", path.display())]
    Damaged {
        /// The segment.
        path: PathBuf,
        /// Where in it.
        at: u64,
    },
    /// A whole frame whose answer cannot be unpacked.
    #[error("{}: the answer at byte {at}: {source}", path.display())]
    Unreadable {
        /// The segment.
        path: PathBuf,
        /// Where in it.
        at: u64,
        /// Why.
        source: std::io::Error,
    },
    /// An answer that cannot be packed.
    #[error("{}: {source}", dir.display())]
    Unpackable {
        /// The journal.
        dir: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The thread that writes has ended.
    #[error("{}: the journal's writer is gone", .0.display())]
    Gone(PathBuf),
    /// The thread that writes could not; what it says names the file.
    #[error("{0}")]
    NotWritten(String),
}

impl JournalError {
    /// For `map_err`.
    pub(super) fn io(doing: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> Self {
        move |source| Self::Io { doing, path: path.to_owned(), source }
    }
}

impl miette::Diagnostic for JournalError {
    fn help<'a>(&'a self) -> Option<Box<dyn Display + 'a>> {
        Some(Box::new(match self {
            Self::Io { .. } | Self::NotWritten(_) => "answers that were stored before are safe; make room or repair the disk and run again",
            Self::Damaged { .. } => "run again: a damaged answer is passed over when the journal is opened, and asked for once more",
            Self::Unreadable { .. } | Self::Unpackable { .. } | Self::Gone(_) => return None,
        }))
    }
}
