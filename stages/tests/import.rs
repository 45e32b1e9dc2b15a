//! `kd.import`: another tool's Parquet, its good rows, its bad ones and its mistakes.

mod harness;

use std::fs::File;
use std::path::Path;
use std::sync::Arc;

use arrow::array::{ArrayRef, Float64Array, Int64Array, LargeStringArray, ListArray, RecordBatch};
use arrow::datatypes::{Float64Type, Int64Type};
use flow_engine::plugin::StageError;
use flow_stages::project::import::ImportStage;
use flow_stages::traces::{ProjectedRow, SequenceRow, TraceReader};
use parquet::arrow::ArrowWriter;
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
        columns[i].1 = Arc::new(arrow::array::BooleanArray::from(vec![true]));
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
