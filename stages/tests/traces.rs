//! Traces on disk: what is written is read back, the bytes never vary, and damage is named.

use std::sync::Arc;

use flow_stages::traces::{CandidateBytes, Origin, ProjectedRow, RawRow, SequenceRow, TokenTable, TraceMeta, TraceReader, TraceWriter};

fn meta() -> TraceMeta {
    TraceMeta {
        teacher: "a test".into(),
        template: "<|user|>\n{prompt}\n\n<|assistant|>\n".into(),
        tokenizer_hash: "abc".into(),
        taus: vec![1.0, 1.3, 2.0],
        top_k: 3,
        ..TraceMeta::default()
    }
}

fn raw(i: usize) -> RawRow {
    let strings = [&b" a"[..], b"\xff", b""].into_iter().collect();
    RawRow {
        sample_id: i as i32,
        sample_bytes: format!(" {{{i}").into_bytes(),
        topk_ids: vec![i as i32, 7, 9],
        topk_bytes: strings,
        topk_logprobs: vec![-0.5, -1.5, -3.0 - i as f32 * 1e-3],
        other_logprob: -2.5,
        other_lse: i.is_multiple_of(2).then(|| vec![-2.5, -1.0, 0.5]),
    }
}

fn sequence(i: i64) -> SequenceRow {
    SequenceRow {
        prompt_idx: i,
        sample_idx: 0,
        source: if i % 2 == 0 { Origin::Text } else { Origin::Sample },
        context: vec![0xff, i as u8],
        context_ids: (i % 3 == 0).then(|| vec![1, 2]),
        finish_reason: "stop".into(),
    }
}

fn write(dir: &std::path::Path, sequences: usize, rows: usize) {
    let mut writer = TraceWriter::<RawRow>::create(dir, &meta()).expect("create");
    for s in 0..sequences {
        // The third sequence has no rows, as after an error of the teacher.
        let n = if s == 2 { 0 } else { rows };
        writer.push(sequence(s as i64), (0..n).map(raw)).expect("push");
    }
    let counts = writer.finish().expect("finish");
    assert_eq!(counts.rows as usize, (sequences - 1) * rows);
    assert_eq!(counts.structural_rows, counts.rows);
}

fn read_all(dir: &std::path::Path) -> Vec<(std::path::PathBuf, Vec<u8>)> {
    let mut files: Vec<_> = std::fs::read_dir(dir).expect("dir").map(|e| e.expect("entry").path()).collect();
    files.sort();
    files.into_iter().map(|f| (f.file_name().expect("name").into(), std::fs::read(&f).expect("read"))).collect()
}

#[test]
fn rows_come_back_sequence_by_sequence_over_shards() {
    let dir = tempfile::tempdir().expect("dir");
    write(dir.path(), 40, 9_000);
    let reader = TraceReader::<RawRow>::open(dir.path()).expect("open");
    assert_eq!(reader.counts().shards, 2);
    assert_eq!(reader.meta().taus, [1.0, 1.3, 2.0]);
    let mut seen = 0;
    for (i, item) in reader.sequences().expect("sequences").enumerate() {
        let (s, rows) = item.expect("reads");
        assert_eq!(s, sequence(i as i64));
        assert_eq!(rows.len(), if i == 2 { 0 } else { 9_000 });
        assert!(rows.iter().enumerate().all(|(k, r)| *r == raw(k)));
        seen += 1;
    }
    assert_eq!(seen, 40);
}

#[test]
fn the_same_rows_give_the_same_bytes() {
    let (a, b) = (tempfile::tempdir().expect("dir"), tempfile::tempdir().expect("dir"));
    write(a.path(), 5, 3_000);
    write(b.path(), 5, 3_000);
    assert!(read_all(a.path()) == read_all(b.path()));
}

#[test]
fn damage_is_named_with_its_file() {
    let dir = tempfile::tempdir().expect("dir");
    write(dir.path(), 5, 3_000);
    let shard = dir.path().join("rows-00000.parquet");
    let good = std::fs::read(&shard).expect("read");
    let fails = |what: &str| {
        let error = TraceReader::<RawRow>::open(dir.path()).and_then(|r| r.sequences()?.collect::<Result<Vec<_>, _>>()).expect_err(what);
        assert!(error.message.contains("rows-00000.parquet") && error.help.is_some(), "{what}: {error}");
    };
    std::fs::write(&shard, &good[..good.len() / 2]).expect("write");
    fails("cut short");
    std::fs::write(&shard, b"PAR1 this is no Parquet file PAR1").expect("write");
    fails("not Parquet");
    let mut bad = good.clone();
    for b in &mut bad[200..600] {
        *b ^= 0x5a;
    }
    std::fs::write(&shard, &bad).expect("write");
    fails("flipped bytes");
    std::fs::remove_file(&shard).expect("remove");
    fails("missing");
    let error = TraceReader::<ProjectedRow>::open(dir.path()).err().expect("raw traces are no projected ones");
    assert!(error.help.expect("help").contains("kd.project"));
}

/// Rows whose ids are known leave their bytes to the table; two directories' tables become one.
#[test]
fn bytes_of_known_ids_stand_once_and_survive_merging() {
    let tables: Vec<Arc<TokenTable>> = [[(1, &b" a"[..]), (5, b"\xff"), (9, b"")], [(1, b" a"), (5, b"\xff"), (7, b"zz")]]
        .into_iter()
        .map(|tokens| {
            let mut table = TokenTable::default();
            tokens.into_iter().for_each(|(id, bytes)| table.insert(id, bytes));
            Arc::new(table)
        })
        .collect();
    let row = |table: &Arc<TokenTable>, ids: [i32; 2]| RawRow {
        sample_id: ids[0],
        sample_bytes: table.get(ids[0]).expect("listed").to_vec(),
        topk_ids: ids.to_vec(),
        topk_bytes: CandidateBytes::Table(table.clone()),
        topk_logprobs: vec![-0.5, -1.5],
        other_logprob: -1.7,
        other_lse: None,
    };
    let dir = tempfile::tempdir().expect("dir");
    let (a, b, both) = (dir.path().join("a"), dir.path().join("b"), dir.path().join("both"));
    for (path, table, ids) in [(&a, &tables[0], [9, 5]), (&b, &tables[1], [7, 1])] {
        let mut writer = TraceWriter::<RawRow>::create(path, &meta()).expect("create");
        // A row of its own bytes may stand beside them.
        writer.push(sequence(0), [row(table, ids), raw(0)]).expect("push");
        writer.finish().expect("finish");
    }
    flow_stages::traces::merge(&[&a, &b], &both).expect("merges");
    let reader = TraceReader::<RawRow>::open(&both).expect("open");
    let rows: Vec<RawRow> = reader.sequences().expect("sequences").flat_map(|s| s.expect("reads").1).collect();
    let bytes = |r: &RawRow| (r.sample_bytes.clone(), r.candidate_bytes().map(<[u8]>::to_vec).collect::<Vec<_>>());
    assert_eq!(bytes(&rows[0]), (vec![], vec![vec![], vec![0xff]]));
    assert_eq!(bytes(&rows[2]), (b"zz".to_vec(), vec![b"zz".to_vec(), b" a".to_vec()]));
    assert_eq!((&rows[1], &rows[3]), (&raw(0), &raw(0)));
    assert!(reader.tokens().get(0).is_none() && reader.tokens().get(5) == Some(&[0xff][..]));
    // Without the table the rows cannot be read, and it is said which token is missing where.
    std::fs::remove_file(both.join("tokens.parquet")).expect("removed");
    let error = TraceReader::<RawRow>::open(&both).and_then(|r| r.sequences()?.collect::<Result<Vec<_>, _>>()).expect_err("no table");
    assert!(error.message.contains("rows-00000.parquet") && error.message.contains("token 9"), "{error}");
}

/// Everything that training relies on is checked where a projected row is read, whoever wrote it: the message has the file,
/// the row and the field.
#[test]
fn a_projected_row_that_is_wrong_is_refused_with_its_place() {
    let good = |t: usize| ProjectedRow {
        sample_id: t as i32,
        sample_text: "a".into(),
        topk_ids: vec![1, 2],
        topk_logprobs: vec![-0.5, -2.0],
        other_logprob: -1.359,
        other_lse: Some(vec![-1.3, 0.1, 0.4]),
        is_struct: false,
        kd_weight: 1.0,
    };
    type Change = fn(&mut ProjectedRow);
    let wrong: [(&str, Change); 20] = [
        ("field `teacher_sample_id`: 50 is no token of a vocabulary of 50", |r| r.sample_id = 50),
        ("field `teacher_sample_id`: -1 is no token", |r| r.sample_id = -1),
        ("field `topk_ids`: 50 is no token", |r| r.topk_ids[1] = 50),
        ("field `topk_ids`: -1 is no token", |r| r.topk_ids[0] = -1),
        ("field `topk_ids`: 2 stands twice", |r| r.topk_ids[0] = 2),
        ("3 `topk_ids` and 2 `topk_logprobs`", |r| r.topk_ids.push(9)),
        ("1 `topk_ids` and 2 `topk_logprobs`", |r| r.topk_ids.truncate(1)),
        ("field `topk_logprobs`: NaN is no logprob", |r| r.topk_logprobs[0] = f32::NAN),
        ("field `topk_logprobs`: -inf is no logprob", |r| r.topk_logprobs[1] = f32::NEG_INFINITY),
        ("field `topk_logprobs`: 0.5 is no logprob", |r| r.topk_logprobs[0] = 0.5),
        ("field `other_logprob`: NaN is no logprob", |r| r.other_logprob = f32::NAN),
        ("field `other_logprob`: inf is no logprob", |r| r.other_logprob = f32::INFINITY),
        ("the candidates hold a mass of 1.4721", |r| r.topk_logprobs = vec![-0.1, -0.567]),
        ("and Other 0.7408, together they must be 1", |r| r.other_logprob = -0.3),
        ("and Other 0.0000, together they must be 1", |r| r.other_logprob = -60.0),
        ("field `other_lse`: 2 values, meta.json names 3 temperatures", |r| r.other_lse = Some(vec![-1.0, 0.0])),
        ("field `other_lse`: a value is not finite", |r| r.other_lse = Some(vec![-1.0, f32::NAN, 0.0])),
        ("field `kd_weight`: NaN is no weight", |r| r.kd_weight = f32::NAN),
        ("field `kd_weight`: -1 is no weight", |r| r.kd_weight = -1.0),
        ("field `kd_weight`: inf is no weight", |r| r.kd_weight = f32::INFINITY),
    ];
    let meta = TraceMeta { vocab: 50, ..meta() };
    let read = |change: Option<Change>| {
        let dir = tempfile::tempdir().expect("dir");
        let mut writer = TraceWriter::<ProjectedRow>::create(dir.path(), &meta).expect("create");
        // The wrong row is in the second batch of the second sequence.
        writer.push(sequence(0), (0..9_000).map(|t| good(t % 50))).expect("push");
        let mut rows: Vec<ProjectedRow> = (0..20).map(good).collect();
        if let Some(change) = change {
            change(&mut rows[7]);
        }
        writer.push(sequence(1), rows).expect("push");
        writer.finish().expect("finish");
        TraceReader::<ProjectedRow>::open(dir.path()).and_then(|r| r.sequences()?.collect::<Result<Vec<_>, _>>())
    };
    assert_eq!(read(None).expect("all of them are right").len(), 2);
    for (what, change) in wrong {
        let error = read(Some(change)).expect_err(what);
        assert!(error.message.contains("rows-00000.parquet: not readable as traces: row 9007: "), "{what}: {error}");
        assert!(error.message.contains(what), "{what}: {error}");
    }
    // A quarantined row keeps its place with whatever finite distribution it has.
    let quarantined: Change = |r| (r.topk_logprobs, r.kd_weight) = (vec![-0.1, -0.1], 0.0);
    assert!(read(Some(quarantined)).is_ok());
    let none: Change = |r| (r.topk_ids, r.topk_logprobs, r.other_logprob) = (vec![], vec![], 0.0);
    assert!(read(Some(none)).is_ok());
}

/// Metadata that say less than the rows hold are put right by the writer, and are an error where another one wrote them.
#[test]
fn the_widest_row_is_what_the_metadata_say() {
    let dir = tempfile::tempdir().expect("dir");
    let mut writer = TraceWriter::<ProjectedRow>::create(dir.path(), &TraceMeta { top_k: 2, ..meta() }).expect("create");
    let row = |n: i32| ProjectedRow {
        topk_ids: (0..n).collect(),
        topk_logprobs: vec![-10.0; n as usize],
        other_logprob: (-(n as f32) * (-10f32).exp()).ln_1p(),
        kd_weight: 1.0,
        ..ProjectedRow::default()
    };
    writer.push(sequence(0), [row(3), row(70), row(0)]).expect("push");
    writer.finish().expect("finish");
    let reader = TraceReader::<ProjectedRow>::open(dir.path()).expect("open");
    assert_eq!(reader.meta().top_k, 70);
    assert!(reader.sequences().expect("opens").all(|s| s.is_ok()));
    let path = dir.path().join("meta.json");
    let text = std::fs::read_to_string(&path).expect("read").replace("\"top_k\": 70", "\"top_k\": 69");
    std::fs::write(&path, text).expect("write");
    let error = TraceReader::<ProjectedRow>::open(dir.path()).and_then(|r| r.sequences()?.collect::<Result<Vec<_>, _>>());
    let error = error.expect_err("wider than the metadata say");
    assert!(error.message.contains("row 1: field `topk_ids`: 70 candidates, meta.json says at most 69"), "{error}");
}

/// What stands before a sequence goes into the student's embedding: it is looked at as well.
#[test]
fn a_context_beyond_the_vocabulary_is_refused() {
    let dir = tempfile::tempdir().expect("dir");
    let mut writer = TraceWriter::<ProjectedRow>::create(dir.path(), &TraceMeta { vocab: 50, ..meta() }).expect("create");
    let row =
        ProjectedRow { topk_ids: vec![1], topk_logprobs: vec![-0.1], other_logprob: -2.352, kd_weight: 1.0, ..ProjectedRow::default() };
    writer.push(SequenceRow { context_ids: Some(vec![3, 49]), ..sequence(0) }, [row.clone()]).expect("push");
    writer.push(SequenceRow { context_ids: Some(vec![3, 51]), ..sequence(1) }, [row]).expect("push");
    writer.finish().expect("finish");
    let all = TraceReader::<ProjectedRow>::open(dir.path()).and_then(|r| r.sequences()?.collect::<Result<Vec<_>, _>>());
    let error = all.expect_err("51 is no token");
    for part in ["sequences.parquet", "row 1: field `context_ids`: 51 is no token of a vocabulary of 50"] {
        assert!(error.message.contains(part), "{error}");
    }
}
