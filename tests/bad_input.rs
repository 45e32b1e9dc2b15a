//! Bad files, pipelines and data: each a clear error that says what to do, with its exit code, and nothing in the cache.

mod support;

use std::fs;
use std::process::Command;

use support::Ran;

const GOOD: &str = "\
flow: 1
stages:
  corpus: { use: data.text, with: { path: text.txt } }
  prompts: { use: data.prompts, with: { path: prompts.jsonl } }
  tokenizer: { use: tokenizer.bpe, in: { text: corpus.train }, with: { vocab_size: 270 } }
  teacher: { use: teacher.train, in: { text: corpus.train, tokenizer: tokenizer } }
  traces: { use: kd.collect, in: { teacher: teacher, prompts: prompts.train } }
  projected: { use: kd.project, in: { traces: traces, tokenizer: tokenizer } }
  student: { use: train.bitnet, in: { traces: projected, tokenizer: tokenizer }, with: { tau: 1.5 } }
";
const TEXT: &str = "# One\nthe cat sat on the mat and the dog sat on the log\n# Two\nthe dog sat on the mat and the cat on the log\n";
const PROMPTS: &str = "{\"id\": 0, \"kind\": \"prose\", \"prompt\": \"a\"}\n{\"id\": 1, \"kind\": \"prose\", \"prompt\": \"b\"}\n";

/// `flow run p.yaml TARGET` in a project of these files; gives what it said, and how many results the cache holds.
fn run(pipeline: &str, text: &[u8], prompts: &[u8], target: &str) -> (Ran, usize) {
    let dir = tempfile::tempdir().unwrap();
    for (name, bytes) in [("p.yaml", pipeline.as_bytes()), ("text.txt", text), ("prompts.jsonl", prompts)] {
        fs::write(dir.path().join(name), bytes).unwrap();
    }
    let mut command = Command::new(env!("CARGO_BIN_EXE_flow"));
    command.args(["run", "p.yaml", target]).current_dir(dir.path()).env("FLOW_DEVICE", "cpu").env_remove("FLOW_CACHE_DIR");
    let ran = Ran::of(&command.output().unwrap());
    let entries = fs::read_dir(dir.path().join(".flow/actions")).into_iter().flatten().count();
    (ran, entries)
}

/// The message has all `words`, the exit code is `code`, and the cache holds `entries` results.
fn refused(what: &str, (ran, found): (Ran, usize), code: i32, entries: usize, words: &[&str]) {
    let text = format!("{}{}", ran.out, ran.err);
    assert_eq!(ran.code, Some(code), "{what}:\n{text}");
    for word in words {
        assert!(text.contains(word), "{what}: no `{word}` in\n{text}");
    }
    assert_eq!(found, entries, "{what}: results in the cache");
}

/// `pipeline` with one replacement, which must apply.
fn edited(from: &str, to: &str) -> String {
    let text = GOOD.replacen(from, to, 1);
    assert_ne!(text, GOOD, "{from}");
    text
}

#[test]
fn pipelines_that_cannot_be_right() {
    let cases: [(&str, String, &[&str]); 21] = [
        ("syntax", edited("stages:", "stages: ["), &["not valid YAML", "p.yaml:"]),
        (
            "nothing to learn from",
            edited("in: { traces: projected, tokenizer: tokenizer }", "in: { tokenizer: tokenizer }"),
            &["neither `traces` nor `text` is wired", "p.yaml:9", "`kd.project`"],
        ),
        (
            "nothing to learn from, twice",
            edited(
                "student: { use: train.bitnet, in: { traces: projected, tokenizer: tokenizer }, with: { tau: 1.5 }",
                "student: { use: train.bitnet, matrix: { tau: [1, 2] }, in: { tokenizer: tokenizer }, with: { tau: \"${tau}\" }",
            ),
            &["× stage `student[tau=1]`: neither `traces` nor `text` is wired", "p.yaml:9"],
        ),
        (
            "two to learn from",
            edited("in: { traces: projected,", "in: { traces: projected, text: corpus.train,"),
            &["both `traces` and `text` are wired", "p.yaml:9"],
        ),
        (
            "nothing to evaluate on",
            edited("with: { tau: 1.5 }", "with: { eval: { every: 5 } }"),
            &["no text is wired to `validation`", "p.yaml:9", "data.text"],
        ),
        (
            "nothing to ask",
            edited("in: { teacher: teacher, prompts: prompts.train }", "in: { teacher: teacher }"),
            &["neither `text` nor `prompts` is wired", "p.yaml:7"],
        ),
        (
            "nothing to ask, left out",
            edited("  prompts: { use: data.prompts,", "  prompts: { when: false, use: data.prompts,"),
            &["neither `text` nor `prompts` is wired", "p.yaml:7"],
        ),
        ("tab", edited("  corpus:", "\tcorpus:"), &["p.yaml:3"]),
        ("kind", edited("train.bitnet", "train.bitnett"), &["unknown kind `train.bitnett`", "p.yaml:9", "did you mean `train.bitnet`?"]),
        ("parameter", edited("tau:", "taau:"), &["unknown parameter `taau` of kind `train.bitnet`", "p.yaml:9", "did you mean `tau`?"]),
        (
            "earlier name",
            edited("tau: 1.5", "recipe: { max_skipped: 5 }"),
            &[
                "`max_skipped_share` took the place of the parameter `max_skipped` of kind `train.bitnet`",
                "p.yaml:9",
                "Share of the attempted",
            ],
        ),
        ("input", edited("in: { traces: projected", "in: { trace: projected"), &["no input `trace`", "did you mean `traces`?"]),
        ("stage", edited("traces: traces", "traces: tracs"), &["tracs", "p.yaml:8", "did you mean `traces`?"]),
        (
            "artifact",
            edited("traces: projected", "traces: tokenizer"),
            &["takes ProjectedTraces", "`tokenizer.tokenizer` is", "p.yaml:9", "projected.traces"],
        ),
        ("type", edited("tau: 1.5", "tau: warm"), &["`with.tau`", "p.yaml:9", "flow kinds train.bitnet"]),
        ("no layers", edited("tau: 1.5", "layers: 0"), &["`with.layers`", "must be above 0", "p.yaml:9"]),
        ("no window", edited("tau: 1.5", "seq: 0"), &["`with.seq`", "must be above 0", "p.yaml:9"]),
        (
            "no layers of a teacher",
            edited("tokenizer: tokenizer } }\n  traces", "tokenizer: tokenizer }, with: { layers: 0 } }\n  traces"),
            &["`with.layers`", "p.yaml:6"],
        ),
        ("range", edited("path: text.txt", "path: text.txt, holdout: 0.9"), &["holdout", "0.9", "p.yaml:3"]),
        (
            "cycle",
            edited("use: tokenizer.bpe,", "use: tokenizer.bpe, after: [student],"),
            &["cycle", "student", "tokenizer", "remove one of these inputs"],
        ),
        ("missing file", edited("text.txt", "no-such.txt"), &["no such file", "no-such.txt", "p.yaml:3", "relative paths start"]),
    ];
    for (what, pipeline, words) in &cases {
        refused(what, run(pipeline, TEXT.as_bytes(), PROMPTS.as_bytes(), "student"), 2, 0, words);
    }
}

#[test]
fn a_pipeline_file_that_is_not_there() {
    let output = Command::new(env!("CARGO_BIN_EXE_flow")).args(["run", "no-such.yaml"]).output().unwrap();
    refused("no file", (Ran::of(&output), 0), 2, 0, &["no-such.yaml"]);
}

#[test]
fn texts_that_cannot_be_read() {
    let text = |bytes: &[u8]| run(GOOD, bytes, PROMPTS.as_bytes(), "corpus");
    refused("empty", text(b""), 1, 0, &["text.txt", "the text is empty", "give a file that holds text"]);
    let utf16: Vec<u8> = TEXT.encode_utf16().flat_map(u16::to_le_bytes).collect();
    refused("utf-16", text(&utf16), 1, 0, &["text.txt", "UTF-16", "iconv"]);
    refused("gzip", text(&[0x1f, 0x8b, 8, 0, 0xff]), 1, 0, &["text.txt", "gzip", "gunzip"]);
    let (ran, entries) = run(GOOD, format!("\u{feff}{TEXT}").as_bytes(), format!("\u{feff}{PROMPTS}").as_bytes(), "corpus");
    assert_eq!((ran.expect(0).code, entries), (Some(0), 1), "a byte-order mark is skipped");
    let one_long_line = format!("# One\n{}\n", "word ".repeat(2000));
    let (ran, _) = run(GOOD, one_long_line.as_bytes(), PROMPTS.as_bytes(), "corpus");
    let ran = ran.expect(0);
    assert!(ran.err.contains("99.9 % of the text are held out where 5.0 % were asked for"), "{}", ran.err);
    refused("latin1", text(b"# One\ncaf\xe9 au lait\n"), 1, 0, &["text.txt", "not UTF-8 at byte 9 (line 2)", "iconv"]);
}

#[test]
fn prompts_with_a_bad_line() {
    let prompts = |more: &str| run(GOOD, TEXT.as_bytes(), format!("{PROMPTS}{more}\n").as_bytes(), "prompts");
    let advice = "each line is a JSON object like";
    let one = edited("prompts.jsonl }", "prompts.jsonl, eval: 1 }");
    let (ran, _) = run(&one, TEXT.as_bytes(), format!("\u{feff}{PROMPTS}").as_bytes(), "prompts");
    ran.expect(0);
    refused("not JSON", prompts("{\"id\": 2"), 1, 0, &["prompts.jsonl line 3", "not JSON", advice]);
    refused("no prompt", prompts("{\"id\": 2, \"kind\": \"prose\"}"), 1, 0, &["prompts.jsonl line 3", "prompt", advice]);
    refused("same id", prompts("{\"id\": 1, \"kind\": \"prose\", \"prompt\": \"c\"}"), 1, 0, &["prompts.jsonl line 3", "1"]);
}

#[test]
fn a_vocabulary_larger_than_the_text_allows() {
    // The text itself was read: one result.
    let large = edited("vocab_size: 270", "vocab_size: 4096");
    let ran = run(&large, TEXT.as_bytes(), PROMPTS.as_bytes(), "tokenizer");
    refused("vocabulary", ran, 1, 1, &["4096 tokens were asked for", "allows at most", "set `vocab_size: ", "or give more text"]);
}
