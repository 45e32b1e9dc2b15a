//! What `kd.collect` keeps of a distribution, from whom it collects, and how traces larger than memory are loaded.

mod harness;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use flow_lm::tokenizer::Tokenizer;
use flow_lm::train::LossWeights;
use flow_stages::distil::Distillation;
use flow_stages::distil::windows::windows_of_traces;
use flow_stages::kinds::kd_collect::CollectStage;
use flow_stages::traces::{Origin, ProjectedRow, RawRow, SequenceRow, TraceMeta, TraceReader, TraceWriter};
use harness::{golden, run, run_and_stop};
use serde_json::{Value, json};

fn teacher() -> PathBuf {
    golden().join("models/tiny-llama")
}

struct Asked {
    dir: tempfile::TempDir,
}

impl Asked {
    fn new() -> Self {
        let asked = Self { dir: tempfile::tempdir().expect("a directory") };
        std::fs::write(asked.dir.path().join("text"), "It is a truth, universally acknowledged: {\"a\": [1, 2]} \u{e9}t\u{e9}.")
            .expect("a text");
        let prompts =
            "{\"id\": 1, \"kind\": \"text\", \"prompt\": \"Once upon\"}\n{\"id\": 2, \"kind\": \"text\", \"prompt\": \"The law\"}\n";
        std::fs::write(asked.dir.path().join("prompts"), prompts).expect("prompts");
        asked
    }

    /// Collects with these parameters and more inputs than the teacher.
    fn collect(&self, name: &str, params: Value, inputs: &[&str]) -> Vec<(SequenceRow, Vec<RawRow>)> {
        let (teacher, text, prompts) = (teacher(), self.dir.path().join("text"), self.dir.path().join("prompts"));
        let mut wired = vec![("teacher", "Teacher", teacher.as_path())];
        for port in inputs {
            wired.push(match *port {
                "text" => ("text", "Text", &text),
                "student" => ("student", "Model", &teacher),
                _ => ("prompts", "Prompts", &prompts),
            });
        }
        let out = run(&CollectStage, params, &wired, &self.dir.path().join(name)).expect("collects");
        read(&out["traces"])
    }
}

fn read(dir: &Path) -> Vec<(SequenceRow, Vec<RawRow>)> {
    let reader = TraceReader::<RawRow>::open(dir).expect("traces");
    reader.sequences().expect("opens").map(|s| s.expect("a sequence")).collect()
}

#[test]
fn a_full_row_holds_what_the_top_k_holds_and_everything_else() {
    let asked = Asked::new();
    let top = asked.collect("top", json!({"top_k": 5}), &["text"]);
    let full = asked.collect("full", json!({"method": "full"}), &["text"]);
    let vocab = Tokenizer::load(&teacher().join("tokenizer.json")).expect("a tokenizer").vocab_size();
    assert_eq!(top.len(), full.len());
    for (a, b) in top.iter().zip(&full).flat_map(|(a, b)| a.1.iter().zip(&b.1)) {
        assert!(b.topk_ids.len() >= vocab, "{} of {vocab}", b.topk_ids.len());
        assert_eq!(a.topk_ids, b.topk_ids[..5]);
        assert!(a.topk_logprobs.iter().zip(&b.topk_logprobs).all(|(x, y)| (x - y).abs() < 1e-3));
        let mass: f64 = b.topk_logprobs.iter().map(|l| f64::from(*l).exp()).sum();
        assert!((mass - 1.0).abs() < 1e-5, "{mass}");
    }
}

#[test]
fn sampled_rows_repeat_and_their_mean_is_the_distribution() {
    let asked = Asked::new();
    let collect = |name: &str, seed: u64| asked.collect(name, json!({"method": "sampled", "draws": 12, "seed": seed}), &["text"]);
    let (first, again) = (collect("a", 1), collect("b", 1));
    assert_eq!(first, again);
    let full = asked.collect("full", json!({"method": "full"}), &["text"]);
    let mut weights: BTreeMap<i32, f64> = BTreeMap::new();
    let mut rows = 0.0;
    for row in (0..40).flat_map(|seed| collect(&format!("s{seed}"), seed).into_iter().flat_map(|s| s.1.into_iter().take(8))) {
        assert!(row.topk_ids.len() <= 12 && (row.topk_logprobs.iter().map(|l| l.exp()).sum::<f32>() - 1.0).abs() < 1e-5);
        rows += 1.0;
        row.topk_ids.iter().zip(&row.topk_logprobs).for_each(|(id, l)| *weights.entry(*id).or_default() += f64::from(*l).exp());
    }
    let mut wanted: BTreeMap<i32, f64> = BTreeMap::new();
    let eight: Vec<&RawRow> = full.iter().flat_map(|s| s.1.iter().take(8)).collect();
    for row in &eight {
        row.topk_ids.iter().zip(&row.topk_logprobs).for_each(|(id, l)| *wanted.entry(*id).or_default() += f64::from(*l).exp());
    }
    let distance: f64 =
        wanted.iter().map(|(id, w)| (w / eight.len() as f64 - weights.get(id).unwrap_or(&0.0) / rows).abs()).sum::<f64>() / 2.0;
    // What the mean of so many draws differs by on average: of a share w of n draws, sqrt(2 w (1 - w) / (π n)). A biased
    // draw is further away.
    let spread = |w: &f64| (2.0 * w * (1.0 - w) / (std::f64::consts::PI * 12.0 * rows)).sqrt();
    let expected: f64 = wanted.values().map(|w| spread(&(w / eight.len() as f64))).sum::<f64>() / 2.0;
    assert!((distance / expected - 1.0).abs() < 0.1, "{distance}, expected {expected}");
}

#[test]
fn rounded_logprobs_are_near_and_sorted() {
    let asked = Asked::new();
    let exact = asked.collect("exact", json!({"top_k": 20}), &["text"]);
    let short = asked.collect("short", json!({"top_k": 20, "logprob_precision": "10bit"}), &["text"]);
    for (a, b) in exact.iter().zip(&short).flat_map(|(a, b)| a.1.iter().zip(&b.1)) {
        assert!(a.topk_logprobs.iter().zip(&b.topk_logprobs).all(|(x, y)| (x - y).abs() <= x.abs() / 2048.0));
        assert!(b.topk_logprobs.windows(2).all(|w| w[0] >= w[1]));
        assert!(b.topk_logprobs.iter().all(|l| l.to_bits() & 0x1fff == 0));
        assert_eq!(a.topk_ids, b.topk_ids);
    }
}

/// What was scored and drawn before a stop is taken up, not made again, and the result is the same.
#[test]
fn a_stopped_collection_goes_on_where_it_was() {
    let asked = Asked::new();
    std::fs::write(asked.dir.path().join("text"), "The law of the land is what the people say. ".repeat(1_000)).expect("a text");
    let (teacher, text, prompts) = (teacher(), asked.dir.path().join("text"), asked.dir.path().join("prompts"));
    let wired = [("teacher", "Teacher", teacher.as_path()), ("text", "Text", &text), ("prompts", "Prompts", &prompts)];
    let params = json!({"top_k": 5, "template": "{prompt}", "max_tokens": 6, "samples": 3, "batch": 2});
    let whole = run(&CollectStage, params.clone(), &wired, &asked.dir.path().join("whole")).expect("collects");
    let dir = asked.dir.path().join("stopped");
    let rows = |dir: &Path| std::fs::read(dir.join("rows-00000.parquet")).expect("rows");
    let made = |name: &str| std::fs::metadata(dir.join("state").join(name)).and_then(|m| m.modified());
    let stop = |reports| run_and_stop(&CollectStage, params.clone(), &wired, &dir, reports).expect_err("stopped");
    assert!(stop(1).interrupted);
    let first = made("rows-000000").expect("a part is finished");
    assert!(made("drawn-000000.json").is_err());
    // The text's parts each report, then the first group of continuations does.
    let parts = std::fs::read_dir(asked.dir.path().join("whole/state")).expect("state").flatten();
    let of_text = parts.filter(|e| e.file_name().to_string_lossy().starts_with("rows-")).count() - 1;
    assert!(of_text >= 2, "{of_text}");
    assert!(stop(of_text + 1).interrupted);
    let drawn = made("drawn-000000.json").expect("a group is drawn");
    let out = run(&CollectStage, params.clone(), &wired, &dir).expect("goes on");
    assert!(rows(&out["traces"]) == rows(&whole["traces"]));
    assert_eq!((made("rows-000000").expect("kept"), made("drawn-000000.json").expect("kept")), (first, drawn));
}

/// The student here is the teacher itself, so that what it draws must be what the teacher draws.
#[test]
fn on_policy_rows_are_the_teachers_of_the_students_words() {
    let asked = Asked::new();
    let params = json!({"top_k": 5, "template": "{prompt}", "max_tokens": 6, "samples": 2});
    let own = asked.collect("own", params.clone(), &["prompts"]);
    let theirs = asked.collect("theirs", params, &["prompts", "student"]);
    assert!(own.iter().all(|s| s.0.source == Origin::Sample) && theirs.iter().all(|s| s.0.source == Origin::OnPolicy));
    assert_eq!(own.len(), 4);
    let text = |rows: &[RawRow]| rows.iter().flat_map(|r| r.sample_bytes.clone()).collect::<Vec<u8>>();
    for ((a, rows), (b, scored)) in own.iter().zip(&theirs) {
        assert_eq!((a.prompt_idx, a.sample_idx, &a.context), (b.prompt_idx, b.sample_idx, &b.context));
        assert_eq!(text(rows), text(scored));
    }
}

/// More shards than a pool holds: every token is a target once in an epoch, and a batch is the same whatever came before.
#[test]
fn an_epoch_over_many_shards_visits_every_token_once() {
    const SEQUENCES: usize = 2_800;
    const LENGTH: usize = 512;
    let dir = tempfile::tempdir().expect("a directory");
    let tokenizer = Tokenizer::load(&golden().join("models/student-tokenizer-4096.json")).expect("a tokenizer");
    let meta = TraceMeta { tokenizer_hash: tokenizer.digest(), vocab: 4096, top_k: 1, ..TraceMeta::default() };
    let mut writer = TraceWriter::<ProjectedRow>::create(dir.path(), &meta).expect("a writer");
    for s in 0..SEQUENCES {
        // The two numbers of a token tell its place: a label's neighbours are those of its sequence.
        let rows = (0..LENGTH).map(|t| ProjectedRow {
            sample_id: ((s * 7 + t) % 4000) as i32,
            topk_ids: vec![((s * 7 + t) % 4000) as i32],
            topk_logprobs: vec![-0.5],
            other_logprob: -0.9,
            kd_weight: 1.0,
            ..ProjectedRow::default()
        });
        let sequence = SequenceRow {
            prompt_idx: s as i64,
            sample_idx: 0,
            source: Origin::Text,
            context: Vec::new(),
            context_ids: None,
            finish_reason: "text".into(),
        };
        writer.push(sequence, rows).expect("a sequence");
    }
    let counts = writer.finish().expect("written");
    assert!(counts.shards > 4, "{} shards fit into one pool", counts.shards);
    let open = || {
        let reader = TraceReader::<ProjectedRow>::open(dir.path()).expect("traces");
        windows_of_traces(reader, &tokenizer, 128, Distillation::new(1.0, &[]), 3).expect("windows")
    };
    let (mut loader, totals) = open();
    assert_eq!((totals.targets, loader.len()), ((SEQUENCES * LENGTH) as u64, (SEQUENCES * LENGTH / 128) as u64));
    let weights = LossWeights { kd: 1.0, ce: 1.0, format: 0.0 };
    let mut seen = vec![0u32; 4000];
    let (mut total, mut cursor, mut middle) = (0, 0, None);
    while cursor < loader.len() {
        let (step, targets) = loader.step(cursor, 8, 1, &weights).expect("a batch");
        let batch = &step[0];
        batch.labels.iter().filter(|l| **l >= 0).for_each(|l| seen[*l as usize] += 1);
        total += targets;
        if cursor == 8 * 1000 {
            middle = Some((cursor, batch.labels.clone()));
        }
        cursor += 8;
    }
    assert_eq!(total, (SEQUENCES * LENGTH) as u64);
    let mut wanted = vec![0u32; 4000];
    (0..SEQUENCES).for_each(|s| (0..LENGTH).for_each(|t| wanted[(s * 7 + t) % 4000] += 1));
    assert_eq!(seen, wanted);
    // A resumed training starts in the middle.
    let (cursor, labels) = middle.expect("a batch in the middle");
    assert_eq!(open().0.step(cursor, 8, 1, &weights).expect("a batch").0[0].labels, labels);
}

/// A budget is a sample of the whole text and of all prompts: what stands last in them is seen too.
#[test]
fn a_budget_takes_from_everywhere() {
    let asked = Asked::new();
    let lines: String = (0..400).map(|i| format!("Line {i} of many says no more than that it is there.\n")).collect();
    std::fs::write(asked.dir.path().join("text"), format!("{lines}{}\n", (0..200).map(|i| format!("qqqq {i} ")).collect::<String>()))
        .expect("a text");
    let prompts: String = (0..32).map(|i| format!("{{\"id\": {i}, \"kind\": \"text\", \"prompt\": \"Prompt {i} is\"}}\n")).collect();
    std::fs::write(asked.dir.path().join("prompts"), prompts).expect("prompts");
    let all = asked.collect("all", json!({"top_k": 2}), &["text"]);
    let total: usize = all.iter().map(|s| s.1.len()).sum();
    let key = |rows: &[RawRow]| rows.iter().map(|r| r.sample_id).collect::<Vec<_>>();
    let places = |name: &str, tokens: usize, seed: u64| -> Vec<usize> {
        let some = asked.collect(name, json!({"top_k": 2, "text_tokens": tokens, "seed": seed}), &["text"]);
        assert_eq!(some.iter().map(|s| s.1.len()).sum::<usize>(), tokens.min(total));
        some.iter().map(|s| all.iter().position(|a| key(&a.1).starts_with(&key(&s.1))).expect("a window of the text")).collect()
    };
    let windows = all.len();
    assert!(windows >= 8, "{windows}");
    let half = places("half", total / 2, 1);
    assert!(half.windows(2).all(|w| w[0] < w[1]), "{half:?}");
    assert!(half[0] <= 2 && half[half.len() - 1] >= windows - 3, "{half:?} of {windows}");
    assert_ne!(places("a third", total / 3, 1), places("another third", total / 3, 5));
    // The last document, a tenth of the text, is among what a quarter of it takes, whatever the seed.
    for seed in 0..4 {
        let quarter = places(&format!("seed {seed}"), total / 4, seed);
        let last: Vec<u8> = all[quarter[quarter.len() - 1]].1.iter().flat_map(|r| r.sample_bytes.clone()).collect();
        assert!(String::from_utf8_lossy(&last).contains("qqqq"), "{quarter:?} of {windows}");
    }
    let some = asked.collect("of prompts", json!({"top_k": 2, "max_prompts": 8, "max_tokens": 2, "template": "{prompt}"}), &["prompts"]);
    let asked_for: Vec<String> = some.iter().map(|s| String::from_utf8_lossy(&s.0.context).into_owned()).collect();
    let number = |text: &String| text.split(' ').nth(1).and_then(|n| n.parse::<usize>().ok()).expect("a number");
    assert_eq!(asked_for.len(), 8);
    assert!(asked_for.iter().map(number).any(|n| n >= 28) && asked_for.iter().map(number).any(|n| n < 4), "{asked_for:?}");
}
