//! The Parquet columns of rows and sequences, and their conversion from and to structs.

use std::borrow::Cow;
use std::sync::Arc;

use arrow_array::cast::AsArray;
use arrow_array::types::{Float32Type, Int32Type, Int64Type};
use arrow_array::{Array, ArrayRef, BinaryArray, BooleanArray, Float32Array, Int32Array, Int64Array, ListArray, RecordBatch, StringArray};
use arrow_buffer::{NullBuffer, OffsetBuffer, ScalarBuffer};
use arrow_schema::{ArrowError, DataType, Field, Schema, SchemaRef};

use super::bytes::ByteStrings;
use super::meta::{Layout, TraceMeta};
use super::rows::{Origin, ProjectedRow, RawRow, SequenceRow, is_structural};
use super::tokens::{CandidateBytes, TokenTable};

/// What a reader knows of the directory that rows come from.
pub struct Door<'a> {
    /// What the directory says of all its rows.
    pub meta: &'a TraceMeta,
    /// Bytes that rows leave out.
    pub tokens: &'a Arc<TokenTable>,
    /// Row of the file that a batch begins with.
    pub first: u64,
}

/// A row type with its Parquet columns.
pub trait TraceRow: Sized + Send + 'static {
    /// Whose ids it holds.
    const LAYOUT: Layout;
    /// Columns after the keys.
    #[doc(hidden)]
    fn fields() -> Vec<Field>;
    /// Arrays of those columns.
    #[doc(hidden)]
    fn columns(rows: &[Self], meta: &TraceMeta) -> Vec<ArrayRef>;
    /// Rows of a batch, or the column that does not fit, or the row that is not what the metadata say.
    #[doc(hidden)]
    fn rows(batch: &RecordBatch, door: &Door<'_>) -> Result<Vec<Self>, String>;
    /// Candidates that the row holds.
    #[doc(hidden)]
    fn candidates(&self) -> usize;
    /// Lists the ids whose bytes the row leaves out.
    #[doc(hidden)]
    fn note_tokens(&self, _table: &mut TokenTable) {}
    /// Whether the row is structural.
    #[doc(hidden)]
    fn structural(&self) -> bool;
}

fn field(name: &str, ty: DataType) -> Field {
    Field::new(name, ty, false)
}

fn list(name: &str, item: DataType, nullable: bool) -> Field {
    Field::new(name, DataType::List(Arc::new(Field::new("element", item, false))), nullable)
}

/// Schema of row shards.
pub(super) fn row_schema<R: TraceRow>() -> SchemaRef {
    let mut fields = vec![field("prompt_idx", DataType::Int64), field("sample_idx", DataType::Int32), field("step_idx", DataType::Int32)];
    fields.extend(R::fields());
    Arc::new(Schema::new(fields))
}

/// Schema of `sequences.parquet`.
pub(super) fn sequence_schema() -> SchemaRef {
    Arc::new(Schema::new(vec![
        field("prompt_idx", DataType::Int64),
        field("sample_idx", DataType::Int32),
        field("source", DataType::Utf8),
        field("context", DataType::Binary),
        list("context_ids", DataType::Int32, true),
        field("finish_reason", DataType::Utf8),
    ]))
}

fn offsets(lengths: impl Iterator<Item = usize>) -> OffsetBuffer<i32> {
    OffsetBuffer::from_lengths(lengths)
}

fn element(ty: DataType) -> Arc<Field> {
    Arc::new(Field::new("element", ty, false))
}

fn int_lists<'a>(rows: impl Iterator<Item = &'a [i32]> + Clone) -> ArrayRef {
    let values = Int32Array::from_iter_values(rows.clone().flatten().copied());
    Arc::new(ListArray::new(element(DataType::Int32), offsets(rows.map(<[i32]>::len)), Arc::new(values), None))
}

fn float_lists<'a>(rows: impl Iterator<Item = &'a [f32]> + Clone) -> ArrayRef {
    let values = Float32Array::from_iter_values(rows.clone().flatten().copied());
    Arc::new(ListArray::new(element(DataType::Float32), offsets(rows.map(<[f32]>::len)), Arc::new(values), None))
}

/// Rounds to `bits` of mantissa, ties to even; what is rounded stays sorted.
fn rounded(values: &[f32], bits: Option<u32>) -> Cow<'_, [f32]> {
    let Some(cut) = bits.and_then(|b| 23u32.checked_sub(b)).filter(|c| *c > 0) else { return values.into() };
    let round = |x: &f32| {
        let raw = x.to_bits();
        let half = (1 << (cut - 1)) - 1 + ((raw >> cut) & 1);
        if x.is_finite() { f32::from_bits((raw + half) >> cut << cut) } else { *x }
    };
    values.iter().map(round).collect()
}

fn optional_float_lists<'a>(rows: impl Iterator<Item = Option<&'a [f32]>> + Clone) -> ArrayRef {
    let nulls = NullBuffer::from_iter(rows.clone().map(|r| r.is_some()));
    let values = Float32Array::from_iter_values(rows.clone().flatten().flatten().copied());
    let lengths = offsets(rows.map(|r| r.map_or(0, <[f32]>::len)));
    Arc::new(ListArray::new(element(DataType::Float32), lengths, Arc::new(values), Some(nulls)))
}

/// The bytes that rows hold themselves; null where the table of tokens has them.
fn own_bytes(rows: &[RawRow]) -> ArrayRef {
    let own = rows.iter().map(|r| if let CandidateBytes::Own(strings) = &r.topk_bytes { Some(strings) } else { None });
    let values = BinaryArray::from_iter_values(own.clone().flatten().flat_map(ByteStrings::iter));
    let lengths = offsets(own.clone().map(|o| o.map_or(0, ByteStrings::len)));
    Arc::new(ListArray::new(element(DataType::Binary), lengths, Arc::new(values), Some(NullBuffer::from_iter(own.map(|o| o.is_some())))))
}

/// The drawn token's bytes, where the table of tokens does not tell them.
fn own_sample(row: &RawRow) -> Option<&[u8]> {
    match &row.topk_bytes {
        CandidateBytes::Table(table) if table.get(row.sample_id) == Some(&row.sample_bytes) => None,
        _ => Some(&row.sample_bytes),
    }
}

fn repeated(text: &str, n: usize) -> ArrayRef {
    Arc::new(StringArray::from_iter_values(std::iter::repeat_n(text, n)))
}

/// Keys and columns of rows that belong to consecutive sequences: `(prompt, sample, rows)` each.
pub(super) fn row_batch<R: TraceRow>(
    keys: &[(i64, i32, usize)],
    rows: &[R],
    meta: &TraceMeta,
    schema: &SchemaRef,
) -> Result<RecordBatch, ArrowError> {
    let spread = || keys.iter().flat_map(|(p, s, n)| (0..*n).map(move |step| (*p, *s, step as i32)));
    let mut columns: Vec<ArrayRef> = vec![
        Arc::new(Int64Array::from_iter_values(spread().map(|k| k.0))),
        Arc::new(Int32Array::from_iter_values(spread().map(|k| k.1))),
        Arc::new(Int32Array::from_iter_values(spread().map(|k| k.2))),
    ];
    columns.extend(R::columns(rows, meta));
    RecordBatch::try_new(schema.clone(), columns)
}

pub(super) fn sequence_batch(rows: &[SequenceRow], schema: &SchemaRef) -> Result<RecordBatch, ArrowError> {
    let ids = ListArray::new(
        element(DataType::Int32),
        offsets(rows.iter().map(|r| r.context_ids.as_ref().map_or(0, Vec::len))),
        Arc::new(Int32Array::from_iter_values(rows.iter().flat_map(|r| r.context_ids.iter().flatten().copied()))),
        Some(NullBuffer::from_iter(rows.iter().map(|r| r.context_ids.is_some()))),
    );
    let columns: Vec<ArrayRef> = vec![
        Arc::new(Int64Array::from_iter_values(rows.iter().map(|r| r.prompt_idx))),
        Arc::new(Int32Array::from_iter_values(rows.iter().map(|r| r.sample_idx))),
        Arc::new(StringArray::from_iter_values(rows.iter().map(|r| r.source.name()))),
        Arc::new(BinaryArray::from_iter_values(rows.iter().map(|r| &r.context))),
        Arc::new(ids),
        Arc::new(StringArray::from_iter_values(rows.iter().map(|r| &r.finish_reason))),
    ];
    RecordBatch::try_new(schema.clone(), columns)
}

fn column<'a>(batch: &'a RecordBatch, name: &str, ty: &DataType) -> Result<&'a ArrayRef, String> {
    let array = batch.column_by_name(name).ok_or_else(|| format!("column `{name}` is missing"))?;
    let same = match (array.data_type(), ty) {
        (DataType::List(a), DataType::List(b)) => a.data_type() == b.data_type(),
        (a, b) => a == b,
    };
    if same { Ok(array) } else { Err(format!("column `{name}` has type {}, expected {ty}", array.data_type())) }
}

/// A column in which every row has a value.
fn whole<'a>(batch: &'a RecordBatch, name: &str, ty: &DataType) -> Result<&'a ArrayRef, String> {
    let array = column(batch, name, ty)?;
    if array.null_count() > 0 { Err(format!("column `{name}`: {} rows have no value", array.null_count())) } else { Ok(array) }
}

/// The list column `name`, whose lists have no gaps; offsets are checked by arrow.
fn optional_lists<'a>(batch: &'a RecordBatch, name: &str, item: DataType) -> Result<&'a ListArray, String> {
    let lists = column(batch, name, &DataType::List(element(item)))?.as_list::<i32>();
    let gaps = lists.values().null_count();
    if gaps > 0 { Err(format!("column `{name}`: {gaps} values of its lists are missing")) } else { Ok(lists) }
}

/// The same where every row has a list.
fn list_column<'a>(batch: &'a RecordBatch, name: &str, item: DataType) -> Result<&'a ListArray, String> {
    let lists = optional_lists(batch, name, item)?;
    if lists.null_count() > 0 { Err(format!("column `{name}`: {} rows have no list", lists.null_count())) } else { Ok(lists) }
}

fn ints(batch: &RecordBatch, name: &str) -> Result<ScalarBuffer<i32>, String> {
    Ok(whole(batch, name, &DataType::Int32)?.as_primitive::<Int32Type>().values().clone())
}

fn longs(batch: &RecordBatch, name: &str) -> Result<ScalarBuffer<i64>, String> {
    Ok(whole(batch, name, &DataType::Int64)?.as_primitive::<Int64Type>().values().clone())
}

fn floats(batch: &RecordBatch, name: &str) -> Result<ScalarBuffer<f32>, String> {
    Ok(whole(batch, name, &DataType::Float32)?.as_primitive::<Float32Type>().values().clone())
}

fn range(offsets: &OffsetBuffer<i32>, i: usize) -> std::ops::Range<usize> {
    offsets[i] as usize..offsets[i + 1] as usize
}

/// `(prompt_idx, sample_idx, step_idx)` of each row of a batch.
pub(super) fn keys(batch: &RecordBatch) -> Result<Vec<(i64, i32, i32)>, String> {
    let (p, s, t) = (longs(batch, "prompt_idx")?, ints(batch, "sample_idx")?, ints(batch, "step_idx")?);
    Ok((0..batch.num_rows()).map(|i| (p[i], s[i], t[i])).collect())
}

/// Sequences of a batch that begins with row `first` of its file.
pub(super) fn sequences(batch: &RecordBatch, meta: &TraceMeta, first: u64) -> Result<Vec<SequenceRow>, String> {
    let (p, s) = (longs(batch, "prompt_idx")?, ints(batch, "sample_idx")?);
    let source = whole(batch, "source", &DataType::Utf8)?.as_string::<i32>();
    let context = whole(batch, "context", &DataType::Binary)?.as_binary::<i32>();
    let finish = whole(batch, "finish_reason", &DataType::Utf8)?.as_string::<i32>();
    let ids = optional_lists(batch, "context_ids", DataType::Int32)?;
    let values = ids.values().as_primitive::<Int32Type>().values();
    (0..batch.num_rows())
        .map(|i| {
            let name = source.value(i);
            let context_ids = ids.is_valid(i).then(|| values[range(ids.offsets(), i)].to_vec());
            if let Some(id) = context_ids.iter().flatten().find(|id| !super::check::is_token(**id, meta)) {
                return Err(format!("row {}: field `context_ids`: {}", first + i as u64, super::check::no_token(*id, meta)));
            }
            Ok(SequenceRow {
                prompt_idx: p[i],
                sample_idx: s[i],
                source: Origin::parse(name).ok_or_else(|| format!("column `source`: `{name}` is none of text, sample, on_policy"))?,
                context: context.value(i).to_vec(),
                context_ids,
                finish_reason: finish.value(i).to_owned(),
            })
        })
        .collect()
}

impl TraceRow for RawRow {
    const LAYOUT: Layout = Layout::Raw;

    fn fields() -> Vec<Field> {
        vec![
            field("teacher_sample_id", DataType::Int32),
            field("teacher_sample_text", DataType::Utf8),
            Field::new("sample_bytes", DataType::Binary, true),
            list("topk_ids", DataType::Int32, false),
            list("topk_bytes", DataType::Binary, true),
            list("topk_logprobs", DataType::Float32, false),
            field("other_logprob", DataType::Float32),
            list("other_lse", DataType::Float32, true),
            field("is_struct_token", DataType::Boolean),
            field("template_hash", DataType::Utf8),
            field("tokenizer_hash", DataType::Utf8),
        ]
    }
    fn columns(rows: &[Self], meta: &TraceMeta) -> Vec<ArrayRef> {
        let logprobs: Vec<_> = rows.iter().map(|r| rounded(&r.topk_logprobs, meta.logprob_bits)).collect();
        let others: Vec<f32> = rows.iter().map(|r| r.other_logprob).collect();
        let others = rounded(&others, meta.logprob_bits);
        let tails: Vec<_> = rows.iter().map(|r| r.other_lse.as_ref().map(|l| rounded(l, meta.logprob_bits))).collect();
        let texts: Vec<_> = rows.iter().map(|r| String::from_utf8_lossy(&r.sample_bytes)).collect();
        vec![
            Arc::new(Int32Array::from_iter_values(rows.iter().map(|r| r.sample_id))),
            Arc::new(StringArray::from_iter_values(&texts)),
            Arc::new(BinaryArray::from_iter(rows.iter().map(own_sample))),
            int_lists(rows.iter().map(|r| r.topk_ids.as_slice())),
            own_bytes(rows),
            float_lists(logprobs.iter().map(AsRef::as_ref)),
            Arc::new(Float32Array::from(others.into_owned())),
            optional_float_lists(tails.iter().map(Option::as_deref)),
            Arc::new(BooleanArray::from_iter(texts.iter().map(|t| Some(is_structural(t))))),
            repeated(&meta.template_hash, rows.len()),
            repeated(&meta.tokenizer_hash, rows.len()),
        ]
    }
    fn rows(batch: &RecordBatch, door: &Door<'_>) -> Result<Vec<Self>, String> {
        let tokens = door.tokens;
        let sample = ints(batch, "teacher_sample_id")?;
        let sample_bytes = column(batch, "sample_bytes", &DataType::Binary)?.as_binary::<i32>();
        let ids = list_column(batch, "topk_ids", DataType::Int32)?;
        let id_values = ids.values().as_primitive::<Int32Type>().values();
        let bytes = optional_lists(batch, "topk_bytes", DataType::Binary)?;
        let byte_values = bytes.values().as_binary::<i32>();
        let logprobs = list_column(batch, "topk_logprobs", DataType::Float32)?;
        let logprob_values = logprobs.values().as_primitive::<Float32Type>().values();
        let other = floats(batch, "other_logprob")?;
        let lse = optional_lists(batch, "other_lse", DataType::Float32)?;
        let lse_values = lse.values().as_primitive::<Float32Type>().values();
        (0..batch.num_rows())
            .map(|i| {
                let topk_ids = &id_values[range(ids.offsets(), i)];
                let at = |what: String| format!("row {}: {what}", door.first + i as u64);
                let listed = |id: i32| tokens.get(id).ok_or_else(|| at(format!("token {id} is not listed in {}", super::tokens::FILE)));
                let topk_bytes = if bytes.is_valid(i) {
                    range(bytes.offsets(), i).map(|k| byte_values.value(k)).collect()
                } else {
                    topk_ids.iter().try_for_each(|id| listed(*id).map(|_| ()))?;
                    CandidateBytes::Table(tokens.clone())
                };
                let drawn = if sample_bytes.is_valid(i) { sample_bytes.value(i) } else { listed(sample[i])? };
                let other_lse = lse.is_valid(i).then(|| lse_values[range(lse.offsets(), i)].to_vec());
                // At temperatures that nobody names it says nothing; projection counts the rows that have a tail.
                let other_lse = other_lse.filter(|lse| lse.len() == door.meta.taus.len());
                Ok(RawRow {
                    sample_id: sample[i],
                    sample_bytes: drawn.to_vec(),
                    topk_ids: topk_ids.to_vec(),
                    topk_bytes,
                    topk_logprobs: logprob_values[range(logprobs.offsets(), i)].to_vec(),
                    other_logprob: other[i],
                    other_lse,
                })
            })
            .collect()
    }
    fn candidates(&self) -> usize {
        self.topk_ids.len()
    }
    fn structural(&self) -> bool {
        is_structural(&String::from_utf8_lossy(&self.sample_bytes))
    }
    fn note_tokens(&self, into: &mut TokenTable) {
        let CandidateBytes::Table(table) = &self.topk_bytes else { return };
        for id in self.topk_ids.iter().chain([&self.sample_id]) {
            if let (None, Some(bytes)) = (into.get(*id), table.get(*id)) {
                into.insert(*id as u32, bytes);
            }
        }
    }
}

impl TraceRow for ProjectedRow {
    const LAYOUT: Layout = Layout::Projected;

    fn fields() -> Vec<Field> {
        vec![
            field("teacher_sample_id", DataType::Int32),
            field("teacher_sample_text", DataType::Utf8),
            list("topk_ids", DataType::Int32, false),
            list("topk_logprobs", DataType::Float32, false),
            field("other_logprob", DataType::Float32),
            list("other_lse", DataType::Float32, true),
            field("is_struct_token", DataType::Boolean),
            field("kd_weight", DataType::Float32),
            field("template_hash", DataType::Utf8),
            field("tokenizer_hash", DataType::Utf8),
        ]
    }
    fn columns(rows: &[Self], meta: &TraceMeta) -> Vec<ArrayRef> {
        vec![
            Arc::new(Int32Array::from_iter_values(rows.iter().map(|r| r.sample_id))),
            Arc::new(StringArray::from_iter_values(rows.iter().map(|r| &r.sample_text))),
            int_lists(rows.iter().map(|r| r.topk_ids.as_slice())),
            float_lists(rows.iter().map(|r| r.topk_logprobs.as_slice())),
            Arc::new(Float32Array::from_iter_values(rows.iter().map(|r| r.other_logprob))),
            optional_float_lists(rows.iter().map(|r| r.other_lse.as_deref())),
            Arc::new(BooleanArray::from_iter(rows.iter().map(|r| Some(r.is_struct)))),
            Arc::new(Float32Array::from_iter_values(rows.iter().map(|r| r.kd_weight))),
            repeated(&meta.template_hash, rows.len()),
            repeated(&meta.tokenizer_hash, rows.len()),
        ]
    }
    fn rows(batch: &RecordBatch, door: &Door<'_>) -> Result<Vec<Self>, String> {
        let rows = projected(batch)?;
        let wrong = |(i, row)| Some(format!("row {}: {}", door.first + i as u64, super::check::projected(row, door.meta).err()?));
        rows.iter().enumerate().find_map(wrong).map_or(Ok(rows), Err)
    }
    fn candidates(&self) -> usize {
        self.topk_ids.len()
    }
    fn structural(&self) -> bool {
        self.is_struct
    }
}

/// A projected row as its file holds it, right or wrong: what looks for wrong ones reads these.
pub struct Unchecked(pub ProjectedRow);

impl TraceRow for Unchecked {
    const LAYOUT: Layout = Layout::Projected;

    fn fields() -> Vec<Field> {
        ProjectedRow::fields()
    }
    fn columns(rows: &[Self], meta: &TraceMeta) -> Vec<ArrayRef> {
        ProjectedRow::columns(&rows.iter().map(|r| r.0.clone()).collect::<Vec<_>>(), meta)
    }
    fn rows(batch: &RecordBatch, _: &Door<'_>) -> Result<Vec<Self>, String> {
        Ok(projected(batch)?.into_iter().map(Unchecked).collect())
    }
    fn candidates(&self) -> usize {
        self.0.candidates()
    }
    fn structural(&self) -> bool {
        self.0.is_struct
    }
}

fn projected(batch: &RecordBatch) -> Result<Vec<ProjectedRow>, String> {
    let sample = ints(batch, "teacher_sample_id")?;
    let text = whole(batch, "teacher_sample_text", &DataType::Utf8)?.as_string::<i32>();
    let ids = list_column(batch, "topk_ids", DataType::Int32)?;
    let id_values = ids.values().as_primitive::<Int32Type>().values();
    let logprobs = list_column(batch, "topk_logprobs", DataType::Float32)?;
    let logprob_values = logprobs.values().as_primitive::<Float32Type>().values();
    let other = floats(batch, "other_logprob")?;
    let lse = optional_lists(batch, "other_lse", DataType::Float32)?;
    let lse_values = lse.values().as_primitive::<Float32Type>().values();
    let structural = whole(batch, "is_struct_token", &DataType::Boolean)?.as_boolean();
    let weight = floats(batch, "kd_weight")?;
    Ok((0..batch.num_rows())
        .map(|i| ProjectedRow {
            sample_id: sample[i],
            sample_text: text.value(i).to_owned(),
            topk_ids: id_values[range(ids.offsets(), i)].to_vec(),
            topk_logprobs: logprob_values[range(logprobs.offsets(), i)].to_vec(),
            other_logprob: other[i],
            other_lse: lse.is_valid(i).then(|| lse_values[range(lse.offsets(), i)].to_vec()),
            is_struct: structural.value(i),
            kd_weight: weight[i],
        })
        .collect())
}
