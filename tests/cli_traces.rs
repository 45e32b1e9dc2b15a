//! `flow traces …` over directories with good and bad rows.

use std::path::Path;
use std::process::Command;

use flow_stages::traces::{CandidateBytes, Origin, RawRow, SequenceRow, TraceMeta, TraceWriter};
use serde_json::Value;

#[path = "support/mod.rs"]
mod support;
use support::Ran;

fn flow(args: &[&str]) -> Ran {
    Ran::of(&Command::new(env!("CARGO_BIN_EXE_flow")).args(args).output().unwrap())
}

fn row(logprobs: &[f32], ids: &[i32]) -> RawRow {
    let other = 1.0 - logprobs.iter().map(|l| l.exp()).sum::<f32>();
    RawRow {
        sample_id: ids[0],
        sample_bytes: b" {x".to_vec(),
        topk_ids: ids.to_vec(),
        topk_bytes: ids.iter().map(|_| &b" {x"[..]).collect(),
        topk_logprobs: logprobs.to_vec(),
        other_logprob: other.max(1e-6).ln(),
        other_lse: None,
    }
}

fn write(dir: &Path, tokenizer: &str, rows: &[RawRow]) {
    let meta = TraceMeta { teacher: "a test".into(), tokenizer_hash: tokenizer.into(), top_k: 2, ..TraceMeta::default() };
    let mut writer = TraceWriter::<RawRow>::create(dir, &meta).unwrap();
    for prompt_idx in 0..2 {
        let sequence = SequenceRow {
            prompt_idx,
            sample_idx: 0,
            source: Origin::Sample,
            context: b"say".to_vec(),
            context_ids: None,
            finish_reason: "stop".into(),
        };
        writer.push(sequence, rows.to_vec()).unwrap();
    }
    writer.finish().unwrap();
}

#[test]
fn rows_are_counted_shown_judged_and_merged() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).display().to_string();
    let good = row(&[-0.5, -1.5], &[3, 7]);
    let bad = [row(&[f32::NAN, -1.0], &[3, 7]), row(&[-2.0, -1.0], &[3, 7]), row(&[-0.1, -0.1], &[3, 7]), row(&[-1.0, -2.0], &[3, 3])];
    // The last row knows nothing: all mass is in Other.
    let nothing = RawRow {
        topk_ids: Vec::new(),
        topk_bytes: CandidateBytes::default(),
        topk_logprobs: Vec::new(),
        other_logprob: 0.0,
        ..good.clone()
    };
    write(&dir.path().join("good"), "abc", &[vec![good.clone(); 9], vec![nothing]].concat());
    write(&dir.path().join("bad"), "abc", &[vec![good.clone(); 3], bad.to_vec()].concat());
    write(&dir.path().join("other"), "def", &[good]);

    let stats: Value = serde_json::from_str(&flow(&["traces", "stats", &path("good"), "--json"]).expect(0).out).unwrap();
    assert_eq!((&stats["stats"]["rows"], &stats["stats"]["invalid_share"]), (&20.into(), &0.0.into()));
    assert!((stats["stats"]["coverage"].as_f64().unwrap() - 0.9 * 0.8297).abs() < 1e-3, "{stats}");
    let shown = flow(&["traces", "stats", &path("good")]).expect(0).out;
    assert!(shown.contains("mass of Other") && shown.contains("top_k, 2 candidates"), "{shown}");
    let head = flow(&["traces", "head", &path("good"), "-n", "3"]).expect(0).out;
    assert_eq!(head.lines().count(), 3);
    assert!(head.starts_with("prompt 0 sample 0 (sample, stop): 10 rows after \"say\"") && head.contains("3: 0.607"), "{head}");

    assert!(flow(&["traces", "check", &path("good")]).expect(0).out.contains("20 rows, invalid: 0"));
    let ran = flow(&["traces", "check", &path("bad")]).expect(1);
    let named = "rows-00000.parquet row 3 (prompt 0 sample 0 step 3): not_finite";
    assert!(ran.out.starts_with(named) && ran.err.contains("more than 2 %"), "{}{}", ran.out, ran.err);
    for reason in ["not_finite 2", "unsorted 2", "mass_above_one 2", "duplicate_id 2"] {
        assert!(ran.out.contains(reason), "{reason}: {}", ran.out);
    }
    flow(&["traces", "check", &path("bad"), "--max-invalid", "0.9"]).expect(0);

    flow(&["traces", "merge", &path("all"), &path("good"), &path("bad")]).expect(0);
    let stats: Value = serde_json::from_str(&flow(&["traces", "stats", &path("all"), "--json"]).expect(0).out).unwrap();
    assert_eq!((&stats["stats"]["rows"], &stats["stats"]["sequences"]), (&34.into(), &4.into()));
    let refused = flow(&["traces", "merge", &path("more"), &path("good"), &path("other")]).expect(2);
    assert!(refused.err.contains("another tokenizer"), "{}", refused.err);
    let refused = flow(&["traces", "stats", &path("nothing")]).expect(2);
    assert!(refused.err.contains("meta.json"), "{}", refused.err);
    // A file that is cut short is named.
    let shard = dir.path().join("good/rows-00000.parquet");
    let bytes = std::fs::read(&shard).unwrap();
    std::fs::write(&shard, &bytes[..bytes.len() / 2]).unwrap();
    let refused = flow(&["traces", "check", &path("good")]).expect(2);
    assert!(refused.err.contains("rows-00000.parquet") && refused.err.contains("not readable"), "{}", refused.err);
}
