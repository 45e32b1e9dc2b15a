//! What is done with a file that somebody else wrote, one function a kind of file: it is read, and what was read is used as a run
//! would use it. An answer or a refusal with words, never a panic; how much time and memory is for the caller to watch.
//!
//! Coverage-guided targets (`fuzz_targets`) and the property tests of `tests/fuzz.rs` run the same functions.

use std::path::{Path, PathBuf};
use std::sync::{Arc, LazyLock};

use flow_engine::document::Document;
use flow_engine::pipeline::{Overrides, Pipeline};
use flow_engine::plan::Plan;
use flow_engine::plugin::{Task, TaskEvent};
use flow_engine::worker::result::TaskResult;
use flow_lm::chat::ChatTemplate;
use flow_lm::format::stored::Stored;
use flow_lm::format::tensors::TensorSource;
use flow_lm::format::{finite, load_with_tokenizer};
use flow_lm::tokenizer::Tokenizer;
use flow_stages::teacher::hosted::rows_of;
use flow_stages::teacher::http::preset::Scoring;
use flow_stages::teacher::http::shape::{Call, Draw, Expect, Manner, call, read};
use flow_stages::teacher::http::spec::Spec;
use serde_json::json;

/// How far an input came.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Came {
    /// Refused.
    Refused,
    /// Read, and used to the end.
    Through,
}

const TEXTS: [&str; 3] = ["The cat sat on the mat.\n", "  naïve — 你好 \u{1f600}\t{\"a\": 1}", ""];

/// Refusals are told to a person, with a place and a reason.
fn refused(error: &dyn std::fmt::Display) -> Came {
    let said = error.to_string();
    assert!(!said.is_empty() && said.len() < 20_000, "a refusal of {} bytes", said.len());
    Came::Refused
}

/// A folder of this thread for files that must have a path: what is mapped must not be written to by another.
fn folder() -> PathBuf {
    thread_local! {
        static FOLDER: tempfile::TempDir = tempfile::tempdir().expect("a folder");
    }
    FOLDER.with(|folder| folder.path().to_owned())
}

/// A model and its tokenizer, as every stage that takes one uses them: values of all tensors, tokens of a text, a prompt.
fn model(path: &Path) -> Came {
    let (model, tokenizer) = match load_with_tokenizer(path) {
        Ok(both) => both,
        Err(e) => return refused(&e),
    };
    if let Err(e) = finite::check(path, &model) {
        return refused(&e);
    }
    for spec in model.config.tensors() {
        assert_eq!(model.tensors.tensor(&spec.name).len(), spec.len(), "{}", spec.name);
        if let Some(packed) = model.tensors.packed(&spec.name) {
            assert_eq!(packed.values().len(), spec.len(), "{}", spec.name);
        }
    }
    assert!(Stored::of(path).is_ok_and(|s| s.bytes() > 0));
    text(&tokenizer);
    if let Ok(Some(template)) = ChatTemplate::of(path, &tokenizer) {
        let _ = template.render(&[json!({"role": "user", "content": TEXTS[1]})], None);
    }
    Came::Through
}

fn text(tokenizer: &Tokenizer) {
    for text in TEXTS {
        let (tokens, found) = tokenizer.encode_faithfully(text);
        let _ = tokenizer.decode_lossy(&tokens);
        if found.is_exact() {
            let back: Vec<u8> = tokens.iter().flat_map(|t| tokenizer.token_bytes(*t).to_vec()).collect();
            assert_eq!(back, text.as_bytes());
        }
    }
}

/// A GGUF file.
pub fn gguf(data: &[u8]) -> Came {
    let path = folder().join("model.gguf");
    std::fs::write(&path, data).expect("writes");
    model(&path)
}

/// A model directory: `config.json`, a zero, `model.safetensors`. Its tokenizer is well.
pub fn safetensors(data: &[u8]) -> Came {
    let dir = folder().join("model");
    if !dir.exists() {
        std::fs::create_dir_all(&dir).expect("a folder");
        std::fs::write(dir.join("tokenizer.json"), super::seeds::tokenizer_json()).expect("writes");
    }
    let (config, weights) = data.split_at(data.iter().position(|b| *b == 0).unwrap_or(data.len()));
    let weights = weights.get(1..).unwrap_or_default();
    std::fs::write(dir.join("config.json"), config).expect("writes");
    std::fs::write(dir.join("model.safetensors"), weights).expect("writes");
    model(&dir)
}

/// A `tokenizer.json`.
pub fn tokenizer(data: &[u8]) -> Came {
    match Tokenizer::from_bytes(data) {
        Err(why) => refused(&why),
        Ok(tokenizer) => {
            text(&tokenizer);
            Came::Through
        }
    }
}

const PROVIDERS: [&str; 4] = ["openai", "anthropic", "gemini", "vllm"];

/// An answer of a hosted teacher: a byte that says whose, and to what question, then its body.
pub fn answers(data: &[u8]) -> Came {
    static CALLS: LazyLock<Vec<(Spec, Call)>> = LazyLock::new(|| {
        let of = |provider: &&str| {
            let spec: Spec =
                serde_json::from_value(json!({"teacher": "http", "provider": provider, "base_url": "http://h/v1", "model": "m",
                "endpoint": "chat", "system": null, "body": {}, "headers": {}, "ask_top_k": 8, "memory_bytes": null}))
                .expect("a spec");
            let draw = Draw { max_tokens: 64, temperature: 1.0, top_p: 1.0, seed: None, stop: Vec::new(), logprobs: true };
            let asked = call(&spec, "Say it", 0, &draw);
            (spec, asked)
        };
        PROVIDERS.iter().map(of).collect()
    });
    let Some((which, body)) = data.split_first() else { return Came::Refused };
    let (spec, asked) = &CALLS[usize::from(which & 3)];
    let text: Arc<str> = " We people end".into();
    let expect = match which >> 2 & 7 {
        0 | 1 => asked.expect.clone(),
        2 => Expect::Text,
        3 => Expect::Probe,
        4 => Expect::Scored(Scoring::PromptLogprobs, text),
        5 => Expect::Scored(Scoring::Echo, text),
        6 => Expect::Scored(Scoring::Generate, text),
        _ => Expect::Pieces(text),
    };
    let reply = match read(spec, &Manner::default(), &Call { expect, ..asked.clone() }, body) {
        Ok(reply) => reply,
        Err(e) => return refused(&format!("{e:?}")),
    };
    let answer = match reply.answer {
        Ok(answer) => answer,
        Err(refusal) => return refused(&refusal.why),
    };
    for row in rows_of(&answer, 20, true) {
        assert!(row.other_logprob.is_finite() && row.topk_logprobs.iter().all(|l| l.is_finite() && *l <= 0.0), "{row:?}");
    }
    Came::Through
}

/// A pipeline.
pub fn yaml(data: &[u8]) -> Came {
    let text = String::from_utf8_lossy(data);
    let _ = Document::parse("p.yaml", &text);
    let dir = folder();
    // What the seeds read.
    if !dir.join("data").exists() {
        std::fs::create_dir(dir.join("data")).expect("a folder");
        for file in ["data/corpus.txt", "data/prompts.jsonl", "SmolLM2-135M-Instruct.Q4_1.gguf"] {
            std::fs::write(dir.join(file), "{}\n").expect("writes");
        }
    }
    let linked =
        Pipeline::parse("p.yaml", &text, &dir.join("p.yaml"), &Overrides::default()).and_then(|p| Plan::link(p, &flow_stages::registry()));
    let Err(problems) = linked else { return Came::Through };
    assert!(!problems.list.is_empty(), "refused without a word");
    let handler = miette::GraphicalReportHandler::new_themed(miette::GraphicalTheme::unicode_nocolor()).with_width(100);
    for problem in &problems.list {
        let mut out = String::new();
        handler.render_report(&mut out, problem).expect("renders");
        assert!(out.len() < 20_000, "a message of {} bytes", out.len());
    }
    Came::Refused
}

/// What a task reads and leaves behind: its description, its events, its result.
pub fn task_results(data: &[u8]) -> Came {
    let Some((which, body)) = data.split_first() else { return Came::Refused };
    let read = match which % 3 {
        0 => serde_json::from_slice::<TaskResult>(body).map(|r| drop(serde_json::to_string(&r))),
        1 => serde_json::from_slice::<TaskEvent>(body).map(|e| drop(serde_json::to_string(&e))),
        _ => serde_json::from_slice::<Task>(body).map(|t| drop(serde_json::to_string(&t))),
    };
    if read.is_ok() { Came::Through } else { Came::Refused }
}
