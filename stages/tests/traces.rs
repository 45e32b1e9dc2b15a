//! Traces on disk: what is written is read back, the bytes never vary, and damage is named.

use std::sync::Arc;

use flow_stages::traces::{CandidateBytes, ProjectedRow, RawRow, SequenceRow, Source, TokenTable, TraceMeta, TraceReader, TraceWriter};

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
        source: if i % 2 == 0 { Source::Text } else { Source::Sample },
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
