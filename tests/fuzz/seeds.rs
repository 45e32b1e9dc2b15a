//! Valid inputs of every target, each small: what mutations begin with.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::LazyLock;

use flow_lm::config::{Activations, Group, ModelConfig, Weights};
use flow_lm::format::gguf::export::{About, How, Storage, export};
use flow_lm::format::gguf::{Entry, GgufFile, GgufWriter, TensorType};
use flow_lm::format::hf_export::{self, FloatType};
use flow_lm::format::tokenizer_file::TokenizerFile;
use flow_lm::format::{self, load};
use flow_lm::rng::Rng;
use serde_json::json;

const TEXT: &str = "the cat sat on the mat and the rat ran to the cat; the hat, the bat: that is that. Ten cats, ten mats.";

/// A byte-level tokenizer of few merges.
pub fn tokenizer_json() -> &'static str {
    static JSON: LazyLock<String> =
        LazyLock::new(|| flow_lm::tokenizer::train(TEXT, 272, &["<|endoftext|>".to_owned()], 1).expect("trains"));
    &JSON
}

fn shape(dim: usize, weights: Weights) -> ModelConfig {
    let plain =
        ModelConfig { vocab: 272, dim, layers: 1, heads: 2, kv_heads: 1, head_dim: dim / 2, mlp: 64, seq: 16, ..ModelConfig::plain() };
    ModelConfig { weights, activations: Activations::Float, ..plain }
}

/// A model of such a shape in a folder, as `flow` writes it.
fn write(config: &ModelConfig, dir: &Path) {
    let mut rng = Rng::new(7, "seeds");
    let values = |n: usize, rng: &mut Rng| (0..n).map(|_| rng.uniform() - 0.5).collect::<Vec<f32>>();
    let tensors: BTreeMap<String, Vec<f32>> = config.tensors().into_iter().map(|t| (t.name.clone(), values(t.len(), &mut rng))).collect();
    std::fs::write(dir.join("tokenizer.given"), tokenizer_json()).expect("writes");
    let all = tensors.iter().map(|(n, v)| (n.as_str(), v.as_slice()));
    format::save(dir, config, all, Some(&dir.join("tokenizer.given")), &json!({})).expect("saves");
}

/// A GGUF file of every ternary and float storage, and of every quantised type that is read.
pub fn gguf() -> Vec<Vec<u8>> {
    let dir = tempfile::tempdir().expect("a folder");
    let out = dir.path().join("out.gguf");
    let mut all = Vec::new();
    let exported = |config: ModelConfig, linear: Storage| {
        write(&config, dir.path());
        let model = load(dir.path()).expect("loads");
        let tokenizer = TokenizerFile::given_or_own(None, dir.path(), &model).expect("a tokenizer");
        let how = How { about: About::default(), template: Some("{{ messages[0].content }}"), linear, embedding: Storage::F16, head: None };
        export(&model, &tokenizer, &how, &out).expect("exports");
        std::fs::read(&out).expect("reads")
    };
    let ternary = |dim, group| ModelConfig { group, ..shape(dim, Weights::Absmean) };
    all.push(exported(ternary(64, Group::Of(64)), Storage::Q2_0));
    let whole = exported(ModelConfig { mlp: 256, ..ternary(256, Group::Tensor) }, Storage::Tq2_0);
    all.push(whole);
    let float = exported(ModelConfig { mlp: 256, ..shape(256, Weights::Float) }, Storage::F16);
    let source = dir.path().join("float.gguf");
    std::fs::write(&source, float).expect("writes");
    for ty in TensorType::ALL.into_iter().filter(|ty| ty.block() > 1) {
        all.push(retyped(&source, ty, &out));
    }
    all
}

/// The same file with the matrices of its MLP in another type, their bytes drawn: pairs of bits that are no 11, so that all are
/// codes of ternary types, and no exponent says infinity.
fn retyped(source: &Path, ty: TensorType, out: &Path) -> Vec<u8> {
    let file = GgufFile::read(source).expect("reads");
    let mut writer = GgufWriter::default();
    file.keys.iter().for_each(|(name, value)| writer.key(name.clone(), value.clone()));
    let mut rng = Rng::new(8, ty.name());
    for info in &file.tensors {
        let (_, own, bytes) = file.raw(&info.name).expect("a tensor");
        let changes = info.shape.len() == 2 && info.name.contains("ffn") && info.shape.iter().all(|n| n.is_multiple_of(ty.block()));
        let values = info.shape.iter().product::<usize>() as u64;
        let pairs = |x: u8| x & !((x & 0x55) << 1);
        let drawn: Vec<u8> = (0..ty.bytes(values)).map(|_| pairs(rng.bits() as u8)).collect();
        let (ty, bytes) = if changes { (ty, drawn) } else { (own, bytes.to_vec()) };
        writer.tensor(Entry { name: info.name.clone(), shape: info.shape.clone(), ty, data: Box::new(move || bytes.clone()) });
    }
    writer.write(out).expect("writes");
    std::fs::read(out).expect("reads")
}

/// Model directories as the target takes them: `flow`'s own and Hugging Face's.
pub fn safetensors() -> Vec<Vec<u8>> {
    let joined = |config: &[u8], weights: &[u8]| [config, b"\0", weights].concat();
    let read = |dir: &Path| {
        let file = |name: &str| std::fs::read(dir.join(name)).expect("reads");
        joined(&file("config.json"), &file("model.safetensors"))
    };
    let mut all = Vec::new();
    for config in [shape(32, Weights::Float), ModelConfig { group: Group::Of(64), ..shape(64, Weights::Absmean) }] {
        let (dir, of_others) = (tempfile::tempdir().expect("a folder"), tempfile::tempdir().expect("a folder"));
        write(&config, dir.path());
        let model = load(dir.path()).expect("loads");
        let tokenizer = TokenizerFile::given_or_own(None, dir.path(), &model).expect("a tokenizer");
        hf_export::export(&model, &tokenizer, None, FloatType::Bfloat16, of_others.path()).expect("exports");
        all.extend([read(dir.path()), read(of_others.path())]);
    }
    all
}

/// Tokenizers of each kind.
pub fn tokenizer() -> Vec<Vec<u8>> {
    let bpe = tokenizer_json().as_bytes().to_vec();
    let unigram = json!({"version": "1.0", "added_tokens": [{"id": 0, "content": "<unk>", "special": true, "single_word": false, "lstrip": false, "rstrip": false, "normalized": false}],
        "normalizer": {"type": "NFKC"}, "pre_tokenizer": {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": true},
        "decoder": {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": true},
        "model": {"type": "Unigram", "unk_id": 0, "byte_fallback": false, "vocab": [["<unk>", 0.0], ["▁the", -1.0], ["▁", -2.0], ["c", -3.0], ["a", -3.0], ["t", -3.0]]}});
    let words = json!({"version": "1.0", "added_tokens": [], "normalizer": {"type": "Lowercase"}, "pre_tokenizer": {"type": "Whitespace"},
        "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": true},
        "model": {"type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##", "max_input_chars_per_word": 100,
                  "vocab": {"[UNK]": 0, "the": 1, "c": 2, "##at": 3}}});
    let pieces = json!({"version": "1.0", "added_tokens": [], "normalizer": {"type": "Sequence", "normalizers": [
        {"type": "Prepend", "prepend": "▁"}, {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}]}, "pre_tokenizer": null,
        "decoder": {"type": "Sequence", "decoders": [{"type": "Replace", "pattern": {"String": "▁"}, "content": " "}, {"type": "ByteFallback"}, {"type": "Fuse"}]},
        "model": {"type": "BPE", "unk_token": "<unk>", "byte_fallback": true, "fuse_unk": true, "ignore_merges": false,
                  "vocab": {"<unk>": 0, "<0x41>": 1, "▁": 2, "t": 3, "h": 4, "th": 5, "▁th": 6}, "merges": ["t h", "▁ th"]}});
    [unigram, words, pieces].iter().map(|v| v.to_string().into_bytes()).chain([bpe]).collect()
}

/// Answers of each kind of server, to each kind of question.
pub fn answers() -> Vec<Vec<u8>> {
    let token = |t: &str| json!({"token": t, "bytes": t.as_bytes(), "logprob": -0.25, "top_logprobs": [{"token": t, "bytes": t.as_bytes(), "logprob": -0.25}, {"token": "x", "bytes": null, "logprob": -2.5}]});
    let chat = json!({"id": "c", "choices": [{"index": 0, "message": {"role": "assistant", "content": "We end", "reasoning_content": "so\n"}, "finish_reason": "stop",
        "logprobs": {"content": [token("<think>"), token("so\n"), token("</think>"), token("We"), token(" end")]}}], "usage": {"prompt_tokens": 3, "completion_tokens": 5}});
    let ids = json!({"id": "c", "choices": [{"index": 0, "message": {"role": "assistant", "content": "We \u{e9}t"}, "finish_reason": "length",
        "logprobs": {"content": [token("We"), {"token": "token_id:7", "logprob": -1.0, "top_logprobs": []}, token("t")]}}]});
    let stream = "data: {\"id\":\"c\",\"choices\":[{\"index\":0,\"delta\":{\"role\":\"assistant\",\"content\":\"We\"},\"finish_reason\":null,\"logprobs\":{\"content\":[{\"token\":\"We\",\"bytes\":[87,101],\"logprob\":-0.5,\"top_logprobs\":[]}]}}]}\n\ndata: {\"id\":\"c\",\"choices\":[{\"index\":0,\"delta\":{},\"finish_reason\":\"stop\"}]}\n\ndata: [DONE]\n\n";
    let anthropic = json!({"id": "m", "type": "message", "role": "assistant", "content": [{"type": "thinking", "thinking": "so"}, {"type": "text", "text": "We end"}],
        "stop_reason": "end_turn", "usage": {"input_tokens": 3, "output_tokens": 2}});
    let gemini = json!({"candidates": [{"content": {"parts": [{"text": "We end"}], "role": "model"}, "finishReason": "STOP", "avgLogprobs": -0.1,
        "logprobsResult": {"topCandidates": [{"candidates": [{"token": "We", "tokenId": 1, "logProbability": -0.2}]}, {"candidates": [{"token": " end", "tokenId": 2, "logProbability": -0.2}]}],
        "chosenCandidates": [{"token": "We", "tokenId": 1, "logProbability": -0.2}, {"token": " end", "tokenId": 2, "logProbability": -0.2}]}}], "usageMetadata": {"promptTokenCount": 3, "candidatesTokenCount": 2}});
    let scored = json!({"id": "c", "choices": [{"index": 0, "text": "x", "finish_reason": "length", "prompt_logprobs": [null,
        {"5": {"logprob": -0.5, "rank": 1, "decoded_token": " We"}, "6": {"logprob": -1.5, "rank": 2, "decoded_token": " I"}},
        {"7": {"logprob": -0.5, "rank": 1, "decoded_token": " people"}}, {"8": {"logprob": -0.5, "rank": 1, "decoded_token": " end"}}]}]});
    let echo = json!({"id": "c", "choices": [{"index": 0, "text": " We people end", "finish_reason": "length", "logprobs": {"tokens": [" We", " people", " end"],
        "token_logprobs": [null, -0.5, -0.5], "top_logprobs": [null, {" people": -0.5, " men": -1.5}, {" end": -0.5}], "text_offset": [0, 3, 10]}}]});
    let generate = json!({"text": "x", "meta_info": {"prompt_tokens": 3, "input_token_logprobs": [[null, 5, " We"], [-0.5, 7, " people"], [-0.5, 8, " end"]],
        "input_top_logprobs": [null, [[-0.5, 7, " people"], [-1.5, 9, " men"]], [[-0.5, 8, " end"]]]}});
    let pieces =
        json!({"tokens": [{"id": 5, "piece": " We"}, {"id": 7, "piece": [32, 112, 101, 111, 112, 108, 101]}, {"id": 8, "piece": " end"}]});
    let refusal = json!({"error": {"message": "overloaded", "type": "server_error", "code": 529}});
    let of = |which: u8, body: &str| [&[which], body.as_bytes()].concat();
    vec![
        of(0, &chat.to_string()),
        of(3, &ids.to_string()),
        of(3, stream),
        of(8 + 1, &anthropic.to_string()),
        of(2, &gemini.to_string()),
        of(8, &chat.to_string()),
        of(12, &chat.to_string()),
        of(16 + 3, &scored.to_string()),
        of(20 + 3, &echo.to_string()),
        of(24 + 3, &generate.to_string()),
        of(28 + 3, &pieces.to_string()),
        of(0, &refusal.to_string()),
    ]
}

/// Pipelines: shipped ones, and one that uses everything.
pub fn yaml() -> Vec<Vec<u8>> {
    let shipped = [include_str!("../../pipelines/poc.yaml"), include_str!("../../pipelines/ternarise.yaml")];
    let all = "flow: 1\nvars: { tau: 1.3, n: [512, 640], list: &l [a, b] }\nstages:\n  corpus: { use: data.text, with: { path: data/corpus.txt, holdout: 0.1 } }\n  words: { use: tokenizer.bpe, matrix: { k: \"${n}\" }, in: { text: corpus.train }, after: [corpus], resources: { cpu: 1, memory: 2GiB }, retries: 2, timeout: 5m, with: { vocab_size: \"${k}\" } }\ntargets: [words]\npublish: { out: corpus.train }\n";
    let odd = "flow: 1\nbase: &b { use: data.text, with: { path: data/corpus.txt } }\nstages:\n  a: { <<: *b }\n  \"b c\": !tag\n    use: >-\n      data.text\n    with: { path: 'e\\x00' }\n# ünï\n";
    shipped.iter().chain([&all, &odd]).map(|t| t.as_bytes().to_vec()).collect()
}

/// Results, events and a description.
pub fn task_results() -> Vec<Vec<u8>> {
    let all: [(u8, &str); 6] = [
        (0, r#"{"ok": false, "message": "it broke", "help": "mend it", "interrupted": false}"#),
        (1, r#"{"event":"progress","done":3,"total":9,"unit":"rows"}"#),
        (1, r#"{"event":"metric","name":"loss","value":1.5e300}"#),
        (1, r#"{"event":"log","message":"\ud83d\ude00"}"#),
        (
            2,
            r#"{"flow":1,"stage":"s","kind":"a.b","key":"00","params":{"x":[1,2]},"inputs":[{"port":"t","path":"/p","ty":"Text","digest":"00","from":"a.b"}],"outputs":{"out":"/o"},"dir":"/d","state":"/s","answers":"/a","withheld":[],"device":"cpu","threads":2,"provenance":[],"run":"r"}"#,
        ),
        (0, r#"{"ok": true}"#),
    ];
    all.iter().map(|(which, body)| [&[*which], body.as_bytes()].concat()).collect()
}

/// Bytes by which parsers of a target decide something.
pub fn pieces(target: &str) -> &'static [&'static [u8]] {
    match target {
        "gguf" => &[
            b"GGUF",
            b"llama.block_count",
            b"general.alignment",
            b"\x09\x00\x00\x00",
            b"\x08\x00\x00\x00",
            b"\xff\xff\xff\xff\xff\xff\xff\xff",
            b"\x00\x00\x00\x80",
            b"\x00\x00\xc0\x7f",
            b"tokenizer.ggml.merges",
        ],
        "safetensors" => &[
            b"4294967296",
            b"-1",
            b"1e400",
            b"\"BF16\"",
            b"\"data_offsets\":[0,",
            b"\xff\xff\xff\xff",
            b"[0]",
            b"\"rope_scaling\":{\"type\":\"yarn\"},",
        ],
        "tokenizer" => &[
            b"\"byte_fallback\":true",
            b"null",
            b"-1",
            b"4294967295",
            b"\"type\":\"Sequence\"",
            b"\"\"",
            b"\xf0\x9f\x98\x80",
            b"\"merges\":[]",
            b"<0xFF>",
        ],
        "answers" => &[
            b"null",
            b"NaN",
            b"{}",
            b"[]",
            b"-1e999",
            b"\\ud83d",
            b"token_id:7",
            b"\xef\xbf\xbd",
            b"\"error\":1,",
            b"data: ",
            b"\n\n",
            b"<|im_end|>",
            b"</think>",
        ],
        "yaml" => &[
            b"&a ",
            b"*a",
            b"<<: *a",
            b"${",
            b"${tau}",
            b"}",
            b"{",
            b"[",
            b"]",
            b": ",
            b"- ",
            b"\t",
            b"\n\n",
            b"\xef\xbb\xbf",
            b"\r\n",
            b"!!binary ",
            b"|\n  ",
            b"? ",
            b"1e999",
            b"\"",
            b"'",
            b"\0",
            b"\xc3\xa9\xe2\x82\xac\xf0\x9d\x84\x9e",
        ],
        _ => &[b"null", b"-1", b"1e999", b"{}", b"[[[[", b"\\ud83d", b"\"\"", b"18446744073709551616"],
    }
}
