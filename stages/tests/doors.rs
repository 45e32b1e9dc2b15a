//! Model files are what their metadata says, or they are refused: by the file that the user named, the key or tensor, and what
//! to do. One row of a table is one way in which a file can be something else.

mod harness;

use std::path::{Path, PathBuf};

use flow_lm::format::gguf::{Entry, GgufFile, GgufWriter, TensorType, Value};
use flow_lm::format::tensors::TensorSource;
use flow_lm::format::{finite, load};
use flow_stages::kinds::kd_collect::CollectStage;
use flow_stages::kinds::teacher_file::FileStage;
use serde_json::{Value as Json, json};

fn student() -> PathBuf {
    harness::golden().join("gguf/student-tq2_0.gguf")
}

/// `teacher.file` over a path: the error with its help.
fn refusal(path: &Path) -> String {
    let out = tempfile::tempdir().expect("dir");
    let error = harness::run(&FileStage, json!({"path": path}), &[], out.path()).expect_err("is refused");
    let said = format!("{error} {}", error.help.clone().unwrap_or_default());
    assert!(said.contains(path.to_str().expect("UTF-8")), "the user's own path is not named: {said}");
    said
}

/// The golden student with other keys (`None` leaves one out); keys that it does not have are added.
fn with_keys(changes: &[(&str, Option<Value>)], path: &Path) {
    let source = GgufFile::read(&student()).expect("reads");
    let mut writer = GgufWriter::default();
    for (name, value) in &source.keys {
        match changes.iter().find(|(changed, _)| changed == name) {
            None => writer.key(name.clone(), value.clone()),
            Some((_, Some(value))) => writer.key(name.clone(), value.clone()),
            Some((_, None)) => {}
        }
    }
    for (name, value) in changes.iter().filter(|(name, _)| !source.keys.contains_key(*name)) {
        value.iter().for_each(|v| writer.key(*name, v.clone()));
    }
    tensors(&source, &mut writer, |_| true);
    writer.write(path).expect("writes");
}

fn tensors(source: &GgufFile, writer: &mut GgufWriter<'_>, takes: impl Fn(usize) -> bool) {
    for (_, info) in source.tensors.iter().enumerate().filter(|(i, _)| takes(*i)) {
        let (_, ty, bytes) = source.raw(&info.name).expect("a tensor");
        let bytes = bytes.to_vec();
        writer.tensor(Entry { name: info.name.clone(), shape: info.shape.clone(), ty, data: Box::new(move || bytes.clone()) });
    }
}

/// Whether two files hold the same model.
fn same_model(a: &Path, b: &Path) {
    let (a, b) = (load(a).expect("loads"), load(b).expect("loads"));
    assert_eq!(a.config, b.config);
    for t in a.config.tensors() {
        assert!(a.tensors.tensor(&t.name) == b.tensors.tensor(&t.name), "{}", t.name);
        assert!(a.tensors.packed(&t.name) == b.tensors.packed(&t.name), "{}", t.name);
    }
}

#[test]
fn numbers_of_any_width_are_read() {
    let dir = tempfile::tempdir().expect("dir");
    let path = dir.path().join("m.gguf");
    with_keys(
        &[
            ("general.alignment", Some(Value::U64(32))),
            ("bitnet.block_count", Some(Value::U64(2))),
            ("bitnet.rope.freq_base", Some(Value::F64(10_000.0))),
        ],
        &path,
    );
    same_model(&path, &student());
    with_keys(&[("bitnet.rope.freq_base", Some(Value::U32(10_000)))], &path);
    same_model(&path, &student());
    for wrong in [Value::U64(48), Value::U64(0), Value::U64(1 << 40), Value::Text("32".into())] {
        with_keys(&[("general.alignment", Some(wrong.clone()))], &path);
        let error = refusal(&path);
        assert!(error.contains("`general.alignment`") && error.contains("a power of two"), "{wrong:?}: {error}");
    }
}

/// What changes the result and is not built in, and what looks like it and changes nothing.
#[test]
fn keys_that_change_results_are_refused_by_name() {
    let dir = tempfile::tempdir().expect("dir");
    let path = dir.path().join("m.gguf");
    let refused = [
        ("bitnet.logit_scale", Value::F32(0.5)),
        ("bitnet.attention.scale", Value::F32(0.5)),
        ("bitnet.attention.causal", Value::Bool(false)),
        ("bitnet.final_logit_softcapping", Value::F32(30.0)),
        ("bitnet.attention.sliding_window_pattern", Value::U32(6)),
        ("bitnet.rope.scaling.attn_factor", Value::F32(1.2)),
        ("bitnet.rope.scaling.type", Value::Text("yarn".into())),
    ];
    for (key, value) in refused {
        with_keys(&[(key, Some(value.clone()))], &path);
        let error = refusal(&path);
        assert!(error.contains(key), "{value:?}: {error}");
    }
    let head_dim = load(&student()).expect("loads").config.head_dim as f32;
    let neutral = [
        ("bitnet.logit_scale", Value::F32(1.0)),
        ("bitnet.attention.scale", Value::F32(1.0 / head_dim.sqrt())),
        ("bitnet.attention.causal", Value::Bool(true)),
        ("bitnet.rope.scaling.attn_factor", Value::U32(1)),
    ];
    with_keys(&neutral.map(|(key, value)| (key, Some(value))), &path);
    same_model(&path, &student());
    // Every spelling of the same scaling.
    for (key, more) in
        [("bitnet.rope.scale_linear", None), ("bitnet.rope.scaling.factor", None), ("bitnet.rope.scaling.factor", Some("linear"))]
    {
        let kind = more.map(|kind: &str| Value::Text(kind.into()));
        let mut changes = vec![(key, Some(Value::F32(4.0))), ("bitnet.rope.scaling.type", kind)];
        if key != "bitnet.rope.scaling.factor" {
            changes.push(("bitnet.rope.scaling.factor", None));
        }
        with_keys(&changes, &path);
        let scaling = load(&path).expect("loads").config.rope_scaling;
        assert_eq!(scaling, Some(flow_lm::config::RopeScaling::Linear { factor: 4.0 }), "{key} {more:?}");
    }
}

#[test]
fn a_file_without_a_pre_tokenizer_is_refused() {
    let dir = tempfile::tempdir().expect("dir");
    let path = dir.path().join("m.gguf");
    with_keys(&[("tokenizer.ggml.pre", None)], &path);
    let error = refusal(&path);
    assert!(error.contains("`tokenizer.ggml.pre` is missing") && error.contains("tokenizer.json"), "{error}");
}

#[test]
fn big_endian_files_are_named_as_that() {
    let dir = tempfile::tempdir().expect("dir");
    let path = dir.path().join("m.gguf");
    let mut bytes = std::fs::read(student()).expect("reads");
    bytes[4..8].reverse();
    std::fs::write(&path, bytes).expect("writes");
    let error = refusal(&path);
    assert!(error.contains("big-endian") && error.contains("gguf_convert_endian"), "{error}");
}

/// Cuts the golden student into `count` parts, as `llama-gguf-split` does.
fn split(dir: &Path, count: usize) -> Vec<PathBuf> {
    let source = GgufFile::read(&student()).expect("reads");
    let part = |i: usize| {
        let mut writer = GgufWriter::default();
        if i == 0 {
            source.keys.iter().for_each(|(name, value)| writer.key(name.clone(), value.clone()));
        }
        writer.key("split.no", Value::U32(i as u32));
        writer.key("split.count", Value::U32(count as u32));
        writer.key("split.tensors.count", Value::I32(source.tensors.len() as i32));
        tensors(&source, &mut writer, |t| t % count == i);
        let path = dir.join(format!("m-{:05}-of-{count:05}.gguf", i + 1));
        writer.write(&path).expect("writes");
        path
    };
    (0..count).map(part).collect()
}

#[test]
fn parts_of_a_split_file_are_read_together_or_named() {
    let dir = tempfile::tempdir().expect("dir");
    let parts = split(dir.path(), 3);
    same_model(&parts[0], &student());
    // As a teacher, whose directory has them all.
    let (out, whole) = (tempfile::tempdir().expect("dir"), tempfile::tempdir().expect("dir"));
    let teacher = |path: &Path, to: &Path| harness::run(&FileStage, json!({"path": path}), &[], to).expect("runs")["teacher"].clone();
    same_model(&teacher(&parts[0], out.path()), &teacher(&student(), whole.path()));

    let error = refusal(&parts[1]);
    assert!(error.contains("part 2 of 3") && error.contains("m-00001-of-00003.gguf"), "{error}");
    let hidden = dir.path().join("hidden");
    std::fs::rename(&parts[2], &hidden).expect("moves");
    let error = refusal(&parts[0]);
    assert!(error.contains("m-00003-of-00003.gguf is not there"), "{error}");
    // Another part under its name.
    std::fs::copy(&parts[1], &parts[2]).expect("copies");
    let error = load(&parts[0]).expect_err("is refused").to_string();
    assert!(error.contains("m-00003-of-00003.gguf") && error.contains("split.no"), "{error}");
    std::fs::rename(&hidden, &parts[2]).expect("moves");
    let other = dir.path().join("model.gguf");
    std::fs::copy(&parts[0], &other).expect("copies");
    let error = refusal(&other);
    assert!(error.contains("3 parts") && error.contains("-00001-of-00003.gguf"), "{error}");
}

/// Changes 8 bytes after a tensor's name: its number of dimensions (4 bytes), then its sizes, type and offset.
fn table(name: &str, change: impl Fn(&mut [u8])) -> Vec<u8> {
    let mut bytes = std::fs::read(student()).expect("reads");
    let at = bytes.windows(name.len()).position(|w| w == name.as_bytes()).expect("its name") + name.len();
    change(&mut bytes[at..]);
    bytes
}

#[test]
fn a_table_of_tensors_that_does_not_fit_its_data_is_refused() {
    let dir = tempfile::tempdir().expect("dir");
    let path = dir.path().join("m.gguf");
    let name = "blk.0.attn_q.weight";
    let number = |bytes: &[u8]| u64::from_le_bytes(bytes.try_into().expect("eight bytes"));
    let cases: [(Vec<u8>, &[&str]); 3] = [
        // More rows than there is room for.
        (
            table(name, |t| {
                let rows = 2 * number(&t[12..20]);
                t[12..20].copy_from_slice(&rows.to_le_bytes())
            }),
            &[name, "bytes", "lie between"],
        ),
        // F32 in the room of TQ2_0.
        (table(name, |t| t[20..24].copy_from_slice(&0u32.to_le_bytes())), &[name, "F32", "lie between"]),
        (
            table(name, |t| {
                let at = number(&t[24..32]) + 4;
                t[24..32].copy_from_slice(&at.to_le_bytes())
            }),
            &[name, "alignment"],
        ),
    ];
    for (bytes, wanted) in cases {
        std::fs::write(&path, bytes).expect("writes");
        let error = refusal(&path);
        assert!(wanted.iter().all(|w| error.contains(w)), "{wanted:?}: {error}");
    }
    let mut writer = GgufWriter::default();
    let source = GgufFile::read(&student()).expect("reads");
    source.keys.iter().for_each(|(name, value)| writer.key(name.clone(), value.clone()));
    writer.key("general.name", Value::Text("again".into()));
    tensors(&source, &mut writer, |_| true);
    writer.write(&path).expect("writes");
    assert!(refusal(&path).contains("key `general.name` is there twice"));
}

/// A golden Hugging Face directory with another configuration.
fn directory(name: &str, to: &Path, change: impl Fn(&mut Json)) {
    let from = harness::golden().join("models").join(name);
    for entry in std::fs::read_dir(&from).expect("reads").flatten() {
        std::fs::copy(entry.path(), to.join(entry.file_name())).expect("copies");
    }
    let at = to.join("config.json");
    let mut config = serde_json::from_slice(&std::fs::read(&at).expect("reads")).expect("JSON");
    change(&mut config);
    std::fs::write(&at, config.to_string()).expect("writes");
}

#[test]
fn configurations_that_say_something_else_are_refused_by_field() {
    let refused: [(&str, Json, &str); 22] = [
        ("quantization_config", json!({"quant_method": "bitsandbytes", "load_in_4bit": true}), "bitsandbytes"),
        ("quantization_config", json!({"load_in_8bit": true}), "bitsandbytes"),
        ("quantization_config", json!({"quant_method": "gptq", "bits": 4}), "GPTQ"),
        ("quantization_config", json!({"quant_method": "awq", "bits": 4}), "AWQ"),
        ("quantization_config", json!({"quant_method": "fp8"}), "FP8"),
        ("quantization_config", json!({"quant_method": "compressed-tensors"}), "compressed-tensors"),
        ("num_hidden_layers", json!(1u64 << 31), "num_hidden_layers"),
        ("num_hidden_layers", json!(1u64 << 32), "num_hidden_layers"),
        ("hidden_size", json!(1u64 << 32), "hidden_size"),
        ("logit_scale", json!(0.25), "logit_scale"),
        ("logits_scaling", json!(8.0), "logits_scaling"),
        ("attention_multiplier", json!(0.5), "attention_multiplier"),
        ("query_pre_attn_scalar", json!(256), "query_pre_attn_scalar"),
        ("is_causal", json!(false), "is_causal"),
        ("final_logit_softcapping", json!(30.0), "final_logit_softcapping"),
        ("use_qk_norm", json!(true), "use_qk_norm"),
        ("rope_scaling", json!({"type": "yarn", "factor": 4.0}), "rope_scaling.type"),
        ("rope_scaling", json!({"factor": 4.0}), "rope_scaling"),
        ("rope_scaling", json!({"rope_type": "linear", "factor": 4.0, "attn_factor": 1.3}), "rope_scaling.attn_factor"),
        ("rope_parameters", json!({"type": "dynamic", "factor": 4.0}), "rope_parameters.type"),
        ("rope_parameters", json!({"full_attention": {"rope_type": "default", "rope_theta": 1e6}}), "rope_parameters.full_attention"),
        ("num_local_experts", json!(8), "num_local_experts"),
    ];
    for (field, value, wanted) in refused {
        let dir = tempfile::tempdir().expect("dir");
        directory("tiny-llama", dir.path(), |c| c[field] = value.clone());
        let error = refusal(dir.path());
        assert!(error.contains(wanted), "{field} {value}: {error}");
    }
    let neutral: [(&str, Json); 8] = [
        ("logit_scale", json!(1.0)),
        ("is_causal", json!(true)),
        ("final_logit_softcapping", Json::Null),
        ("rope_scaling", json!({})),
        ("rope_parameters", json!({"rope_type": "default", "rope_theta": 10000.0})),
        ("rope_parameters", json!({"rope_theta": 10000.0})),
        ("attention_multiplier", json!(1.0 / 8f64.sqrt())),
        ("use_qk_norm", json!(false)),
    ];
    for (field, value) in neutral {
        let dir = tempfile::tempdir().expect("dir");
        directory("tiny-llama", dir.path(), |c| c[field] = value.clone());
        let got = load(dir.path()).unwrap_or_else(|e| panic!("{field} {value}: {e}")).config;
        assert_eq!(got, load(&harness::golden().join("models/tiny-llama")).expect("loads").config, "{field} {value}");
    }
    // The type under its older name, in the newer place.
    let dir = tempfile::tempdir().expect("dir");
    directory("tiny-llama", dir.path(), |c| c["rope_parameters"] = json!({"type": "linear", "factor": 4.0, "rope_theta": 10000.0}));
    assert_eq!(load(dir.path()).expect("loads").config.rope_scaling, Some(flow_lm::config::RopeScaling::Linear { factor: 4.0 }));
}

/// The tensor's name in the file, where in it, and what was found; whatever the layout.
#[test]
fn weights_that_are_not_finite_are_found_when_a_teacher_is_opened() {
    let dir = tempfile::tempdir().expect("dir");
    directory("tiny-llama", dir.path(), |_| {});
    let at = dir.path().join("model.safetensors");
    let mut bytes = std::fs::read(&at).expect("reads");
    let header = u64::from_le_bytes(bytes[..8].try_into().expect("a length")) as usize;
    let said: Json = serde_json::from_slice(&bytes[8..8 + header]).expect("a header");
    let begin = |name: &str| 8 + header + said[name]["data_offsets"][0].as_u64().expect("an offset") as usize;
    let cols = said["model.layers.1.mlp.up_proj.weight"]["shape"][1].as_u64().expect("columns") as usize;
    let element = begin("model.layers.1.mlp.up_proj.weight") + 4 * (3 * cols + 5);
    bytes[element..element + 4].copy_from_slice(&f32::NEG_INFINITY.to_le_bytes());
    std::fs::write(&at, &bytes).expect("writes");
    let error = refusal(dir.path());
    assert!(error.contains("`model.layers.1.mlp.up_proj.weight`") && error.contains("-inf at [3, 5]"), "{error}");

    let path = dir.path().join("m.gguf");
    let mut bytes = std::fs::read(student()).expect("reads");
    let file = GgufFile::read(&student()).expect("reads");
    let (_, ty, place) = file.place("blk.1.ffn_norm.weight").expect("is there");
    assert_eq!(ty, TensorType::F32);
    bytes[place.start + 16..place.start + 20].copy_from_slice(&f32::NAN.to_le_bytes());
    std::fs::write(&path, &bytes).expect("writes");
    let error = refusal(&path);
    assert!(error.contains("`blk.1.ffn_norm.weight`") && error.contains("NaN at [4]"), "{error}");

    // A scale of a block: every weight under it is infinite.
    let (info, ty, place) = file.place("blk.0.attn_q.weight").expect("is there");
    let block = ty.block_bytes();
    let row = info.shape[1] / ty.block() * block;
    let mut bytes = std::fs::read(student()).expect("reads");
    bytes[place.start + 2 * row + block - 2..place.start + 2 * row + block].copy_from_slice(&half::f16::INFINITY.to_le_bytes());
    std::fs::write(&path, &bytes).expect("writes");
    let error = refusal(&path);
    assert!(error.contains("`blk.0.attn_q.weight`") && error.contains("at [2, "), "{error}");
    let sound = load(&student()).expect("loads");
    finite::check(&student(), &sound).expect("is finite");
}

/// The tiny Llama as a teacher with another tokenizer.
fn teacher_with(tokenizer: &Json, dir: &Path) -> PathBuf {
    let from = dir.join("model");
    std::fs::create_dir_all(&from).expect("dir");
    directory("tiny-llama", &from, |_| {});
    std::fs::write(from.join("tokenizer.json"), tokenizer.to_string()).expect("writes");
    harness::run(&FileStage, json!({"path": from, "seq": 64}), &[], dir).expect("runs")["teacher"].clone()
}

/// Letters, a space and full stops, by Unigram without a token for what it does not know.
fn letters(normalizer: &Json) -> Json {
    let all = ('a'..='z').chain(['▁', '.', 'é', '\n', 'A', 'U']).map(|c| json!([c.to_string(), -3.0]));
    json!({
        "version": "1.0", "added_tokens": [{"id": 0, "content": "<s>", "special": true, "single_word": false, "lstrip": false, "rstrip": false, "normalized": false}],
        "normalizer": normalizer, "pre_tokenizer": {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": false},
        "post_processor": null, "decoder": {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": false},
        "model": {"type": "Unigram", "unk_id": null, "vocab": std::iter::once(json!(["<s>", 0.0])).chain(all).collect::<Vec<_>>(), "byte_fallback": false},
    })
}

/// What a tokenizer loses is named by its place, whatever the reason, and goes on only where that was asked for.
#[test]
fn a_text_that_its_tokens_do_not_give_back_is_refused() {
    let dir = tempfile::tempdir().expect("dir");
    let text = dir.path().join("text");
    let collect = |teacher: &Path, what: &str, lossy: Option<&str>| {
        std::fs::write(&text, what).expect("writes");
        let mut params = json!({"top_k": 4, "text_tokens": 40});
        lossy.into_iter().for_each(|l| params["lossy"] = l.into());
        let out = tempfile::tempdir().expect("dir");
        harness::run(&CollectStage, params, &[("teacher", "Teacher", teacher), ("text", "Text", &text)], out.path()).map(drop)
    };
    let plain = teacher_with(&letters(&Json::Null), dir.path());
    collect(&plain, "a union of states.\nand the people.", None).expect("comes back, but for a space before it");
    let error = collect(&plain, "a union 🤗 of states and 🤗.", None).expect_err("is refused");
    let said = format!("{error} {}", error.help.clone().unwrap_or_default());
    assert!(said.contains("byte 8: \"🤗\"") && said.contains("byte 27") && said.contains("`lossy: accept`"), "{said}");
    collect(&plain, "a union 🤗 of states.", Some("accept")).expect("goes on");

    let other = |normalizer: Json| {
        let dir = tempfile::tempdir().expect("dir");
        let teacher = teacher_with(&letters(&normalizer), dir.path());
        (dir, teacher)
    };
    let (_dir, lower) = other(json!({"type": "Lowercase"}));
    let error = collect(&lower, "the Union of All states.", None).expect_err("is refused").to_string();
    assert!(error.contains("byte 4: \"U\" comes back as \"u\"") && error.contains("byte 13: \"A\""), "{error}");
    let (_dir, composed) = other(json!({"type": "NFC"}));
    collect(&composed, "cafe\u{301} of the union.", None).expect("the same letters");
    let mut pieces = letters(&Json::Null);
    pieces["pre_tokenizer"] = json!({"type": "Whitespace"});
    pieces["decoder"] = json!({"type": "WordPiece", "prefix": "##", "cleanup": true});
    let words: Vec<&str> = vec!["<s>", "[UNK]", "the", "union", "##s", "."];
    pieces["model"] = json!({"type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##", "max_input_chars_per_word": 100,
        "vocab": words.iter().enumerate().map(|(i, w)| ((*w).to_owned(), json!(i))).collect::<serde_json::Map<_, _>>()});
    let pieces_dir = tempfile::tempdir().expect("dir");
    let error = collect(&teacher_with(&pieces, pieces_dir.path()), "the unions.", None).expect_err("is refused").to_string();
    assert!(error.contains("does not give the text back"), "{error}");
}
