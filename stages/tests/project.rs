//! Projection: worked examples, conservation of mass, and the identity of equal tokenizers.

mod harness;

use std::path::Path;

use flow_lm::tokenizer::{TokenId, Tokenizer};
use flow_stages::distil::{FirstToken, Projector, Rule};
use flow_stages::kinds::data_text::TextStage;
use flow_stages::kinds::kd_project::ProjectStage;
use flow_stages::kinds::tokenizer_bpe::BpeStage;
use flow_stages::traces::{Origin, ProjectedRow, RawRow, SequenceRow, TraceMeta, TraceReader, TraceWriter};
use proptest::prelude::*;
use serde_json::json;

fn student() -> Tokenizer {
    let dir = harness::golden().join("models");
    let text = std::fs::read_to_string(dir.join("projection.json")).expect("golden");
    let golden: serde_json::Value = serde_json::from_str(&text).expect("JSON");
    Tokenizer::load(&dir.join(golden["student_tokenizer"].as_str().expect("name"))).expect("tokenizer")
}

fn row(drawn: &str, candidates: &[(&str, f64)]) -> RawRow {
    let mass: f64 = candidates.iter().map(|c| c.1).sum();
    RawRow {
        sample_id: -1,
        sample_bytes: drawn.as_bytes().to_vec(),
        topk_ids: vec![-1; candidates.len()],
        topk_bytes: candidates.iter().map(|c| c.0.as_bytes()).collect(),
        topk_logprobs: candidates.iter().map(|c| c.1.ln() as f32).collect(),
        other_logprob: (1.0 - mass).ln() as f32,
        other_lse: Some(vec![(1.0 - mass).ln() as f32]),
    }
}

fn sequence() -> SequenceRow {
    SequenceRow {
        prompt_idx: 0,
        sample_idx: 0,
        source: Origin::Text,
        context: b"Once".to_vec(),
        context_ids: None,
        finish_reason: "stop".into(),
    }
}

fn project(student: &Tokenizer, rule: Rule, rows: &[RawRow]) -> Vec<ProjectedRow> {
    let first = FirstToken::new(student);
    Projector::new(&first, rule, 20, None).project(sequence(), rows).1
}

fn probability(row: &ProjectedRow, student: &Tokenizer, text: &str) -> f64 {
    let ids = student.encode(text);
    assert_eq!(ids.len(), 1, "`{text}` must be one token");
    let at = row.topk_ids.iter().position(|i| *i == ids[0].signed());
    at.map_or(0.0, |i| f64::from(row.topk_logprobs[i]).exp())
}

fn near(a: f64, b: f64) {
    assert!((a - b).abs() < 1e-6, "{a} is not {b}");
}

#[test]
fn a_teacher_token_of_several_student_tokens_gives_a_row_for_each() {
    let student = student();
    let rows = [row(" the country", &[(" the country", 0.5), (" the people", 0.25), (" then", 0.1)])];
    let out = project(&student, Rule::ByteAligned, &rows);
    assert_eq!(out.len(), 2);
    near(probability(&out[0], &student, " the"), 0.75);
    near(f64::from(out[0].other_logprob).exp(), 0.15);
    assert!(out[0].other_lse.is_some(), "nothing moved into the tail");
    // After " the" all three candidates are still possible, and so is Other.
    near(probability(&out[1], &student, " country"), 0.5);
    near(probability(&out[1], &student, " people"), 0.25);
    near(probability(&out[1], &student, "n"), 0.1);
    assert!(out[1].other_lse.is_none());
    assert_eq!(out.iter().map(|r| r.sample_text.as_str()).collect::<Vec<_>>(), [" the", " country"]);
}

#[test]
fn bytes_already_drawn_condition_what_follows() {
    let student = student();
    let rows = [row(" the country", &[(" the country", 0.4), (" a", 0.4), (" the", 0.1)])];
    let out = project(&student, Rule::ByteAligned, &rows);
    near(probability(&out[0], &student, " the"), 0.5);
    near(probability(&out[0], &student, " a"), 0.4);
    // " a" is ruled out; what follows the shorter " the" is not known here.
    near(probability(&out[1], &student, " country"), 0.4 / 0.6);
    near(f64::from(out[1].other_logprob).exp(), 0.2 / 0.6);
}

#[test]
fn a_student_token_over_several_teacher_tokens_gets_the_product() {
    let student = student();
    let rows = [row(" t", &[(" t", 0.6), (" a", 0.3)]), row("he", &[("he", 0.5), ("hen", 0.2), ("o", 0.2)])];
    let out = project(&student, Rule::ByteAligned, &rows);
    assert_eq!(out.len(), 1);
    near(probability(&out[0], &student, " the"), 0.6 * 0.7);
    near(probability(&out[0], &student, " a"), 0.3);
    near(f64::from(out[0].other_logprob).exp(), 0.1 + 0.6 * 0.3);
    assert!(out[0].other_lse.is_none());
}

#[test]
fn the_end_of_a_text_and_quarantined_rows_keep_their_positions() {
    let student = student();
    let mut bad = row(" people", &[(" people", 0.9)]);
    bad.topk_logprobs = vec![f32::NAN];
    let rows = [row(" the", &[(" the", 0.5), ("", 0.3)]), bad, row("", &[("", 0.8), (" a", 0.1)]), row(" a", &[(" a", 0.9)])];
    let out = project(&student, Rule::ByteAligned, &rows);
    assert_eq!(out.len(), 4);
    let eos = student.eos().signed();
    assert_eq!(out.iter().map(|r| r.kd_weight).collect::<Vec<_>>(), [1.0, 0.0, 1.0, 1.0]);
    assert_eq!(out[1].sample_id, student.encode(" people")[0].signed());
    assert!(out[0].topk_ids.contains(&eos) && out[2].sample_id == eos && out[2].topk_ids[0] == eos);
    near(f64::from(out[2].topk_logprobs[0]).exp(), 0.8);
}

/// Text cut into pieces as some teacher might, with candidates around each.
fn teacher_rows() -> impl Strategy<Value = Vec<RawRow>> {
    let word =
        prop::sample::select(vec![" the", " people", "ing", " co", "un", "try", "\n\n", ",", " {\"a\":", " é", "é", "🙂", " 19", "61", ""]);
    let one = (word, prop::collection::vec((".{0,6}", 0.01f64..1.0), 1..6), any::<bool>(), 0.05f64..1.0);
    prop::collection::vec(one, 1..12).prop_map(|tokens| {
        tokens
            .into_iter()
            .map(|(drawn, mut others, inside, mass)| {
                if inside {
                    others.push((drawn.to_owned(), 0.8));
                }
                others.sort_by(|a, b| a.0.cmp(&b.0));
                others.dedup_by(|a, b| a.0 == b.0);
                others.sort_by(|a, b| b.1.total_cmp(&a.1));
                let sum: f64 = others.iter().map(|o| o.1).sum();
                let scaled: Vec<(&str, f64)> = others.iter().map(|o| (o.0.as_str(), o.1 * mass / sum * 0.999)).collect();
                row(drawn, &scaled)
            })
            .collect()
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]
    #[test]
    fn mass_is_conserved_and_the_text_comes_back(rows in teacher_rows()) {
        let student = student_once();
        for rule in [Rule::ByteAligned, Rule::FirstSubtoken] {
            let out = project(student, rule, &rows);
            for r in &out {
                let sum: f64 = r.topk_logprobs.iter().map(|l| f64::from(*l).exp()).sum::<f64>() + f64::from(r.other_logprob).exp();
                prop_assert!((sum - 1.0).abs() < 1e-5, "{sum}");
                prop_assert!(r.topk_logprobs.windows(2).all(|w| w[0] >= w[1]));
                prop_assert!(r.topk_ids.iter().enumerate().all(|(i, id)| !r.topk_ids[..i].contains(id)));
            }
            if rule == Rule::ByteAligned {
                let ids: Vec<TokenId> = out.iter().map(|r| TokenId(r.sample_id as u32)).filter(|i| *i != student.eos()).collect();
                let text: Vec<u8> = rows.iter().flat_map(|r| r.sample_bytes.clone()).collect();
                prop_assert_eq!(student.decode_bytes(&ids), text);
            } else {
                prop_assert_eq!(out.len(), rows.len());
            }
        }
    }
}

fn student_once() -> &'static Tokenizer {
    static STUDENT: std::sync::OnceLock<Tokenizer> = std::sync::OnceLock::new();
    STUDENT.get_or_init(student)
}

#[test]
fn the_same_tokenizer_is_the_identity_by_either_way() {
    let student = student_once();
    let ids = student.encode("The people of the United States, in 1961: \"peace\".");
    let rows: Vec<RawRow> = ids
        .iter()
        .map(|id| {
            let others: Vec<TokenId> = std::iter::once(*id).chain([300, 301, 302].map(TokenId).into_iter().filter(|o| o != id)).collect();
            RawRow {
                sample_id: id.signed(),
                sample_bytes: student.token_bytes(*id).to_vec(),
                topk_ids: others.iter().map(|o| o.signed()).collect(),
                topk_bytes: others.iter().map(|o| student.token_bytes(*o)).collect(),
                topk_logprobs: (0..others.len()).map(|i| -1.0 - i as f32).collect(),
                other_logprob: (1.0 - (0..others.len()).map(|i| (-1.0 - i as f64).exp()).sum::<f64>()).ln() as f32,
                other_lse: Some(vec![-0.8, -0.1, 1.0]),
            }
        })
        .collect();
    let same = project(student, Rule::Same, &rows);
    let aligned = project(student, Rule::ByteAligned, &rows);
    assert_eq!(same.len(), rows.len());
    for ((raw, a), b) in rows.iter().zip(&same).zip(&aligned) {
        assert_eq!((a.sample_id, &a.topk_ids, &a.topk_logprobs), (raw.sample_id, &raw.topk_ids, &raw.topk_logprobs));
        assert_eq!((a.other_logprob, &a.other_lse), (raw.other_logprob, &raw.other_lse));
        assert_eq!((b.sample_id, &b.topk_ids, &b.other_lse), (raw.sample_id, &raw.topk_ids, &raw.other_lse));
        assert!(a.topk_logprobs.iter().zip(&b.topk_logprobs).all(|(x, y)| (x - y).abs() < 1e-6));
    }
}

/// A deterministic stream of numbers for made-up traces.
fn mix(state: &mut u64) -> u64 {
    *state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
    *state >> 33
}

/// Trains both tokenizers and writes traces of `rows` rows over the shipped text.
fn made_up(dir: &Path, limit: usize) -> (std::path::PathBuf, std::path::PathBuf) {
    let text = harness::run(&TextStage, json!({"path": harness::corpus(), "holdout": 0.05}), &[], &dir.join("text")).expect("text");
    let bpe = |name: &str, size: usize| {
        let inputs = [("text", "Text", text["train"].as_path())];
        harness::run(&BpeStage, json!({"vocab_size": size}), &inputs, &dir.join(name)).expect("tokenizer")["tokenizer"].clone()
    };
    let (teacher, student) = (bpe("teacher", 8192), bpe("student", 4096));
    let teacher = Tokenizer::load(&teacher).expect("loads");
    let train = std::fs::read_to_string(&text["train"]).expect("text");
    let ids = teacher.encode(&train);
    let mut state = 7;
    let traces = dir.join("traces");
    let meta = TraceMeta { tokenizer_hash: teacher.digest(), vocab: 8192, top_k: 20, taus: vec![1.0, 1.3, 2.0], ..TraceMeta::default() };
    let mut writer = TraceWriter::<RawRow>::create(&traces, &meta).expect("create");
    for (n, window) in ids[..limit.min(ids.len())].chunks(127).enumerate() {
        let rows: Vec<RawRow> = window
            .iter()
            .map(|id| {
                let mut others = vec![*id];
                while others.len() < 20 {
                    let other = TokenId(2 + (mix(&mut state) % 8190) as u32);
                    if !others.contains(&other) {
                        others.push(other);
                    }
                }
                let bytes = others.iter().map(|o| teacher.token_bytes(*o)).collect();
                let first = -0.3 - (mix(&mut state) % 1000) as f32 / 500.0;
                RawRow {
                    sample_id: id.signed(),
                    sample_bytes: teacher.token_bytes(*id).to_vec(),
                    topk_ids: others.iter().map(|o| o.signed()).collect(),
                    topk_bytes: bytes,
                    topk_logprobs: (0..20).map(|k| first - k as f32 * 1.7).collect(),
                    other_logprob: -1.0,
                    other_lse: Some(vec![-1.0, 0.4, 2.0]),
                }
            })
            .collect();
        let mut s = sequence();
        s.prompt_idx = n as i64;
        writer.push(s, rows).expect("push");
    }
    writer.finish().expect("finish");
    (traces, student)
}

#[test]
fn the_stage_streams_a_directory_and_gives_the_same_bytes_twice() {
    let dir = tempfile::tempdir().expect("dir");
    let (traces, student) = made_up(dir.path(), 40_000);
    let inputs = [("traces", "Traces", traces.as_path()), ("tokenizer", "Tokenizer", student.as_path())];
    let a = harness::run(&ProjectStage, json!({}), &inputs, &dir.path().join("a")).expect("projects");
    let b = harness::run(&ProjectStage, json!({}), &inputs, &dir.path().join("b")).expect("projects");
    for file in ["rows-00000.parquet", "sequences.parquet", "meta.json"] {
        assert!(std::fs::read(a["traces"].join(file)).expect("a") == std::fs::read(b["traces"].join(file)).expect("b"), "{file}");
    }
    assert_eq!(std::fs::read(&a["stats"]).expect("a"), std::fs::read(&b["stats"]).expect("b"));
    let stats: flow_stages::distil::TraceStats = serde_json::from_slice(&std::fs::read(&a["stats"]).expect("stats")).expect("JSON");
    assert!(!stats.exact && stats.teacher_rows == 40_000 && stats.rows > 40_000 && stats.invalid_share == 0.0);
    assert!(stats.coverage > 0.3 && stats.lost_mass < 0.3 && stats.other_mass.iter().map(|b| b.rows).sum::<u64>() == stats.tokens);
    let reader = TraceReader::<ProjectedRow>::open(&a["traces"]).expect("open");
    let tokenizer = Tokenizer::load(&student).expect("loads");
    assert_eq!(reader.meta().tokenizer_hash, tokenizer.digest());
    for item in reader.sequences().expect("sequences").take(5) {
        let (s, rows) = item.expect("reads");
        assert_eq!(s.context_ids, Some(tokenizer.encode("Once").iter().map(|i| i.signed()).collect()));
        assert!(rows.len() >= 127);
    }
}

#[test]
fn too_many_invalid_rows_fail_the_stage_with_reasons() {
    let dir = tempfile::tempdir().expect("dir");
    let student = harness::golden().join("models/student-tokenizer-4096.json");
    let traces = dir.path().join("traces");
    let mut writer = TraceWriter::<RawRow>::create(&traces, &TraceMeta::default()).expect("create");
    let bad = row(" the", &[(" the", 0.9), (" a", 0.9)]);
    let good = row(" the", &[(" the", 0.9)]);
    writer.push(sequence(), (0..100).map(|i| if i < 3 { bad.clone() } else { good.clone() })).expect("push");
    writer.finish().expect("finish");
    let inputs = [("traces", "Traces", traces.as_path()), ("tokenizer", "Tokenizer", student.as_path())];
    let error = harness::run(&ProjectStage, json!({}), &inputs, &dir.path().join("out")).expect_err("3 % is too many");
    assert!(error.message.contains("3.00 %") && error.message.contains("mass_above_one: 3"), "{error}");
    harness::run(&ProjectStage, json!({"max_invalid": 0.05}), &inputs, &dir.path().join("out")).expect("allowed");
}
