//! `kd.import`: another tool's Parquet, its good rows, its bad ones and its mistakes.

mod harness;

use std::fs::File;
use std::path::Path;
use std::sync::Arc;

use arrow_array::cast::AsArray;
use arrow_array::types::{Float64Type, Int64Type};
use arrow_array::{
    Array, ArrayRef, FixedSizeListArray, Float64Array, Int32Array, Int64Array, LargeListArray, LargeListViewArray, LargeStringArray,
    ListArray, ListViewArray, RecordBatch,
};
use arrow_buffer::{OffsetBuffer, ScalarBuffer};
use arrow_schema::{Field, FieldRef};
use flow_engine::plugin::StageError;
use flow_stages::kinds::kd_import::ImportStage;
use flow_stages::traces::{ProjectedRow, SequenceRow, TraceReader};
use parquet::arrow::ArrowWriter;
use parquet::basic::{BrotliLevel, Compression, GzipLevel, ZstdLevel};
use parquet::file::properties::WriterProperties;
use serde_json::{Value, json};

/// `(prompt, step, drawn, ids, logprobs)`.
type Row = (i64, i64, i64, Vec<i64>, Vec<f64>);

fn good(prompt: i64, step: i64) -> Row {
    (prompt, step, 70 + step, vec![70 + step, 9], vec![-0.3, -2.0])
}

/// Wider types than ours, as pandas writes them.
fn batch(rows: &[Row]) -> RecordBatch {
    let lists = |of: &dyn Fn(&Row) -> Vec<i64>| {
        Arc::new(ListArray::from_iter_primitive::<Int64Type, _, _>(rows.iter().map(|r| Some(of(r).into_iter().map(Some))))) as ArrayRef
    };
    let column = |of: &dyn Fn(&Row) -> i64| Arc::new(Int64Array::from_iter_values(rows.iter().map(of))) as ArrayRef;
    let logprobs = ListArray::from_iter_primitive::<Float64Type, _, _>(rows.iter().map(|r| Some(r.4.iter().map(|l| Some(*l)))));
    let other = rows.iter().map(|r| (1.0 - r.4.iter().map(|l| l.exp()).sum::<f64>()).max(1e-9).ln());
    RecordBatch::try_from_iter([
        ("prompt_idx", column(&|r| r.0)),
        ("step_idx", column(&|r| r.1)),
        ("teacher_sample_id", column(&|r| r.2)),
        ("teacher_sample_text", Arc::new(LargeStringArray::from_iter_values(rows.iter().map(|r| format!("t{}", r.2)))) as ArrayRef),
        ("topk_ids", lists(&|r| r.3.clone())),
        ("topk_logprobs", Arc::new(logprobs) as ArrayRef),
        ("other_logprob", Arc::new(Float64Array::from_iter_values(other)) as ArrayRef),
    ])
    .expect("batch")
}

fn write(path: &Path, batch: &RecordBatch) {
    let mut writer = ArrowWriter::try_new(File::create(path).expect("file"), batch.schema(), None).expect("writer");
    writer.write(batch).expect("written");
    writer.close().expect("closed");
}

fn write_as(path: &Path, batch: &RecordBatch, compression: Compression) {
    let properties = WriterProperties::builder().set_compression(compression).build();
    let mut writer = ArrowWriter::try_new(File::create(path).expect("file"), batch.schema(), Some(properties)).expect("writer");
    writer.write(batch).expect("written");
    writer.close().expect("closed");
}

type Imported = (Vec<(SequenceRow, Vec<ProjectedRow>)>, Value);

fn import(path: &Path, max_invalid: f64, out: &Path) -> Result<Imported, StageError> {
    let tokenizer = harness::golden().join("models/student-tokenizer-4096.json");
    let made =
        harness::run(&ImportStage, json!({"path": path, "max_invalid": max_invalid}), &[("tokenizer", "Tokenizer", &tokenizer)], out)?;
    let sequences = TraceReader::<ProjectedRow>::open(&made["traces"])?.sequences()?.collect::<Result<_, _>>()?;
    Ok((sequences, serde_json::from_slice(&std::fs::read(&made["stats"]).expect("stats")).expect("JSON")))
}

#[test]
fn bad_rows_keep_their_place_and_are_counted_by_reason() {
    let dir = tempfile::tempdir().expect("dir");
    let with = |step, ids: &[i64], logprobs: &[f64]| (1, step, 70, ids.to_vec(), logprobs.to_vec());
    let bad = [
        with(0, &[70, 9], &[f64::NAN, -2.0]),
        with(1, &[70, 9], &[0.5, -2.0]),
        with(2, &[70, 9], &[-2.0, -0.3]),
        with(3, &[70, 70], &[-0.5, -2.0]),
        with(4, &[70, 9], &[-0.1, -0.1]),
        with(5, &[70, 4096], &[-0.3, -2.0]),
        with(6, &[70], &[-0.3, -2.0]),
        with(7, &[], &[]),
    ];
    let rows: Vec<Row> = (0..6).map(|s| good(0, s)).chain(bad).chain((8..10).map(|s| good(1, s))).collect();
    // Two files: sequences go on over their border.
    write(&dir.path().join("part-0.parquet"), &batch(&rows[..9]));
    write(&dir.path().join("part-1.parquet"), &batch(&rows[9..]));
    let (sequences, stats) = import(dir.path(), 0.6, &dir.path().join("out")).expect("imports");
    let shape: Vec<_> = sequences.iter().map(|(s, rows)| (s.prompt_idx, s.sample_idx, rows.len())).collect();
    assert_eq!(shape, [(0, 0, 6), (1, 0, 10)]);
    let weights: Vec<f32> = sequences[1].1.iter().map(|r| r.kd_weight).collect();
    assert_eq!(weights, [0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0, 1.0]);
    assert!(sequences[1].1.iter().take(8).all(|r| r.sample_id == 70), "the target of cross-entropy stays");
    let first = &sequences[0].1[2];
    assert_eq!((first.sample_id, first.sample_text.as_str(), first.topk_ids.as_slice()), (72, "t72", &[72, 9][..]));
    assert_eq!(first.topk_logprobs, [-0.3, -2.0]);
    let reasons = [
        "not_finite",
        "positive_logprob",
        "unsorted",
        "duplicate_id",
        "mass_above_one",
        "id_outside_vocabulary",
        "unequal_lengths",
        "no_candidates",
    ];
    for reason in reasons {
        assert_eq!(stats["invalid"][reason], 1, "{reason}: {stats}");
    }
    let error = import(dir.path(), 0.02, &dir.path().join("again")).expect_err("half of them are bad");
    for part in ["50.00 %", "part-0.parquet row 6: not_finite", "max_invalid allows 2.00 %"] {
        assert!(error.message.contains(part), "{error}");
    }
}

#[test]
fn dropped_steps_cut_a_sequence() {
    let dir = tempfile::tempdir().expect("dir");
    let path = dir.path().join("gap.parquet");
    write(&path, &batch(&[good(3, 0), good(3, 1), good(3, 4), good(4, 0)]));
    let (sequences, _) = import(&path, 0.0, &dir.path().join("out")).expect("imports");
    let shape: Vec<_> = sequences.iter().map(|(s, rows)| (s.prompt_idx, s.sample_idx, rows.len())).collect();
    assert_eq!(shape, [(3, 0, 2), (3, 1, 1), (4, 0, 1)]);
}

#[test]
fn files_that_cannot_be_read_say_which_column_or_row() {
    let dir = tempfile::tempdir().expect("dir");
    let path = dir.path().join("x.parquet");
    let whole = batch(&[good(0, 0)]);
    let names: Vec<String> = whole.schema().fields().iter().map(|f| f.name().clone()).collect();
    for (i, name) in names.iter().enumerate() {
        let others: Vec<usize> = (0..names.len()).filter(|k| *k != i).collect();
        write(&path, &whole.project(&others).expect("columns"));
        let error = import(&path, 1.0, &dir.path().join(format!("missing-{i}"))).expect_err("a column is missing");
        assert!(error.message.contains(&format!("x.parquet: column `{name}` is missing")) && error.help.is_some(), "{error}");
        let mut columns: Vec<(String, ArrayRef)> = names.iter().cloned().zip(whole.columns().iter().cloned()).collect();
        columns[i].1 = Arc::new(arrow_array::BooleanArray::from(vec![true]));
        write(&path, &RecordBatch::try_from_iter(columns).expect("batch"));
        let error = import(&path, 1.0, &dir.path().join(format!("type-{i}"))).expect_err("a column has another type");
        assert!(error.message.contains(&format!("column `{name}` has type Boolean, expected ")), "{error}");
    }
    write(&path, &batch(&[good(0, 0), (0, 1, 5000, vec![1], vec![-0.1])]));
    let error = import(&path, 1.0, &dir.path().join("id")).expect_err("another tokenizer's ids");
    assert!(error.message.contains("x.parquet row 1: field `teacher_sample_id`: 5000"), "{error}");
    std::fs::write(&path, "no Parquet").expect("written");
    let error = import(&path, 1.0, &dir.path().join("bytes")).expect_err("not Parquet");
    assert!(error.message.contains("not readable as Parquet"), "{error}");
    let error = import(dir.path().join("out").as_path(), 1.0, &dir.path().join("none")).expect_err("nothing there");
    assert!(error.message.contains("cannot read"), "{error}");
}

/// Sequences as `(prompt, sample, drawn ids)`.
fn drawn(sequences: &[(SequenceRow, Vec<ProjectedRow>)]) -> Vec<(i64, i32, Vec<i32>)> {
    sequences.iter().map(|(s, rows)| (s.prompt_idx, s.sample_idx, rows.iter().map(|r| r.sample_id).collect())).collect()
}

fn with_samples(batch: &RecordBatch, samples: &[i32]) -> RecordBatch {
    let mut columns: Vec<(String, ArrayRef)> =
        batch.schema().fields().iter().map(|f| f.name().clone()).zip(batch.columns().iter().cloned()).collect();
    columns.push(("sample_idx".into(), Arc::new(Int32Array::from(samples.to_vec()))));
    RecordBatch::try_from_iter(columns).expect("batch")
}

/// One sequence over twelve files whose names say another order, each file with its pages compressed another way.
#[test]
fn rows_follow_their_steps_whatever_the_names_and_the_compression() {
    let dir = tempfile::tempdir().expect("dir");
    let all = [
        Compression::UNCOMPRESSED,
        Compression::SNAPPY,
        Compression::ZSTD(ZstdLevel::default()),
        Compression::GZIP(GzipLevel::default()),
        Compression::BROTLI(BrotliLevel::default()),
        Compression::LZ4,
        Compression::LZ4_RAW,
    ];
    for i in 0..12i64 {
        let rows: Vec<Row> = (3 * i..3 * i + 3).map(|step| good(0, step)).collect();
        write_as(&dir.path().join(format!("part-{}.parquet", (i * 7) % 12)), &batch(&rows), all[i as usize % all.len()]);
    }
    let (sequences, stats) = import(dir.path(), 0.0, &dir.path().join("out")).expect("imports");
    assert_eq!(drawn(&sequences), [(0, 0, (70..106).collect())]);
    assert_eq!(stats["top_k"], 2);
}

/// Rows in any order inside of files and across them; samples that are told are sequences of their own.
#[test]
fn rows_of_a_sequence_are_found_wherever_they_stand() {
    let dir = tempfile::tempdir().expect("dir");
    let file = |name: &str, rows: &[(i64, i64)], samples: &[i32]| {
        let rows: Vec<Row> = rows.iter().map(|(prompt, step)| good(*prompt, *step)).collect();
        write(&dir.path().join(name), &with_samples(&batch(&rows), samples));
    };
    file("a.parquet", &[(5, 1), (3, 0), (5, 0), (3, 2)], &[0, 0, 0, 1]);
    file("b.parquet", &[(3, 1), (3, 0), (3, 1), (9, 0)], &[0, 1, 1, 0]);
    let (sequences, _) = import(dir.path(), 0.0, &dir.path().join("out")).expect("imports");
    assert_eq!(drawn(&sequences), [(3, 0, vec![70, 71]), (3, 1, vec![70, 71, 72]), (5, 0, vec![70, 71]), (9, 0, vec![70])]);
    file("c.parquet", &[(3, 1)], &[1]);
    let error = import(dir.path(), 0.0, &dir.path().join("twice")).expect_err("a step twice");
    for part in ["b.parquet row 2 and ", "c.parquet row 0 are both step 1 of prompt 3 sample 1"] {
        assert!(error.message.contains(part), "{error}");
    }
}

/// Without a column that tells samples, those of a prompt stand one after the other: they stay apart, files by their numbers.
#[test]
fn samples_that_are_not_told_stay_apart() {
    let dir = tempfile::tempdir().expect("dir");
    let rows = |steps: &[i64]| batch(&steps.iter().map(|s| good(1, *s)).collect::<Vec<_>>());
    write(&dir.path().join("part-9.parquet"), &rows(&[0, 1, 2, 0]));
    write(&dir.path().join("part-10.parquet"), &rows(&[1, 0, 1]));
    let (sequences, _) = import(dir.path(), 0.0, &dir.path().join("out")).expect("imports");
    assert_eq!(drawn(&sequences), [(1, 0, vec![70, 71, 72]), (1, 1, vec![70, 71]), (1, 2, vec![70, 71])]);
}

fn item(lists: &ListArray) -> FieldRef {
    Arc::new(Field::new_list_field(lists.value_type(), true))
}
fn fixed(lists: &ListArray) -> ArrayRef {
    Arc::new(FixedSizeListArray::new(item(lists), 2, lists.values().clone(), None))
}
fn large(lists: &ListArray) -> ArrayRef {
    let offsets = lists.offsets().iter().map(|o| i64::from(*o)).collect();
    Arc::new(LargeListArray::new(item(lists), OffsetBuffer::new(offsets), lists.values().clone(), None))
}
fn view(lists: &ListArray) -> ArrayRef {
    let (offsets, sizes) =
        (lists.offsets().inner().slice(0, lists.len()), ScalarBuffer::from_iter(lists.offsets().lengths().map(|l| l as i32)));
    Arc::new(ListViewArray::new(item(lists), offsets, sizes, lists.values().clone(), None))
}
fn large_view(lists: &ListArray) -> ArrayRef {
    let offsets = lists.offsets()[..lists.len()].iter().map(|o| i64::from(*o)).collect();
    let sizes = lists.offsets().lengths().map(|l| l as i64).collect();
    Arc::new(LargeListViewArray::new(item(lists), offsets, sizes, lists.values().clone(), None))
}

/// Lists as other tools' Arrow types have them.
#[test]
fn lists_of_every_kind_are_lists() {
    let dir = tempfile::tempdir().expect("dir");
    let rows: Vec<Row> = (0..5).map(|step| good(2, step)).collect();
    let plain = batch(&rows);
    let kinds: [fn(&ListArray) -> ArrayRef; 4] = [fixed, view, large_view, large];
    let mut all = Vec::new();
    for (i, kind) in kinds.into_iter().enumerate() {
        let schema = plain.schema();
        let columns = schema.fields().iter().zip(plain.columns()).map(|(field, column)| {
            let column = column.as_list_opt::<i32>().map_or_else(|| column.clone(), kind);
            (field.name().clone(), column)
        });
        let path = dir.path().join(format!("{i}.parquet"));
        write(&path, &RecordBatch::try_from_iter(columns.collect::<Vec<_>>()).expect("batch"));
        all.push(import(&path, 0.0, &dir.path().join(format!("out-{i}"))).expect("imports").0);
    }
    assert_eq!(all[0][0].1[3].topk_ids, [73, 9]);
    assert!(all.windows(2).all(|w| w[0] == w[1]));
}

/// More candidates than anybody's default: all of them arrive, unless fewer were asked for.
#[test]
fn every_candidate_arrives() {
    let dir = tempfile::tempdir().expect("dir");
    let path = dir.path().join("wide.parquet");
    let wide =
        |step: i64| (0, step, 70, (70..370).collect::<Vec<i64>>(), (0..300).map(|i| -6.0 - f64::from(i) * 1e-3).collect::<Vec<f64>>());
    write(&path, &batch(&[wide(0), wide(1)]));
    let (sequences, stats) = import(&path, 0.0, &dir.path().join("out")).expect("imports");
    assert!(sequences[0].1.iter().all(|r| r.topk_ids.len() == 300));
    assert_eq!(stats["top_k"], 300);
    let tokenizer = harness::golden().join("models/student-tokenizer-4096.json");
    let inputs = [("tokenizer", "Tokenizer", tokenizer.as_path())];
    let cut = harness::run(&ImportStage, json!({"path": path, "top_k": 20}), &inputs, &dir.path().join("cut")).expect("imports");
    let reader = TraceReader::<ProjectedRow>::open(&cut["traces"]).expect("traces");
    assert_eq!(reader.meta().top_k, 20);
    assert!(reader.sequences().expect("opens").all(|s| s.expect("reads").1.iter().all(|r| r.topk_ids.len() == 20)));
}
