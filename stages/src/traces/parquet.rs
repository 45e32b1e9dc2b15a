//! Parquet files, batch by batch. The library panics on some damaged files, where it trusts lengths and offsets that it read:
//! that is an error here like any other, and the file is read no further.

use std::cell::Cell;
use std::fs::File;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Once;

use arrow_array::RecordBatch;
use flow_engine::plugin::StageError;
use parquet::arrow::ProjectionMask;
use parquet::arrow::arrow_reader::{ArrowReaderOptions, ParquetRecordBatchReader, ParquetRecordBatchReaderBuilder};
use parquet::errors::ParquetError;

/// Rows of a batch.
const BATCH_ROWS: usize = 8_192;

/// What of a file is read.
#[derive(Clone, Debug, Default)]
pub(super) struct Part<'a> {
    /// Some of its columns; those that are missing are left out.
    pub columns: Option<&'a [&'a str]>,
    /// Some of its rows.
    pub rows: Option<Range<usize>>,
    /// Columns as Parquet has them, without the Arrow types that their writer noted beside: lists of a fixed size and views of
    /// lists are lists then.
    pub plain_types: bool,
}

/// A file that is being read; none after a failure.
pub(super) struct Batches {
    path: PathBuf,
    reader: Option<ParquetRecordBatchReader>,
    /// Row of the file that the next batch begins with.
    next_row: u64,
    /// How this kind of file names a failure.
    failed: fn(&Path, &Wrong) -> StageError,
}

impl Batches {
    /// Opens a file.
    pub fn open(path: &Path, part: Part<'_>, failed: fn(&Path, &Wrong) -> StageError) -> Result<Self, StageError> {
        let file = File::open(path).map_err(|e| StageError::io("cannot read", path, &e))?;
        let next_row = part.rows.as_ref().map_or(0, |r| r.start as u64);
        let reader = guarded(|| {
            let options = ArrowReaderOptions::new().with_skip_arrow_metadata(part.plain_types);
            let mut builder = ParquetRecordBatchReaderBuilder::try_new_with_options(file, options)?.with_batch_size(BATCH_ROWS);
            if let Some(columns) = part.columns {
                let mask = ProjectionMask::columns(builder.parquet_schema(), columns.iter().copied());
                builder = builder.with_projection(mask);
            }
            if let Some(rows) = part.rows {
                builder = builder.with_offset(rows.start).with_limit(rows.len());
            }
            Ok(builder.build()?)
        });
        Ok(Self { path: path.to_owned(), reader: Some(reader.map_err(|e| failed(path, &e))?), next_row, failed })
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Turns a batch and the row that it begins with into something else.
    pub fn next<T>(&mut self, body: impl FnOnce(&RecordBatch, u64) -> Result<T, String>) -> Option<Result<T, StageError>> {
        let reader = self.reader.as_mut()?;
        let first = self.next_row;
        let read = guarded(|| {
            let Some(batch) = reader.next() else { return Ok(None) };
            let batch = batch.map_err(ParquetError::from)?;
            Ok(Some((batch.num_rows() as u64, body(&batch, first).map_err(Wrong::Content)?)))
        });
        match read {
            Ok(None) => None,
            Ok(Some((rows, made))) => {
                self.next_row += rows;
                Some(Ok(made))
            }
            Err(e) => {
                self.reader = None;
                Some(Err((self.failed)(&self.path, &e)))
            }
        }
    }
}

/// What is wrong with a file.
#[derive(Debug, thiserror::Error)]
pub(super) enum Wrong {
    /// It is no whole Parquet file.
    #[error("{0}")]
    Parquet(String),
    /// Its rows are not what they should be.
    #[error("{0}")]
    Content(String),
}

impl From<ParquetError> for Wrong {
    fn from(e: ParquetError) -> Self {
        Self::Parquet(e.to_string())
    }
}

thread_local! {
    /// Whether a panic of this thread becomes an error, and is not told on its own.
    static GUARDED: Cell<bool> = const { Cell::new(false) };
}

/// Runs what reads a file; a panic is an error with its message.
fn guarded<T>(body: impl FnOnce() -> Result<T, Wrong>) -> Result<T, Wrong> {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let tell = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            if !GUARDED.get() {
                tell(panic);
            }
        }));
    });
    let outer = GUARDED.replace(true);
    let result = catch_unwind(AssertUnwindSafe(body));
    GUARDED.set(outer);
    match result {
        Ok(result) => result,
        Err(panic) => {
            let text = panic.downcast_ref::<String>().map(String::as_str).or_else(|| panic.downcast_ref::<&str>().copied());
            Err(Wrong::Parquet(format!("its lengths or offsets contradict each other ({})", text.unwrap_or("no more is known"))))
        }
    }
}

/// A file that is being read as traces and is not.
pub(super) fn unreadable(path: &Path, wrong: &Wrong) -> StageError {
    corrupt(path, &wrong.to_string())
}

/// What to do about files of traces that are not what they should be.
pub(super) const ADVICE: &str = "the file is damaged, cut short, or not what docs/formats.md says of traces: delete it and run the stage that makes it again (in a \
     cache, `flow verify` heals it), or mend the program that wrote it";

/// A file of traces that is not what it should be.
pub(super) fn corrupt(path: &Path, what: &str) -> StageError {
    StageError::new(format!("{}: not readable as traces: {what}", path.display())).help(ADVICE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_of_the_library_is_an_error_with_its_words() {
        let error = guarded::<()>(|| panic!("range end index {} out of range", 9)).expect_err("it panics");
        assert!(matches!(&error, Wrong::Parquet(what) if what.contains("range end index 9 out of range")), "{error}");
        assert!(guarded(|| Ok(3)).is_ok_and(|n| n == 3));
        assert!(!GUARDED.get());
    }
}
