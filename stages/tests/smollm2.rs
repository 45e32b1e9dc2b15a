//! The real model, SmolLM2-135M-Instruct (Q4_1), against exact float32 logprobs and against llama.cpp.
//!
//! `FLOW_TEST_TEACHER` names its file: `FLOW_TEST_TEACHER=$(tests/teacher_server.sh path) cargo test …`.

mod common;
mod harness;

use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use common::Golden;
use flow_lm::config::Bits;
use flow_lm::format::load_with_tokenizer;
use flow_lm::infer::{KvCache, Session, Uses, Window, score_batch};
use flow_lm::tokenizer::{TokenId, Tokenizer};
use flow_shaders::device::open;
use flow_stages::kinds::teacher_file::FileStage;
use flow_stages::teacher::continuations::answers;
use flow_stages::teacher::template::Template;
use harness::golden;
use serde_json::{Value, json};

/// The teacher's directory, made once; nothing where there is no model file.
fn teacher() -> Option<PathBuf> {
    static MADE: OnceLock<Option<(tempfile::TempDir, PathBuf)>> = OnceLock::new();
    let made = MADE.get_or_init(|| {
        let path = std::env::var_os("FLOW_TEST_TEACHER")?;
        let dir = tempfile::tempdir().expect("dir");
        let out = harness::run(&FileStage, json!({"path": PathBuf::from(path), "seq": 128}), &[], dir.path()).expect("imports");
        Some((dir, out["teacher"].clone()))
    });
    if made.is_none() {
        common::skipped("FLOW_TEST_TEACHER names no model file; `export FLOW_TEST_TEACHER=$(tests/teacher_server.sh path)`");
    }
    made.as_ref().map(|m| m.1.clone())
}

fn read(name: &str) -> Value {
    serde_json::from_slice(&std::fs::read(golden().join("smollm2").join(name)).expect("golden file")).expect("JSON")
}

fn ids(v: &Value) -> Vec<TokenId> {
    v.as_array().expect("ids").iter().map(|id| TokenId(id.as_u64().expect("an id") as u32)).collect()
}

#[test]
fn the_files_tokenizer_is_the_models() {
    let Some(dir) = teacher() else { return };
    let (_, tokenizer) = load_with_tokenizer(&dir).expect("loads");
    for case in read("tokenize.json").as_array().expect("cases") {
        assert_eq!(tokenizer.encode(case["text"].as_str().expect("text")), ids(&case["ids"]), "{case}");
    }
    let published = Tokenizer::load(&golden().join("models/smollm2-tokenizer.json")).expect("loads");
    assert_eq!(tokenizer.vocab_size(), published.vocab_size());
    let corpus = std::fs::read_to_string(harness::corpus()).expect("corpus");
    let part: String = corpus.chars().take(200_000).collect();
    assert!(tokenizer.encode(&part) == published.encode(&part));
    assert_eq!(
        (tokenizer.bos(), tokenizer.eos(), tokenizer.is_end(TokenId(0)), tokenizer.is_end(TokenId(1))),
        (TokenId(1), TokenId(2), true, false)
    );
}

/// Exact float32 logprobs of the same dequantised weights.
#[test]
fn forced_logprobs_are_those_of_float32() {
    let Some(dir) = teacher() else { return };
    let (model, _) = load_with_tokenizer(&dir).expect("loads");
    let forced = Golden::file("smollm2/teacher_forced.safetensors", "models/smollm2-gguf-metadata.json");
    let text: Vec<TokenId> = forced.i32("ids").into_iter().map(|id| TokenId(id as u32)).collect();
    let (n, k) = (text.len(), 20);
    let uses = Uses { score: Some((1, n)), top_k: k, ..Uses::default() };
    let device = open("cpu", 0).expect("the CPU is always there");
    let mut lm = Session::new(&device, model.config.clone(), &model.tensors, uses).expect("fits");
    let top = lm.top_k(&text, &vec![1; n]).expect("scores");
    let (wanted_ids, wanted) = (forced.i32("top_ids"), forced.f32("top_logprobs"));
    let worst = top.logprobs.iter().zip(&wanted).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    assert!(worst < 2e-3, "logprobs of the Top-20 differ by {worst}");
    for (r, (got, want)) in top.ids.chunks(k).zip(wanted_ids.chunks(k)).enumerate() {
        for (i, (g, w)) in got.iter().zip(want).enumerate() {
            let tied = (0..k).any(|j| want[j] == g.signed() && (wanted[r * k + i] - wanted[r * k + j]).abs() < 2e-3);
            assert!(g.signed() == *w || tied || i + 1 == k, "row {r}, place {i}: {g} instead of {w}");
        }
    }
    let window = Window { first: text[0], targets: &text[1..] };
    let b = score_batch(&[window], 1, n);
    let nll = lm.nll(&b.ids, &b.mask, &b.labels).expect("scores");
    let worst = nll.iter().zip(forced.f32("next_logprob")).map(|(a, b)| (a + b).abs()).fold(0.0, f32::max);
    assert!(worst < 2e-3, "logprobs of the text differ by {worst}");
    println!("largest difference: {worst:.2e} nats");
}

/// What llama.cpp wrote greedily after a prompt.
struct Written {
    prompt: String,
    context: Vec<TokenId>,
    tokens: Vec<TokenId>,
}

fn written(dir: &Path, tokenizer: &Tokenizer) -> Vec<Written> {
    let chat = Template::of("chat", dir, tokenizer).expect("has one");
    let tokens = |list: &Value| list.as_array().expect("tokens").iter().map(|p| TokenId(p["id"].as_u64().expect("an id") as u32)).collect();
    let mut all = Vec::new();
    for case in read("greedy_completion.json").as_array().expect("cases") {
        let prompt = case["prompt"].as_str().expect("prompt").to_owned();
        all.push(Written { context: tokenizer.context(&prompt), tokens: tokens(&case["probs"]), prompt });
    }
    for case in read("chat_completions.json").as_array().expect("cases") {
        let prompt = case["prompt"].as_str().expect("prompt").to_owned();
        let response = &case["response"];
        let context = tokenizer.context(&chat.render(&prompt).expect("renders"));
        assert_eq!(Some(context.len() as u64), response["usage"]["prompt_tokens"].as_u64(), "{prompt}");
        all.push(Written { context, tokens: tokens(&response["choices"][0]["logprobs"]["content"]), prompt: format!("chat: {prompt}") });
    }
    all
}

/// llama.cpp quantises activations in blocks: its logprobs lie 0.06 to 0.09 nats from those of float32, and a token that
/// it prefers may be up to this much behind our best.
const NEAR: f32 = 0.25;

/// Along llama.cpp's greedy text our best token is its token, or a near-tie; and what we write ourselves is its text up to
/// the first of these.
#[test]
fn greedy_answers_are_llama_cpps_up_to_near_ties() {
    let Some(dir) = teacher() else { return };
    let (model, tokenizer) = load_with_tokenizer(&dir).expect("loads");
    let all = written(&dir, &tokenizer);
    let device = open("cpu", 0).expect("the CPU is always there");
    let prompts: Vec<Vec<TokenId>> = all.iter().map(|w| w.context.clone()).collect();
    let answers =
        answers(&device, &model, &tokenizer, (prompts, Vec::new()), (Bits::Eight, 32, KvCache::default()), |_| Ok(())).expect("generates");
    let (seq, k) = (model.config.seq, 20);
    let uses = Uses { score: Some((1, seq)), top_k: k, ..Uses::default() };
    let mut lm = Session::new(&device, model.config.clone(), &model.tensors, uses).expect("fits");
    let (mut alike, mut total) = (0, 0);
    for (w, answer) in all.iter().zip(&answers) {
        let whole = [w.context.as_slice(), &w.tokens].concat();
        let b = score_batch(&[Window { first: whole[0], targets: &whole[1..] }], 1, seq);
        let top = lm.top_k(&b.ids, &b.mask).expect("scores");
        let mut got = answer.tokens.clone();
        got.extend(answer.stopped.then_some(tokenizer.eos()));
        let mut same = true;
        for (i, token) in w.tokens.iter().enumerate() {
            let row = (w.context.len() - 1 + i) * k;
            let place = top.ids[row..row + k].iter().position(|id| id == token);
            let behind = place.map_or(f32::INFINITY, |p| top.logprobs[row] - top.logprobs[row + p]);
            assert!(behind < NEAR, "{}: token {i}, llama.cpp's {token} is {behind} nats behind our best", w.prompt);
            same &= behind == 0.0;
            assert!(!same || got.get(i) == Some(token), "{}: token {i} is {:?}, expected {token}", w.prompt, got.get(i));
            alike += u32::from(behind == 0.0);
            total += 1;
        }
    }
    println!("{alike} of {total} tokens are our best too");
    assert!(f64::from(alike) >= 0.95 * f64::from(total), "{alike} of {total}");
}
