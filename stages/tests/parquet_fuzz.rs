//! Damaged Parquet files: whatever their bytes are, a reader gives rows or an error that names the file. It never panics.

mod harness;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use flow_engine::plugin::StageError;
use flow_lm::tokenizer::Tokenizer;
use flow_stages::distil::Distillation;
use flow_stages::distil::survey;
use flow_stages::distil::windows::windows_of_traces;
use flow_stages::kinds::kd_import::ImportStage;
use flow_stages::traces::{CandidateBytes, Origin, ProjectedRow, RawRow, SequenceRow, TokenTable, TraceMeta, TraceReader, TraceWriter};
use proptest::prelude::*;
use serde_json::json;

/// Directories of good files, made once.
struct Good {
    _dir: tempfile::TempDir,
    raw: PathBuf,
    projected: PathBuf,
    foreign: PathBuf,
}

fn sequence(prompt_idx: i64) -> SequenceRow {
    let (context, context_ids) = (b"say".to_vec(), Some(vec![5, 6]));
    SequenceRow { prompt_idx, sample_idx: 0, source: Origin::Sample, context, context_ids, finish_reason: "stop".into() }
}

fn good() -> &'static Good {
    static GOOD: OnceLock<Good> = OnceLock::new();
    GOOD.get_or_init(|| {
        let dir = tempfile::tempdir().expect("dir");
        let (raw, projected) = (dir.path().join("raw"), dir.path().join("projected"));
        let meta = TraceMeta { tokenizer_hash: tokenizer().digest(), vocab: 4096, top_k: 3, taus: vec![1.3], ..TraceMeta::default() };
        let mut table = TokenTable::default();
        (0..40).for_each(|id| table.insert(id, format!("t{id}").as_bytes()));
        let table = std::sync::Arc::new(table);
        let mut writer = TraceWriter::<RawRow>::create(&raw, &meta).expect("create");
        for s in 0..4 {
            let row = |t: i32| RawRow {
                sample_id: t,
                sample_bytes: format!("t{t}").into_bytes(),
                topk_ids: vec![t, 38, 39],
                topk_bytes: if t % 2 == 0 { CandidateBytes::Table(table.clone()) } else { [&b"a"[..], b"b", b""].into_iter().collect() },
                topk_logprobs: vec![-0.5, -2.0, -3.0],
                other_logprob: -1.6,
                other_lse: (t % 3 == 0).then(|| vec![-1.0]),
            };
            writer.push(sequence(s), (0..30).map(row)).expect("push");
        }
        writer.finish().expect("finish");
        let mut writer = TraceWriter::<ProjectedRow>::create(&projected, &meta).expect("create");
        for s in 0..4 {
            let row = |t: i32| ProjectedRow {
                sample_id: t,
                sample_text: format!("t{t}"),
                topk_ids: vec![t, 1000, 2000],
                topk_logprobs: vec![-0.5, -2.0, -3.0],
                other_logprob: -1.548,
                other_lse: (t % 3 == 0).then(|| vec![-1.0]),
                is_struct: t % 4 == 0,
                kd_weight: 1.0,
            };
            writer.push(sequence(s), (0..30).map(row)).expect("push");
        }
        writer.finish().expect("finish");
        let foreign = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/recipes/foreign.parquet");
        Good { raw, projected, foreign, _dir: dir }
    })
}

fn tokenizer() -> &'static Tokenizer {
    static TOKENIZER: OnceLock<Tokenizer> = OnceLock::new();
    TOKENIZER.get_or_init(|| Tokenizer::load(&tokenizer_path()).expect("a tokenizer"))
}

fn tokenizer_path() -> PathBuf {
    harness::golden().join("models/student-tokenizer-4096.json")
}

/// One change of a file's bytes; places count from the end, where Parquet keeps its metadata, in half of the cases.
#[derive(Clone, Debug)]
enum Change {
    Set(usize, u8),
    Flip(usize, u8),
    Cut(usize),
    Insert(usize, Vec<u8>),
    Copy(usize, usize, usize),
}

fn change() -> impl Strategy<Value = Change> {
    let at = || prop_oneof![0usize..20_000, 0usize..2_000];
    prop_oneof![
        4 => (at(), any::<u8>()).prop_map(|(at, byte)| Change::Set(at, byte)),
        4 => (at(), 0u8..8).prop_map(|(at, bit)| Change::Flip(at, 1 << bit)),
        1 => at().prop_map(Change::Cut),
        1 => (at(), prop::collection::vec(any::<u8>(), 1..9)).prop_map(|(at, bytes)| Change::Insert(at, bytes)),
        1 => (at(), at(), 1usize..64).prop_map(|(from, to, n)| Change::Copy(from, to, n)),
    ]
}

fn changed(mut bytes: Vec<u8>, changes: &[Change]) -> Vec<u8> {
    for change in changes {
        let n = bytes.len().max(1);
        // Even places count from the start, odd ones from the end.
        let place = |at: usize| if at.is_multiple_of(2) { at / 2 % n } else { n - 1 - at / 2 % n };
        match change {
            _ if bytes.is_empty() => {}
            Change::Set(at, byte) => bytes[place(*at)] = *byte,
            Change::Flip(at, bit) => bytes[place(*at)] ^= bit,
            Change::Cut(at) => bytes.truncate(place(*at)),
            Change::Insert(at, more) => {
                let at = place(*at);
                bytes.splice(at..at, more.iter().copied());
            }
            Change::Copy(from, to, len) => {
                let (from, to) = (place(*from), place(*to));
                let part = bytes[from..(from + len).min(n)].to_vec();
                let end = (to + part.len()).min(n);
                bytes[to..end].copy_from_slice(&part[..end - to]);
            }
        }
    }
    bytes
}

/// Copies a directory and changes one of its Parquet files.
fn damaged(from: &Path, to: &Path, which: usize, changes: &[Change]) -> PathBuf {
    std::fs::create_dir_all(to).expect("a directory");
    let mut files: Vec<PathBuf> = std::fs::read_dir(from).expect("files").map(|e| e.expect("an entry").path()).collect();
    files.sort();
    for file in &files {
        std::fs::copy(file, to.join(file.file_name().expect("a name"))).expect("copied");
    }
    let parquet: Vec<&PathBuf> = files.iter().filter(|f| f.extension().is_some_and(|e| e == "parquet")).collect();
    let file = parquet[which % parquet.len()];
    let target = to.join(file.file_name().expect("a name"));
    std::fs::write(&target, changed(std::fs::read(file).expect("read"), changes)).expect("written");
    target
}

/// What came of it: an error has a message, and a panic is what must not be.
fn outcome(what: &str, body: impl FnOnce() -> Result<(), StageError>) -> Result<(), TestCaseError> {
    match catch_unwind(AssertUnwindSafe(body)) {
        Ok(Ok(())) => Ok(()),
        Ok(Err(e)) => {
            prop_assert!(!e.message.is_empty(), "{what}");
            Ok(())
        }
        Err(_) => Err(TestCaseError::fail(format!("{what} panicked"))),
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: std::env::var("PROPTEST_CASES").ok().and_then(|n| n.parse().ok()).unwrap_or(64), ..ProptestConfig::default() })]

    #[test]
    fn damaged_files_are_errors(which in 0usize..3, changes in prop::collection::vec(change(), 1..5)) {
        let dir = tempfile::tempdir().expect("dir");
        let raw = dir.path().join("raw");
        damaged(&good().raw, &raw, which, &changes);
        outcome("reading raw traces", || TraceReader::<RawRow>::open(&raw)?.sequences()?.try_for_each(|s| s.map(|_| ())))?;
        outcome("counting raw traces", || survey(&raw, 3).map(|_| ()))?;
        let projected = dir.path().join("projected");
        damaged(&good().projected, &projected, which, &changes);
        outcome("counting projected traces", || survey(&projected, 3).map(|_| ()))?;
        outcome("loading windows", || {
            let reader = TraceReader::<ProjectedRow>::open(&projected)?;
            let mut loader = windows_of_traces(reader, tokenizer(), 16, Distillation::new(1.3, &[1.3]), 1)?.0;
            let weights = flow_lm::train::LossWeights { kd: 1.0, ce: 1.0, format: 0.0 };
            if !loader.is_empty() {
                let (micros, _) = loader.step(0, 4, 1, &weights)?;
                assert!(micros[0].ids.iter().all(|id| id.index() < 4096) && micros[0].labels.iter().all(|l| *l < 4096));
                assert!(micros[0].topk_ids.iter().all(|id| *id < 4096) && micros[0].targets.iter().all(|t| t.is_finite()));
            }
            Ok(())
        })?;
        let foreign = dir.path().join("foreign.parquet");
        std::fs::write(&foreign, changed(std::fs::read(&good().foreign).expect("read"), &changes)).expect("written");
        outcome("importing", || {
            let inputs = [("tokenizer", "Tokenizer", &*tokenizer_path())];
            harness::run(&ImportStage, json!({"path": foreign, "max_invalid": 1.0}), &inputs, &dir.path().join("out")).map(|_| ())
        })?;
    }
}
