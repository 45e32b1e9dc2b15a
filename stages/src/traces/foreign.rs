//! Traces of other tools: Parquet files with the proof of concept's columns and nothing beside them.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, ListArray, RecordBatch};
use arrow::compute::cast;
use arrow::datatypes::{DataType, Field, Float32Type, Int32Type, Int64Type};
use flow_engine::plugin::StageError;
use parquet::arrow::arrow_reader::{ParquetRecordBatchReader, ParquetRecordBatchReaderBuilder};

use super::RawRow;

const HELP: &str = "needed: prompt_idx, step_idx, teacher_sample_id (integers), teacher_sample_text (string), topk_ids (list of \
                    integers), topk_logprobs (list of numbers), other_logprob (number); sample_idx where a prompt has several";

/// A row with its keys and its place.
#[derive(Debug)]
pub struct ForeignRow {
    /// Prompt.
    pub prompt_idx: i64,
    /// Sample of the prompt; 0 without such a column.
    pub sample_idx: i32,
    /// Step of the sample.
    pub step_idx: i32,
    /// Its file.
    pub file: Arc<Path>,
    /// Row in it, from 0.
    pub place: u64,
    /// What it holds, ids being the student's; a missing value is NaN or an empty list, and so is no valid distribution.
    pub row: RawRow,
}

/// The Parquet files of a directory by name, or the file itself.
pub fn files(path: &Path) -> Result<Vec<PathBuf>, StageError> {
    if path.is_file() {
        return Ok(vec![path.to_owned()]);
    }
    let entries = std::fs::read_dir(path).map_err(|e| StageError::io("cannot read", path, &e))?;
    let mut all: Vec<PathBuf> = entries.flatten().map(|e| e.path()).filter(|p| p.extension().is_some_and(|e| e == "parquet")).collect();
    all.sort();
    if all.is_empty() {
        return Err(StageError::new(format!("{}: no file ends in .parquet", path.display())).help(HELP));
    }
    Ok(all)
}

/// The rows of a file, in order, a batch at a time.
pub struct ForeignRows {
    path: Arc<Path>,
    reader: ParquetRecordBatchReader,
    place: u64,
}

impl ForeignRows {
    /// Opens a file.
    pub fn open(path: &Path) -> Result<Self, StageError> {
        let file = File::open(path).map_err(|e| StageError::io("cannot read", path, &e))?;
        let reader = ParquetRecordBatchReaderBuilder::try_new(file)
            .and_then(|b| b.with_batch_size(8_192).build())
            .map_err(|e| StageError::new(format!("{}: not readable as Parquet: {e}", path.display())))?;
        Ok(Self { path: path.into(), reader, place: 0 })
    }
}

impl Iterator for ForeignRows {
    type Item = Result<Vec<ForeignRow>, StageError>;

    fn next(&mut self) -> Option<Self::Item> {
        let named = |what: &str| StageError::new(format!("{}: {what}", self.path.display())).help(HELP);
        let batch = match self.reader.next()? {
            Ok(batch) => batch,
            Err(e) => return Some(Err(named(&format!("not readable as Parquet: {e}")))),
        };
        let first = self.place;
        self.place += batch.num_rows() as u64;
        Some(rows(&batch, &self.path, first).map_err(|e| named(&e)))
    }
}

/// A column as `ty`; numbers of another width are converted, what does not fit becomes null.
fn column(batch: &RecordBatch, name: &str, ty: &DataType) -> Result<ArrayRef, String> {
    let array = batch.column_by_name(name).ok_or_else(|| format!("column `{name}` is missing"))?;
    let number = |t: &DataType| t.is_integer() || t.is_floating();
    let fits = match (array.data_type(), ty) {
        (DataType::List(a) | DataType::LargeList(a), DataType::List(b)) => {
            a.data_type() == b.data_type()
                || (number(a.data_type()) && number(b.data_type()) && a.data_type().is_integer() == b.data_type().is_integer())
        }
        (DataType::LargeUtf8 | DataType::Utf8View | DataType::Dictionary(..), DataType::Utf8) => true,
        (a, b) => a == b || (a.is_integer() && b.is_integer()) || (a.is_floating() && b.is_floating()),
    };
    let wrong = || format!("column `{name}` has type {}, expected {}", array.data_type(), plain(ty));
    if fits { cast(array, ty).map_err(|_| wrong()) } else { Err(wrong()) }
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
        sample_idx: samples.as_ref().map_or(0, |s| s.as_primitive::<Int32Type>().value(i)),
        step_idx: steps.value(i),
        file: file.clone(),
        place: first + i as u64,
        row: row(i),
    };
    Ok((0..batch.num_rows()).map(keyed).collect())
}
