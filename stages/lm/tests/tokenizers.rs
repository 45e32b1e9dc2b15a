//! Tokenizers of the families, out of GGUF files and into them, on texts that they disagree about. The ids are those of the
//! `tokenizers` library with the published expressions and of llama.cpp (`tests/golden/tokenizers`).

use std::path::{Path, PathBuf};

use flow_lm::TokenId;
use flow_lm::format::gguf::{GgufFile, GgufWriter, Value, roles, tokenizer, tokenizer_keys};
use flow_lm::format::tokenizer_file::TokenizerFile;
use flow_lm::tokenizer::{Roles, Tokenizer};
use serde_json::{Value as Json, json};

/// Kinds with the shared byte-level vocabulary.
const BYTE_LEVEL: [&str; 8] = ["gpt-2", "smollm", "llama-bpe", "dbrx", "qwen2", "qwen35", "tekken", "default"];

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden").join(name)
}

fn read(name: &str) -> Json {
    serde_json::from_slice(&std::fs::read(golden(name)).expect(name)).expect(name)
}

struct Goldens {
    texts: Vec<String>,
    vocabulary: Json,
    kinds: Json,
}

impl Goldens {
    fn open() -> Self {
        let texts = serde_json::from_value(read("tokenizers/strings.json")).expect("texts");
        Self { texts, vocabulary: read("tokenizers/vocabulary.json"), kinds: read("tokenizers/kinds.json") }
    }

    fn texts(&self, field: &str) -> Vec<String> {
        serde_json::from_value(self.vocabulary[field].clone()).expect(field)
    }

    /// The published file of a kind.
    fn file(&self, kind: &str) -> Json {
        let about = &self.kinds[kind];
        if !about["tokenizer"].is_null() {
            return about["tokenizer"].clone();
        }
        if kind == "smollm2" {
            return read("models/smollm2-tokenizer.json");
        }
        let vocab: serde_json::Map<String, Json> =
            self.texts("tokens").into_iter().enumerate().map(|(id, token)| (token, id.into())).collect();
        json!({
            "version": "1.0", "added_tokens": self.vocabulary["added"], "normalizer": about["normalizer"],
            "pre_tokenizer": about["pre_tokenizer"], "decoder": {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true},
            "model": {"type": "BPE", "ignore_merges": about["ignore_merges"], "vocab": vocab, "merges": self.vocabulary["merges"]},
        })
    }

    /// Keys that llama.cpp had for a kind.
    fn keys(&self, pre: Option<&str>) -> GgufWriter<'static> {
        let tokens = self.texts("tokens");
        let mut types = vec![1; tokens.len()];
        for token in self.vocabulary["added"].as_array().into_iter().flatten() {
            types[token["id"].as_u64().expect("id") as usize] = if token["special"] == true { 3 } else { 4 };
        }
        let mut writer = GgufWriter::default();
        writer.key("tokenizer.ggml.model", Value::Text("gpt2".into()));
        pre.into_iter().for_each(|pre| writer.key("tokenizer.ggml.pre", Value::Text(pre.into())));
        writer.key("tokenizer.ggml.tokens", Value::Texts(tokens));
        writer.key("tokenizer.ggml.token_type", Value::I32s(types));
        writer.key("tokenizer.ggml.merges", Value::Texts(self.texts("merges")));
        writer
    }

    /// Fails with every text whose ids differ from the library's, or from llama.cpp's where it has its own.
    fn check(&self, kind: &str, what: &str, got: &Tokenizer, by_llama_cpp: bool) {
        let about = &self.kinds[kind];
        let mut wrong = Vec::new();
        for (i, text) in self.texts.iter().enumerate() {
            let theirs = &about["llama.cpp"][i.to_string()];
            let wanted = if by_llama_cpp && !theirs.is_null() { theirs } else { &about["ids"][i] };
            let ids = json!(got.encode(text));
            if ids != *wanted {
                wrong.push(format!("{text:?}: {ids}, expected {wanted}"));
            }
        }
        assert!(wrong.is_empty(), "{kind}, {what}: {} of {} differ\n{}", wrong.len(), self.texts.len(), wrong.join("\n"));
    }
}

fn written(writer: &GgufWriter<'_>) -> (tempfile::TempDir, GgufFile) {
    let dir = tempfile::tempdir().expect("dir");
    let path = dir.path().join("m.gguf");
    writer.write(&path).expect("writes");
    let file = GgufFile::read(&path).expect("reads");
    (dir, file)
}

fn out_of(file: &GgufFile) -> Tokenizer {
    let json = tokenizer::json(file).expect("a tokenizer").to_string();
    Tokenizer::from_bytes(json.as_bytes()).expect("loads").with_roles(&roles::of(file).expect("roles"))
}

/// The keys of a `tokenizer.json`, or why it has none.
fn exported(json: &Json, vocab: usize, template: Option<&str>) -> Result<GgufFile, String> {
    let dir = tempfile::tempdir().expect("dir");
    let path = dir.path().join("tokenizer.json");
    std::fs::write(&path, json.to_string()).expect("writes");
    let mut writer = GgufWriter::default();
    let tokenizer = TokenizerFile::read(&path).map_err(|e| e.to_string())?;
    tokenizer_keys::add(&mut writer, &tokenizer, vocab, template).map_err(|e| e.to_string())?;
    Ok(written(&writer).1)
}

#[test]
fn files_of_each_kind_are_read_as_llama_cpp_reads_them() {
    let goldens = Goldens::open();
    for kind in BYTE_LEVEL {
        let (_dir, file) = written(&goldens.keys(Some(kind)));
        let tokenizer = out_of(&file);
        goldens.check(kind, "GGUF", &tokenizer, true);
        for text in &goldens.texts {
            assert_eq!(tokenizer.decode_bytes(&tokenizer.encode(text)), text.as_bytes(), "{kind}");
        }
    }
    goldens.check("llama", "GGUF", &out_of(&GgufFile::read(&golden("gguf/sentencepiece.gguf")).expect("reads")), true);
}

#[test]
fn published_files_give_the_ids_of_the_library() {
    let goldens = Goldens::open();
    for kind in BYTE_LEVEL.into_iter().chain(["llama", "smollm2"]) {
        let tokenizer = Tokenizer::from_bytes(goldens.file(kind).to_string().as_bytes()).expect(kind);
        goldens.check(kind, "tokenizer.json", &tokenizer, false);
    }
}

#[test]
fn published_files_become_keys_that_mean_the_same() {
    let goldens = Goldens::open();
    for kind in BYTE_LEVEL.into_iter().chain(["llama", "smollm2"]) {
        let json = goldens.file(kind);
        let size = Tokenizer::from_bytes(json.to_string().as_bytes()).expect(kind).vocab_size();
        let file = exported(&json, size + 3, None).expect(kind);
        let name = match kind {
            "llama" => "default",
            "smollm2" => "smollm",
            kind => kind,
        };
        assert_eq!(file.text("tokenizer.ggml.pre").expect("text"), Some(name));
        let tokenizer = out_of(&file);
        assert_eq!(tokenizer.vocab_size(), size + 3, "{kind}");
        goldens.check(kind, "there and back", &tokenizer, true);
        // What was read can be written again.
        let again: Json = serde_json::from_str(&tokenizer.to_json().expect("JSON")).expect("JSON");
        let again = exported(&again, size + 3, None).expect(kind);
        let same = |key: &str| again.keys.get(key) == file.keys.get(key);
        assert!(same("tokenizer.ggml.pre") && same("tokenizer.ggml.model") && same("tokenizer.ggml.merges"), "{kind}");
        goldens.check(kind, "twice", &out_of(&again), true);
    }
}

#[test]
fn types_and_roles_are_written() {
    let goldens = Goldens::open();
    let mut json = goldens.file("llama-bpe");
    json["post_processor"] = json!({"type": "Sequence", "processors": [
        {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": false, "use_regex": true},
        {"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "<|im_start|>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
         "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
         "special_tokens": {"<|im_start|>": {"id": "<|im_start|>", "ids": [1], "tokens": ["<|im_start|>"]}}}]});
    let size = goldens.texts("tokens").len();
    let file = exported(&json, size, Some("{{ messages }}")).expect("writes");
    let whole = |name: &str| file.whole(&format!("tokenizer.ggml.{name}")).expect("a number");
    assert_eq!((whole("bos_token_id"), whole("eos_token_id"), whole("eot_token_id")), (Some(1), Some(2), Some(3)));
    assert_eq!(file.flag("tokenizer.ggml.add_bos_token").expect("a flag"), Some(true));
    assert_eq!(file.text("tokenizer.chat_template").expect("text"), Some("{{ messages }}"));
    let Some(Value::I32s(types)) = file.keys.get("tokenizer.ggml.token_type") else { panic!("types") };
    assert_eq!((types[0], types[3], types[4], types[size - 1]), (3, 3, 1, 4));

    let file = exported(&goldens.file("llama"), 1002, None).expect("writes");
    let source = GgufFile::read(&golden("gguf/sentencepiece.gguf")).expect("reads");
    for key in ["model", "pre", "bos_token_id", "eos_token_id", "unknown_token_id"].map(|k| format!("tokenizer.ggml.{k}")) {
        assert_eq!(file.keys.get(&key), source.keys.get(&key), "{key}");
    }
    assert_eq!(file.flag("tokenizer.ggml.add_space_prefix").expect("a flag"), Some(true));
    let types = |file: &GgufFile| match file.keys.get("tokenizer.ggml.token_type") {
        Some(Value::I32s(types)) => types.clone(),
        _ => panic!("types"),
    };
    assert_eq!(types(&file), [types(&source), vec![5, 5]].concat());
}

#[test]
fn names_that_llama_cpp_treats_alike_and_files_without_one_are_refused() {
    let goldens = Goldens::open();
    let alike = [("llama3", "llama-bpe"), ("lfm2", "llama-bpe"), ("starcoder", "smollm"), ("deepseek-r1-qwen", "qwen2"), ("mpt", "gpt-2")];
    for (name, kind) in alike {
        let (_dir, file) = written(&goldens.keys(Some(name)));
        goldens.check(kind, name, &out_of(&file), true);
    }
    let (_dir, file) = written(&goldens.keys(None));
    let error = tokenizer::json(&file).expect_err("no name says how texts are cut");
    assert!(error.to_string().contains("`tokenizer.ggml.pre` is missing") && error.help.is_some(), "{error}");
    let adds = |pre| roles::of(&written(&goldens.keys(Some(pre))).1).expect("roles").add_bos;
    assert!(adds("llama3") && adds("tekken") && !adds("dbrx") && !adds("qwen2") && !adds("default"));
    let (_dir, file) = written(&goldens.keys(Some("kimi-k2")));
    let error = tokenizer::json(&file).expect_err("unknown");
    let help = error.help.clone().unwrap_or_default();
    assert!(
        error.to_string().contains("`kimi-k2` is not built in") && help.contains("llama-bpe") && help.contains("tekken"),
        "{error} {help}"
    );
}

#[test]
fn what_llama_cpp_has_no_name_for_is_refused_with_the_reason() {
    let goldens = Goldens::open();
    let refused = |kind: &str, path: &str, value: Json, why: &str| {
        let mut json = goldens.file(kind);
        *json.pointer_mut(path).expect(path) = value;
        let error = exported(&json, 60_000, None).err().unwrap_or_else(|| panic!("{path} must be refused"));
        assert!(error.contains(why), "{error}");
    };
    refused("gpt-2", "/normalizer", json!({"type": "Lowercase"}), "normalizes texts by `Lowercase`");
    refused("gpt-2", "/pre_tokenizer/add_prefix_space", json!(true), "a space before a text");
    refused("gpt-2", "/model/ignore_merges", json!(true), "`ignore_merges` is true");
    refused("tekken", "/model/ignore_merges", json!(false), "`ignore_merges` is false");
    refused("gpt-2", "/added_tokens/4/rstrip", json!(true), "has `rstrip`");
    refused("qwen2", "/pre_tokenizer/pretokenizers/0/pattern/Regex", json!("\\w+"), "has no name for the pieces");
    refused("qwen2", "/pre_tokenizer/pretokenizers/0/behavior", json!("Removed"), "`Split`");
    refused("smollm", "/pre_tokenizer/pretokenizers/0", json!({"type": "Whitespace"}), "`Whitespace`");
    refused("llama", "/normalizer/normalizers/0/prepend", json!("x"), "normalizer is not SentencePiece's");
    let metaspace = json!({"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": false});
    refused("llama", "/pre_tokenizer", metaspace, "adds spaces where llama.cpp does not");
    let mut merges = goldens.file("llama")["model"]["merges"].as_array().cloned().expect("merges");
    merges.truncate(merges.len() - 1);
    refused("llama", "/model/merges", json!(merges), "SentencePiece would have");
}

/// The families' goldens have this tokenizer, in `tokenizer.json` and in the keys of their files.
#[test]
fn a_students_tokenizer_comes_back_from_its_file() {
    let json = read("models/student-tokenizer-4096.json");
    let tokenizer = Tokenizer::from_bytes(json.to_string().as_bytes()).expect("loads");
    let back = out_of(&exported(&json, 4096, None).expect("writes"));
    for text in Goldens::open().texts {
        assert_eq!(back.encode(&text), tokenizer.encode(&text), "{text:?}");
    }
    let first = Some(TokenId(0));
    assert_eq!(back.roles(), Roles { bos: first, eos: first, ends: vec![TokenId(0)], add_bos: false });
}
