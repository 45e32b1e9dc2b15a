//! `flow generate`: what is printed, where it ends, and what is refused.

use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

use serde_json::Value;

#[path = "support/mod.rs"]
mod support;
use support::Ran;

fn golden(name: &str) -> String {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name).display().to_string()
}

fn generate(args: &[&str], input: &str) -> Ran {
    let mut command = Command::new(env!("CARGO_BIN_EXE_flow"));
    command.arg("generate").args(args).env("FLOW_DEVICE", "cpu");
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    // A command that refuses its arguments reads nothing.
    let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
    Ran::of(&child.wait_with_output().unwrap())
}

#[test]
fn a_pipe_gets_text_and_nothing_else() {
    let model = golden("gguf/student-tq2_0.gguf");
    let said = |more: &[&str], input: &str| {
        let ran = generate(&[&[model.as_str()], more].concat(), input).expect(0);
        assert_eq!(ran.err, "", "{more:?}");
        ran.out
    };
    let greedy = said(&["-n", "12", "-p", "We have seen"], "");
    assert!(!greedy.is_empty());
    assert_eq!(said(&["-n", "12"], "We have seen"), greedy, "standard input");
    assert_eq!(said(&["-n", "12", "--file", "-"], "We have seen"), greedy, "standard input by name");
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("prompt.txt").display().to_string();
    std::fs::write(&file, "We have seen").unwrap();
    assert_eq!(said(&["-n", "12", "--file", &file], ""), greedy, "a file");
    assert!(said(&["-p", "We have seen", "-n", "3"], "").len() < greedy.len());
    assert_eq!(said(&["-p", "We have seen", "-n", "0"], ""), "");
    // A text that ends it is not printed, nor what comes after it.
    let middle: String = greedy.chars().skip(4).take(5).collect();
    let at = greedy.find(&middle).unwrap();
    assert_eq!(said(&["-p", "We have seen", "-n", "12", "--stop", &middle], ""), greedy[..at]);
    let drawn = |seed: &str| {
        said(&["-p", "We have seen", "-n", "12", "--temperature", "50", "--top-k", "40", "--top-p", "0.95", "--seed", seed], "")
    };
    assert_eq!(drawn("7"), drawn("7"));
    assert_ne!(drawn("7"), drawn("8"));
    assert_ne!(said(&["-p", "We have seen", "-n", "12", "--activations", "4"], ""), "");
}

#[test]
fn answers_follow_schemas_and_grammars() {
    let model = golden("models/tiny-llama");
    let dir = tempfile::tempdir().unwrap();
    let file = |name: &str, text: &str| {
        let path = dir.path().join(name);
        std::fs::write(&path, text).unwrap();
        path.display().to_string()
    };
    let schema = file(
        "schema.json",
        r#"{"type":"object","properties":{"n":{"type":"integer","maximum":99,"minimum":0}},"required":["n"],"additionalProperties":false}"#,
    );
    let ran = generate(&[&model, "-p", "{", "--json-schema", &schema, "--temperature", "1"], "").expect(0);
    let value: Value = serde_json::from_str(&ran.out).unwrap_or_else(|e| panic!("{}: {e}", ran.out));
    assert!(value["n"].as_u64().is_some_and(|n| n < 100), "{value}");
    let grammar = file("yes.gbnf", "root ::= (\"yes\" | \"no\") \".\"\n");
    let ran = generate(&[&model, "-p", "Well?", "--grammar", &grammar], "").expect(0);
    assert!(["yes.", "no."].contains(&ran.out.as_str()), "{}", ran.out);
    let wrong = file("wrong.gbnf", "root ::= \"a\"\n  | b\n");
    assert!(generate(&[&model, "-p", "x", "--grammar", &wrong], "").expect(2).err.contains("line 2, column 5: rule `b` is not defined"));
    let wrong = file("wrong.json", "{\"type\": \"text\"}");
    assert!(generate(&[&model, "-p", "x", "--json-schema", &wrong], "").expect(2).err.contains("schema"));
    let wrong = file("no.json", "{");
    assert!(generate(&[&model, "-p", "x", "--json-schema", &wrong], "").expect(2).err.contains("no.json: not JSON"));
}

#[test]
fn what_cannot_be_is_named() {
    let model = golden("gguf/student-tq2_0.gguf");
    let refused = |args: &[&str]| generate(args, "").expect(2).err;
    assert!(refused(&["no such model", "-p", "x"]).contains("PIPELINE.yaml:STAGE"));
    assert!(refused(&[&model, "-p", "x", "--temperature=-1"]).contains("temperature: -1 is not 0 or above"));
    assert!(refused(&[&model, "-p", "x", "--top-p", "0"]).contains("top_p"));
    assert!(refused(&[&model, "-p", "some words of a prompt", "--context", "3"]).contains("--context"));
    assert!(refused(&[&model, "--file", "no such file"]).contains("no such file"));
    let empty = tempfile::tempdir().unwrap();
    assert!(refused(&[&empty.path().display().to_string(), "-p", "x"]).contains("config.json"));
}

#[test]
fn the_result_of_a_stage_is_a_model() {
    let dir = tempfile::tempdir().unwrap();
    let tiny = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/tiny/corpus.txt");
    std::fs::copy(tiny, dir.path().join("corpus.txt")).unwrap();
    std::fs::create_dir(dir.path().join(".git")).unwrap();
    let pipeline = "flow: 1\nstages:\n  corpus: { use: data.text, with: { path: corpus.txt, holdout: 0.1 } }\n  tokenizer: { use: tokenizer.bpe, in: { text: corpus.train }, with: { vocab_size: 300 } }\n  teacher:\n    use: teacher.train\n    in: { text: corpus.train, tokenizer: tokenizer }\n    with: { preset: poc-teacher, layers: 1, seq: 32, shape: { dim: 32, heads: 1, kv_heads: 1, mlp: 64 }, tokens: 2000 }\n";
    std::fs::write(dir.path().join("p.yaml"), pipeline).unwrap();
    let flow = |args: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_flow"));
        Ran::of(&command.args(args).current_dir(dir.path()).env("FLOW_DEVICE", "cpu").env_remove("FLOW_CACHE_DIR").output().unwrap())
    };
    let say = |model: &str| flow(&["generate", model, "-p", "We", "-n", "4"]);
    let early = say("p.yaml:teacher").expect(2);
    assert!(early.err.contains("not made yet") && early.err.contains("flow run p.yaml teacher"), "{}", early.err);
    flow(&["run", "p.yaml"]).expect(0);
    assert!(!say("p.yaml:teacher").expect(0).out.is_empty());
    assert!(say("p.yaml:nobody").expect(2).err.contains("nobody"));
    // A tokenizer is no model.
    say("p.yaml:tokenizer").expect(2);
}
