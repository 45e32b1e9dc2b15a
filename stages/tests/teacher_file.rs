//! `teacher.file` on small files: directories and GGUF files become the same teachers, damaged ones clean errors.

mod harness;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use flow_lm::config::{Activation, ModelConfig, Weights};
use flow_lm::format::Checkpoint;
use flow_lm::format::gguf::{Entry, GgufFile, GgufWriter, TensorType, Value, model, pack, quant::dequantise};
use flow_lm::format::load_with_tokenizer;
use flow_lm::format::tensors::TensorSource;
use flow_lm::tokenizer::TokenId;
use flow_stages::kinds::teacher_file::FileStage;
use flow_stages::teacher::template::Template;
use harness::golden;
use proptest::prelude::*;
use proptest::test_runner::Config;
use safetensors::SafeTensors;
use serde_json::json;

fn teacher(path: &Path, params: serde_json::Value, out: &Path) -> Result<PathBuf, flow_engine::plugin::StageError> {
    let mut all = json!({"path": path});
    for (name, value) in params.as_object().into_iter().flatten() {
        all[name] = value.clone();
    }
    harness::run(&FileStage, all, &[], out).map(|o| o["teacher"].clone())
}

#[test]
fn every_type_is_read_as_the_reference_reads_it() {
    let bytes = std::fs::read(golden().join("gguf/dequantise.safetensors")).expect("golden file");
    let file = SafeTensors::deserialize(&bytes).expect("safetensors");
    // I2_S is checked against its golden packing (`model_files`): the reference does not know it.
    for ty in TensorType::ALL.into_iter().filter(|t| *t != TensorType::I2S) {
        let tensor = |what: &str| file.tensor(&format!("{}.{what}", ty.name())).expect("in the file").data().to_vec();
        let wanted: Vec<f32> = bytemuck::pod_collect_to_vec(&tensor("values"));
        let found = dequantise(ty, &tensor("blocks"));
        assert!(found.iter().map(|v| v.to_bits()).eq(wanted.iter().map(|v| v.to_bits())), "{}", ty.name());
    }
}

/// One id stands for two types, which the file's sizes tell apart.
#[test]
fn groups_of_q2_0_are_those_of_the_file() {
    let bytes = std::fs::read(golden().join("gguf/dequantise.safetensors")).expect("golden file");
    let golden = SafeTensors::deserialize(&bytes).expect("safetensors");
    for ty in [TensorType::Q2_0, TensorType::Q2_0G128] {
        let tensor = |what: &str| golden.tensor(&format!("{}.{what}", ty.name())).expect("in the file").data();
        let mut writer = GgufWriter::default();
        for name in ["a", "b"] {
            // Once would be padded to the same size in both.
            let data = Box::new(|| tensor("blocks").repeat(4));
            writer.tensor(Entry { name: name.into(), shape: vec![16, 128], ty, data });
        }
        let file = tempfile::NamedTempFile::new().expect("file");
        writer.write(file.path()).expect("writes");
        let read = GgufFile::read(file.path()).expect("reads");
        assert_eq!(read.place("b").expect("is there").1, ty);
        let wanted = bytemuck::pod_collect_to_vec::<u8, f32>(tensor("values"));
        assert_eq!(read.floats("b").expect("values"), wanted.repeat(4));
    }
}

#[test]
fn a_gguf_file_becomes_a_teacher() {
    let dir = tempfile::tempdir().expect("dir");
    let out = teacher(&golden().join("gguf/student-tq2_0.gguf"), json!({"seq": 64}), dir.path()).expect("imports");
    let (model, tokenizer) = load_with_tokenizer(&out).expect("loads");
    assert_eq!((model.config.seq, model.config.vocab), (64, tokenizer.vocab_size()));
    let text = "Fellow citizens, the state of {\"our\": union} — 1984";
    assert_eq!(tokenizer.decode_bytes(&tokenizer.encode(text)), text.as_bytes());
    let error = Template::of("chat", &out, &tokenizer).map(drop).expect_err("it has none");
    assert!(error.to_string().contains("without a chat template") && error.help.is_some(), "{error}");
    let error = teacher(&golden().join("gguf/student-tq2_0.gguf"), json!({"seq": 100_000}), &dir.path().join("b")).expect_err("too long");
    assert!(error.to_string().contains("beyond the model's context"), "{error}");
}

fn same(a: &Checkpoint, b: &Checkpoint) -> bool {
    a.config.tensors().iter().all(|t| a.tensors.tensor(&t.name) == b.tensors.tensor(&t.name))
}

#[test]
fn directories_become_teachers() {
    for name in ["tiny-llama", "tiny-bitnet"] {
        let dir = tempfile::tempdir().expect("dir");
        let from = golden().join("models").join(name);
        let out = teacher(&from, json!({"seq": 32}), dir.path()).expect(name);
        let before = flow_lm::format::load(&from).expect("the source");
        let (model, tokenizer) = load_with_tokenizer(&out).expect(name);
        assert_eq!(model.config.seq, 32, "{name}");
        assert!(same(&model, &before) && !tokenizer.context("").is_empty(), "{name}");
    }
}

/// A directory cut into two shards, with a chat template in its settings.
#[test]
fn shards_and_chat_templates_come_along() {
    let dir = tempfile::tempdir().expect("dir");
    let (from, source) = (golden().join("models/tiny-llama"), dir.path().join("source"));
    std::fs::create_dir(&source).expect("dir");
    for name in ["config.json", "tokenizer.json", "generation_config.json"] {
        std::fs::copy(from.join(name), source.join(name)).expect("copy");
    }
    let bytes = std::fs::read(from.join("model.safetensors")).expect("weights");
    let tensors = SafeTensors::deserialize(&bytes).expect("safetensors");
    let mut map = BTreeMap::new();
    for (n, shard) in ["a.safetensors", "b.safetensors"].into_iter().enumerate() {
        let part: Vec<_> = tensors.tensors().into_iter().enumerate().filter(|(i, _)| i % 2 == n).map(|(_, t)| t).collect();
        map.extend(part.iter().map(|(name, _)| (name.clone(), shard)));
        safetensors::serialize_to_file(part, None, &source.join(shard)).expect("write");
    }
    std::fs::write(source.join("model.safetensors.index.json"), json!({"weight_map": map}).to_string()).expect("write");
    let settings = json!({"chat_template": [{"name": "tools", "template": "x"}, {"name": "default", "template": "<{{ messages[0].content }}>"}],
        "add_bos_token": false});
    std::fs::write(source.join("tokenizer_config.json"), settings.to_string()).expect("write");
    let out = teacher(&source, json!({}), &dir.path().join("out")).expect("imports");
    let (model, tokenizer) = load_with_tokenizer(&out).expect("loads");
    assert!(same(&model, &flow_lm::format::load(&from).expect("the source")));
    let template = Template::of("chat", &out, &tokenizer).expect("comes along");
    assert_eq!(template.render("hi").expect("renders"), "<hi>");
    assert_ne!(tokenizer.context("hello")[0], tokenizer.bos());
}

/// The golden student as bitnet.cpp stores it.
fn as_i2_s(architecture: &str, path: &Path) {
    let source = GgufFile::read(&golden().join("gguf/student-tq2_0.gguf")).expect("reads");
    let mut writer = GgufWriter::default();
    for (name, value) in &source.keys {
        let name = name.strip_prefix("bitnet.").map_or(name.clone(), |rest| format!("{architecture}.{rest}"));
        writer.key(name.clone(), if name == "general.architecture" { Value::Text(architecture.into()) } else { value.clone() });
    }
    for info in &source.tensors {
        let (_, ty, bytes) = source.raw(&info.name).expect("a tensor");
        let (ty, bytes) = if ty == TensorType::Tq2_0 {
            let (codes, scales) = pack::unpack_tq2_0(bytes);
            let mut bytes = pack::i2_s_x86(&codes);
            bytes.extend(scales[0].to_le_bytes());
            bytes.resize(bytes.len() + pack::I2_S_TAIL - 4, 0);
            (TensorType::I2S, bytes)
        } else {
            (ty, bytes.to_vec())
        };
        writer.tensor(Entry { name: info.name.clone(), shape: info.shape.clone(), ty, data: Box::new(move || bytes.clone()) });
    }
    writer.write(path).expect("writes");
}

#[test]
fn i2_s_holds_the_same_student() {
    let read = |path: &Path| model::load(GgufFile::read(path).expect("reads")).expect("loads");
    let (config, wanted) = read(&golden().join("gguf/student-tq2_0.gguf"));
    let dir = tempfile::tempdir().expect("dir");
    for (architecture, activation) in [("bitnet", Activation::Silu), ("bitnet-b1.58", Activation::Relu2)] {
        let path = dir.path().join(format!("{architecture}.gguf"));
        as_i2_s(architecture, &path);
        let (got, tensors) = read(&path);
        assert_eq!(got, ModelConfig { activation, ..config.clone() });
        for t in config.tensors() {
            assert_eq!(tensors.packed(&t.name), wanted.packed(&t.name), "{}", t.name);
            assert_eq!(tensors.tensor(&t.name), wanted.tensor(&t.name), "{}", t.name);
        }
        // A code that is none makes the file's linears full precision instead of something wrong.
        let mut bytes = std::fs::read(&path).expect("reads");
        let file = GgufFile::read(&path).expect("reads");
        let (_, _, place) = file.place("blk.0.attn_q.weight").expect("a tensor");
        bytes[place.start] |= 0b11;
        std::fs::write(&path, bytes).expect("writes");
        assert_eq!(read(&path).0.weights, Weights::Float);
    }
}

fn written(change: impl Fn(&str, Value) -> Option<Value>, ty: TensorType) -> Vec<u8> {
    let source = GgufFile::read(&golden().join("gguf/student-tq2_0.gguf")).expect("reads");
    let mut writer = GgufWriter::default();
    for (name, value) in &source.keys {
        if let Some(value) = change(name, value.clone()) {
            writer.key(name.clone(), value);
        }
    }
    // The blocks' tensors are missing, two stand for them.
    for name in ["token_embd.weight", "a", "b"] {
        let data = Box::new(move || vec![0; ty.bytes(512) as usize]);
        writer.tensor(Entry { name: name.into(), shape: vec![2, 256], ty, data });
    }
    let file = tempfile::NamedTempFile::new().expect("file");
    writer.write(file.path()).expect("writes");
    std::fs::read(file.path()).expect("reads")
}

/// The error of a file with these bytes.
fn refusal(bytes: &[u8]) -> String {
    let dir = tempfile::tempdir().expect("dir");
    let path = dir.path().join("m.gguf");
    std::fs::write(&path, bytes).expect("writes");
    let error = teacher(&path, json!({}), &dir.path().join("out")).expect_err("refused");
    let help = error.help.clone().unwrap_or_default();
    format!("{error} {help}")
}

#[test]
fn what_is_not_supported_is_named_with_what_is() {
    let with =
        |key: &'static str, value: Value| written(move |name, old| Some(if name == key { value.clone() } else { old }), TensorType::F16);
    let error = refusal(&with("general.architecture", Value::Text("mamba".into())));
    assert!(error.contains("`mamba`") && error.contains("llama, smollm3, qwen2, qwen3, bitnet"), "{error}");
    let error = refusal(&with("bitnet.rope.scaling.type", Value::Text("yarn".into())));
    assert!(error.contains("bitnet.rope.scaling.type") && error.contains("`yarn`"), "{error}");
    let error = refusal(&with("bitnet.block_count", Value::U32(1 << 30)));
    assert!(error.contains("bitnet.block_count"), "{error}");
    let error = refusal(&with("bitnet.embedding_length", Value::Text("wide".into())));
    assert!(error.contains("expected a whole number"), "{error}");
    let error = refusal(&written(|_, v| Some(v), TensorType::F16));
    assert!(error.contains("token_embd.weight") && error.contains("shape"), "{error}");
    let mut bytes = written(|_, v| Some(v), TensorType::Q4_1);
    let at = bytes.windows(17).position(|w| w == b"token_embd.weight").expect("its name") + 17 + 4 + 16;
    bytes[at..at + 4].copy_from_slice(&16u32.to_le_bytes());
    let error = refusal(&bytes);
    assert!(error.contains("IQ2_XXS") && error.contains("Q5_K, Q6_K, IQ4_NL"), "{error}");
    let error = refusal(b"PK\x03\x04 not a model");
    assert!(error.contains("does not begin with `GGUF`"), "{error}");
}

#[test]
fn tokenizers_that_are_not_built_in_are_named() {
    let path = golden().join("gguf/student-tq2_0.gguf");
    let source = GgufFile::read(&path).expect("reads");
    for (key, value, wanted) in
        [("tokenizer.ggml.pre", "falcon", "`falcon`"), ("tokenizer.ggml.model", "rwkv", "gpt2 (byte-level BPE), llama (SentencePiece BPE)")]
    {
        let mut bytes = std::fs::read(&path).expect("reads");
        let Some(Value::Text(old)) = source.keys.get(key) else { panic!("{key}") };
        let name = bytes.windows(key.len()).position(|w| w == key.as_bytes()).expect("its name") + key.len() + 4;
        let mut text = (value.len() as u64).to_le_bytes().to_vec();
        text.extend(value.as_bytes());
        bytes.splice(name..name + 8 + old.len(), text);
        let error = refusal(&bytes);
        assert!(error.contains(wanted), "{error}");
    }
}

proptest! {
    #![proptest_config(Config { failure_persistence: None, ..Config::with_cases(std::env::var("PROPTEST_CASES").ok().and_then(|n| n.parse().ok()).unwrap_or(64)) })]
    /// Flipped and missing bytes of a header are an error or another model, never a panic and never much memory.
    #[test]
    fn damaged_headers_are_errors(flips in prop::collection::vec((0usize..100_000, any::<u8>()), 0..6), cut in prop::option::of(0usize..120_000)) {
        let mut bytes = std::fs::read(golden().join("gguf/student-tq2_0.gguf")).expect("reads");
        // Half of the flips land in the keys that say sizes, the rest anywhere before the tensor data.
        for (i, (at, xor)) in flips.iter().enumerate() {
            let at = if i % 2 == 0 { at % 1_200 } else { at % bytes.len() };
            bytes[at] ^= xor;
        }
        bytes.truncate(cut.unwrap_or(bytes.len()));
        let dir = tempfile::tempdir().expect("dir");
        let path = dir.path().join("m.gguf");
        std::fs::write(&path, bytes).expect("writes");
        let _ = teacher(&path, json!({}), &dir.path().join("out"));
    }
}

#[test]
fn a_sentencepiece_vocabulary_encodes_as_sentencepiece() {
    let file = GgufFile::read(&golden().join("gguf/sentencepiece.gguf")).expect("reads");
    let json = flow_lm::format::gguf::tokenizer::json(&file).expect("converts");
    let roles = flow_lm::format::gguf::roles::of(&file).expect("roles");
    let tokenizer = flow_lm::tokenizer::Tokenizer::from_bytes(json.to_string().as_bytes()).expect("loads").with_roles(&roles);
    let cases = std::fs::read(golden().join("gguf/sentencepiece.json")).expect("golden file");
    let cases: Vec<serde_json::Value> = serde_json::from_slice(&cases).expect("JSON");
    for case in cases {
        assert_eq!(json!(tokenizer.encode(case["text"].as_str().expect("text"))), case["ids"], "{case}");
    }
    assert_eq!((tokenizer.bos(), tokenizer.eos(), tokenizer.context("the")[0]), (TokenId(1), TokenId(2), TokenId(1)));
}
