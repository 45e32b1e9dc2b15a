//! Traces of other tools: Parquet files with the proof of concept's columns and nothing beside them.

use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow_array::cast::AsArray;
use arrow_array::types::{Float32Type, Int32Type, Int64Type};
use arrow_array::{Array, ArrayRef, ListArray, RecordBatch};
use arrow_schema::{DataType, Field};
use flow_engine::plugin::StageError;

use super::convert;
use super::parquet::{Batches, Part, Wrong};
use super::rows::RawRow;

const HELP: &str = "needed: prompt_idx, step_idx, teacher_sample_id (integers), teacher_sample_text (string), topk_ids (list of \
                    integers), topk_logprobs (list of numbers), other_logprob (number); sample_idx where a prompt has several";

/// A row with its keys and its place.
#[derive(Debug)]
pub struct ForeignRow {
    /// Prompt.
    pub prompt_idx: i64,
    /// Sample of the prompt, where the file tells.
    pub sample_idx: Option<i32>,
    /// Step of the sample.
    pub step_idx: i32,
    /// Its file.
    pub file: Arc<Path>,
    /// Row in it, from 0.
    pub place: u64,
    /// What it holds, ids being the student's; a missing value is NaN or an empty list, and so is no valid distribution.
    pub row: RawRow,
}

/// Prompt and sample: rows with the same one are a sequence, or several where no sample is told.
type Key = (i64, Option<i32>);

impl ForeignRow {
    fn key(&self) -> Key {
        (self.prompt_idx, self.sample_idx)
    }
}

/// The Parquet files of a directory by name, or the file itself.
fn files(path: &Path) -> Result<Vec<PathBuf>, StageError> {
    if path.is_file() {
        return Ok(vec![path.to_owned()]);
    }
    let cannot = |e: std::io::Error| StageError::io("cannot read", path, &e);
    let entries = std::fs::read_dir(path).map_err(cannot)?.collect::<Result<Vec<_>, _>>().map_err(cannot)?;
    let mut all: Vec<PathBuf> = entries.into_iter().map(|e| e.path()).filter(|p| p.extension().is_some_and(|e| e == "parquet")).collect();
    all.sort_by_cached_key(|p| (numbered(&p.to_string_lossy()), p.clone()));
    if all.is_empty() {
        return Err(StageError::new(format!("{}: no file ends in .parquet", path.display())).help(HELP));
    }
    Ok(all)
}

/// A name as what it is ordered by: `part-10` comes after `part-9`.
fn numbered(name: &str) -> Vec<(String, u128)> {
    let is_digit = |c: char| c.is_ascii_digit();
    let (mut rest, mut parts) = (name, Vec::new());
    while !rest.is_empty() {
        let (text, after) = rest.split_at(rest.find(is_digit).unwrap_or(rest.len()));
        let (digits, after) = after.split_at(after.find(|c| !is_digit(c)).unwrap_or(after.len()));
        // A longer number than any counter has is ordered as a text.
        match digits.parse() {
            Ok(number) => parts.push((text.to_owned(), number)),
            Err(_) => parts.push((format!("{text}{digits}"), 0)),
        }
        rest = after;
    }
    parts
}

/// All rows of a directory by prompt and sample, those of each together and by step, whatever the files' names and wherever
/// the rows stand in them. A file in the order of its keys is read a batch at a time, from its first key on; any other one
/// as a whole.
pub struct ForeignSequences {
    /// Files that are not open yet, the last one first.
    closed: Vec<Closed>,
    /// Open files in the order of their names.
    open: Vec<Origin>,
}

/// A file whose keys were looked at.
struct Closed {
    path: PathBuf,
    /// Place among the names.
    place: usize,
    /// The smallest key, and whether they rise.
    first: Key,
    rises: bool,
}

/// A file that is being read.
struct Origin {
    place: usize,
    rows: VecDeque<ForeignRow>,
    /// None where `rows` are all of them.
    more: Option<ForeignRows>,
}

impl ForeignSequences {
    /// Looks at the keys of a file, or of all Parquet files of a directory.
    pub fn open(path: &Path) -> Result<Self, StageError> {
        let mut closed = Vec::new();
        for (place, path) in files(path)?.into_iter().enumerate() {
            if let Some((first, rises)) = order_of(&path)? {
                closed.push(Closed { path, place, first, rises });
            }
        }
        closed.sort_by_key(|c| std::cmp::Reverse((c.first, c.place)));
        Ok(Self { closed, open: Vec::new() })
    }

    fn advance(&mut self) -> Result<Option<Vec<ForeignRow>>, StageError> {
        let mut key = self.closed.last().map(|c| c.first);
        for source in &mut self.open {
            if let Some(next) = source.peek()? {
                key = Some(key.map_or(next, |k| k.min(next)));
            }
        }
        let Some(key) = key else { return Ok(None) };
        while let Some(file) = self.closed.pop_if(|c| c.first <= key) {
            let at = self.open.partition_point(|s| s.place < file.place);
            self.open.insert(at, Origin::open(&file)?);
        }
        let mut rows = Vec::new();
        for source in &mut self.open {
            while source.peek()? == Some(key) {
                rows.extend(source.rows.pop_front());
            }
        }
        self.open.retain(|s| !s.rows.is_empty());
        by_step(rows).map(Some)
    }
}

impl Iterator for ForeignSequences {
    type Item = Result<Vec<ForeignRow>, StageError>;

    fn next(&mut self) -> Option<Self::Item> {
        self.advance().transpose()
    }
}

impl Origin {
    fn open(file: &Closed) -> Result<Self, StageError> {
        let mut source = Self { place: file.place, rows: VecDeque::new(), more: Some(ForeignRows::open(&file.path)?) };
        if !file.rises {
            let batches = source.more.take().into_iter().flatten().collect::<Result<Vec<_>, _>>()?;
            source.rows = batches.into_iter().flatten().collect();
            source.rows.make_contiguous().sort_by_key(ForeignRow::key);
        }
        Ok(source)
    }

    /// The key of the next row; None at the end.
    fn peek(&mut self) -> Result<Option<Key>, StageError> {
        while self.rows.is_empty() {
            match self.more.as_mut().and_then(Iterator::next) {
                Some(batch) => self.rows.extend(batch?),
                None => return Ok(None),
            }
        }
        Ok(self.rows.front().map(ForeignRow::key))
    }
}

/// The rows of a prompt and sample by step. Where no sample is told a step may come several times: these are samples one
/// after the other, which stay as they stand.
fn by_step(mut rows: Vec<ForeignRow>) -> Result<Vec<ForeignRow>, StageError> {
    let mut order: Vec<usize> = (0..rows.len()).collect();
    order.sort_by_key(|i| rows[*i].step_idx);
    let twice = order.windows(2).find(|w| rows[w[0]].step_idx == rows[w[1]].step_idx).map(|w| (&rows[w[0]], &rows[w[1]]));
    match twice {
        None => rows.sort_by_key(|r| r.step_idx),
        Some((a, b)) => {
            if let Some(sample) = a.sample_idx {
                let (prompt, step) = (a.prompt_idx, a.step_idx);
                return Err(StageError::new(format!(
                    "{} row {} and {} row {} are both step {step} of prompt {prompt} sample {sample}",
                    a.file.display(),
                    a.place,
                    b.file.display(),
                    b.place
                ))
                .help("take the copy out, or number the samples of a prompt in `sample_idx`"));
            }
        }
    }
    Ok(rows)
}

/// The smallest key of a file and whether its keys rise; None where it has no rows. What cannot be said here of a column is
/// said where the rows are read.
fn order_of(path: &Path) -> Result<Option<(Key, bool)>, StageError> {
    let part = Part { columns: Some(&["prompt_idx", "sample_idx"]), plain_types: true, ..Part::default() };
    let mut file = Batches::open(path, part, unreadable)?;
    let (mut last, mut first, mut rises) = (None, None, true);
    while let Some(keys) = file.next(|batch, _| keys(batch)) {
        for key in keys? {
            rises &= last.is_none_or(|l| l <= key);
            first = Some(first.map_or(key, |f: Key| f.min(key)));
            last = Some(key);
        }
    }
    Ok(first.map(|first| (first, rises)))
}

fn keys(batch: &RecordBatch) -> Result<Vec<Key>, String> {
    let prompts = column(batch, "prompt_idx", &DataType::Int64)?;
    let samples = batch.column_by_name("sample_idx").map(|_| column(batch, "sample_idx", &DataType::Int32)).transpose()?;
    let sample = |i: usize| samples.as_ref().map(|s| s.as_primitive::<Int32Type>().value(i));
    Ok((0..batch.num_rows()).map(|i| (prompts.as_primitive::<Int64Type>().value(i), sample(i))).collect())
}

fn unreadable(path: &Path, wrong: &Wrong) -> StageError {
    let what = match wrong {
        Wrong::Parquet(what) => format!("not readable as Parquet: {what}"),
        Wrong::Content(what) => what.clone(),
    };
    StageError::new(format!("{}: {what}", path.display())).help(HELP)
}

/// The rows of a file as they stand, a batch at a time.
struct ForeignRows(Batches, Arc<Path>);

impl ForeignRows {
    fn open(path: &Path) -> Result<Self, StageError> {
        let part = Part { plain_types: true, ..Part::default() };
        Ok(Self(Batches::open(path, part, unreadable)?, path.into()))
    }
}

impl Iterator for ForeignRows {
    type Item = Result<Vec<ForeignRow>, StageError>;

    fn next(&mut self) -> Option<Self::Item> {
        let path = &self.1;
        self.0.next(|batch, first| rows(batch, path, first))
    }
}

/// A column as `ty`; numbers of another width are converted, what does not fit becomes null.
fn column(batch: &RecordBatch, name: &str, ty: &DataType) -> Result<ArrayRef, String> {
    let array = batch.column_by_name(name).ok_or_else(|| format!("column `{name}` is missing"))?;
    let number = |t: &DataType| t.is_integer() || t.is_floating();
    let fits = match (array.data_type(), ty) {
        (DataType::List(a), DataType::List(b)) => {
            a.data_type() == b.data_type()
                || (number(a.data_type()) && number(b.data_type()) && a.data_type().is_integer() == b.data_type().is_integer())
        }
        (a, b) => a == b || (a.is_integer() && b.is_integer()) || (a.is_floating() && b.is_floating()),
    };
    let wrong = || format!("column `{name}` has type {}, expected {}", array.data_type(), plain(ty));
    if fits { convert::to(array, ty).ok_or_else(wrong) } else { Err(wrong()) }
}

fn plain(ty: &DataType) -> &'static str {
    match ty {
        DataType::Int32 | DataType::Int64 => "integers",
        DataType::Float32 => "numbers (float)",
        DataType::Utf8 => "strings",
        DataType::List(item) if item.data_type().is_integer() => "lists of integers",
        _ => "lists of numbers (float)",
    }
}

fn list_of(batch: &RecordBatch, name: &str, item: DataType) -> Result<ListArray, String> {
    let ty = DataType::List(Field::new("element", item, true).into());
    Ok(column(batch, name, &ty)?.as_list::<i32>().clone())
}

fn rows(batch: &RecordBatch, file: &Arc<Path>, first: u64) -> Result<Vec<ForeignRow>, String> {
    let prompts = column(batch, "prompt_idx", &DataType::Int64)?;
    let samples = batch.column_by_name("sample_idx").map(|_| column(batch, "sample_idx", &DataType::Int32)).transpose()?;
    let steps = column(batch, "step_idx", &DataType::Int32)?;
    let ids = column(batch, "teacher_sample_id", &DataType::Int32)?;
    let texts = column(batch, "teacher_sample_text", &DataType::Utf8)?;
    let top_ids = list_of(batch, "topk_ids", DataType::Int32)?;
    let top_logprobs = list_of(batch, "topk_logprobs", DataType::Float32)?;
    let others = column(batch, "other_logprob", &DataType::Float32)?;
    let keys =
        [("prompt_idx", Some(&prompts)), ("sample_idx", samples.as_ref()), ("step_idx", Some(&steps)), ("teacher_sample_id", Some(&ids))];
    for (name, key) in keys.into_iter().filter_map(|(name, key)| Some((name, key?))) {
        if let Some(row) = (0..key.len()).find(|i| key.is_null(*i)) {
            return Err(format!("row {}: `{name}` has no value, or one that is too large", first + row as u64));
        }
    }
    let (prompts, steps, ids) = (prompts.as_primitive::<Int64Type>(), steps.as_primitive::<Int32Type>(), ids.as_primitive::<Int32Type>());
    let (texts, others) = (texts.as_string::<i32>(), others.as_primitive::<Float32Type>());
    let row = |i: usize| {
        let candidates = if top_ids.is_null(i) { None } else { Some(top_ids.value(i)) };
        let logprobs = if top_logprobs.is_null(i) { None } else { Some(top_logprobs.value(i)) };
        RawRow {
            sample_id: ids.value(i),
            sample_bytes: if texts.is_null(i) { Vec::new() } else { texts.value(i).into() },
            topk_ids: candidates.iter().flat_map(|c| c.as_primitive::<Int32Type>().iter()).map(|id| id.unwrap_or(i32::MIN)).collect(),
            topk_logprobs: logprobs.iter().flat_map(|l| l.as_primitive::<Float32Type>().iter()).map(|l| l.unwrap_or(f32::NAN)).collect(),
            other_logprob: if others.is_null(i) { f32::NAN } else { others.value(i) },
            ..RawRow::default()
        }
    };
    let keyed = |i: usize| ForeignRow {
        prompt_idx: prompts.value(i),
        sample_idx: samples.as_ref().map(|s| s.as_primitive::<Int32Type>().value(i)),
        step_idx: steps.value(i),
        file: file.clone(),
        place: first + i as u64,
        row: row(i),
    };
    Ok((0..batch.num_rows()).map(keyed).collect())
}

#[cfg(test)]
mod tests {
    #[test]
    fn names_go_by_their_numbers() {
        let mut names = ["part-10.parquet", "part-9.parquet", "b2/part-1.parquet", "b10/part-1.parquet", "part.parquet"];
        names.sort_by_cached_key(|n| super::numbered(n));
        assert_eq!(names, ["b2/part-1.parquet", "b10/part-1.parquet", "part-9.parquet", "part-10.parquet", "part.parquet"]);
    }
}
