//! Models on disk: our checkpoints, Hugging Face directories, GGUF.

mod harness;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use flow_lm::config::{Activation, ModelConfig, Preset, Weights};
use flow_lm::format::gguf::pack::{self, BLOCK};
use flow_lm::format::gguf::{GgufFile, Value};
use flow_lm::format::tensors::{PackedMatrix, TensorSource};
use flow_lm::format::ternary::{masters, ternarise};
use flow_lm::format::{self, load, load_as};
use flow_stages::kinds::export_gguf::ExportStage;
use safetensors::SafeTensors;
use serde_json::json;

fn golden(name: &str) -> PathBuf {
    harness::golden().join(name)
}

fn save(dir: &Path, config: &ModelConfig, tensors: &BTreeMap<String, Vec<f32>>) {
    let all = tensors.iter().map(|(k, v)| (k.as_str(), v.as_slice()));
    format::save(dir, config, all, Some(&golden("models/student-tokenizer-4096.json")), &json!({"bits": 8})).expect("saves");
}

fn tiny() -> ModelConfig {
    ModelConfig { layers: 2, ..Preset::Poc.config() }
}

#[test]
fn checkpoints_come_back_and_have_the_same_bytes() {
    let dir = tempfile::tempdir().expect("dir");
    let (a, b) = (dir.path().join("a"), dir.path().join("b"));
    let tensors = harness::made_up(&tiny());
    save(&a, &tiny(), &tensors);
    save(&b, &tiny(), &tensors);
    for file in ["config.json", "model.safetensors", "tokenizer.json"] {
        assert!(std::fs::read(a.join(file)).expect("a") == std::fs::read(b.join(file)).expect("b"), "{file}");
    }
    let loaded = load(&a).expect("loads");
    assert_eq!((loaded.config, &loaded.extra["bits"]), (tiny(), &json!(8)));
    assert!(tensors.iter().all(|(name, values)| loaded.tensors.tensor(name) == *values) && loaded.tokenizer.is_some());
}

#[test]
fn damaged_checkpoints_are_named() {
    let dir = tempfile::tempdir().expect("dir");
    save(dir.path(), &tiny(), &harness::made_up(&tiny()));
    let file = dir.path().join("model.safetensors");
    let good = std::fs::read(&file).expect("read");
    for (what, bytes) in [("cut", &good[..good.len() - 100]), ("header cut", &good[..100]), ("empty", &[]), ("noise", &[0xff; 64][..])] {
        std::fs::write(&file, bytes).expect("write");
        let error = load(dir.path()).expect_err(what);
        assert!(error.to_string().contains("model.safetensors") && error.help.is_some(), "{what}: {error}");
    }
    std::fs::write(&file, &good).expect("write");
    let other = ModelConfig { mlp: 512, ..tiny() };
    let json = json!({"model_type": "flow", "config": other});
    std::fs::write(dir.path().join("config.json"), json.to_string()).expect("write");
    let error = load(dir.path()).expect_err("shapes differ").to_string();
    assert!(error.contains("layers.0.mlp_sub_norm") && error.contains("[768]") && error.contains("[512]"), "{error}");
}

#[test]
fn golden_hugging_face_directories_load() {
    let llama = load(&golden("models/tiny-llama")).expect("llama");
    assert_eq!((llama.config.weights, llama.config.sub_norm, llama.config.head_dim), (Weights::Float, false, 8));
    assert_eq!((llama.config.rope_theta, llama.config.tied, llama.config.mlp), (10_000.0, true, 160));
    let bitnet = load(&golden("models/tiny-bitnet")).expect("bitnet");
    assert_eq!((bitnet.config.weights, bitnet.config.activation, bitnet.config.sub_norm), (Weights::Absmean, Activation::Relu2, true));
    let plain = load_as(&golden("models/tiny-bitnet-unquantized"), Some(Weights::Float)).expect("bitnet");
    assert_eq!((plain.config.weights, plain.config.rope_theta), (Weights::Float, 500_000.0));
    for (dir, c) in [("tiny-llama", &llama), ("tiny-bitnet", &bitnet)] {
        let bytes = std::fs::read(golden("models").join(dir).join("model.safetensors")).expect("read");
        let stored = SafeTensors::deserialize(&bytes).expect("parse");
        let raw: &[u8] = stored.tensor("model.layers.1.mlp.down_proj.weight").expect("tensor").data();
        assert!(c.tensors.tensor("layers.1.down").iter().flat_map(|v| v.to_le_bytes()).eq(raw.iter().copied()));
        assert!(c.config.tensors().iter().all(|t| c.tensors.tensor(&t.name).len() == t.len()));
    }
}

/// A Hugging Face BitNet directory with packed linears.
fn write_packed(dir: &Path, linear_class: &str, scale: f32) -> BTreeMap<String, Vec<i8>> {
    let source = golden("models/tiny-bitnet");
    let config = load(&source).expect("bitnet").config;
    let bytes = std::fs::read(source.join("model.safetensors")).expect("read");
    let stored = SafeTensors::deserialize(&bytes).expect("parse");
    let mut data: Vec<(String, safetensors::Dtype, Vec<usize>, Vec<u8>)> = Vec::new();
    let mut all = BTreeMap::new();
    for (name, view) in stored.tensors() {
        if !name.contains("_proj") {
            data.push((name, view.dtype(), view.shape().to_vec(), view.data().to_vec()));
            continue;
        }
        let values: Vec<f32> = view.data().chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect();
        let (rows, cols) = (view.shape()[0], view.shape()[1]);
        let (codes, _) = ternarise(&values, rows, cols);
        data.push((name.clone(), safetensors::Dtype::U8, vec![rows / 4, cols], pack::hf(&codes, rows, cols)));
        data.push((
            format!("{name}_scale"),
            safetensors::Dtype::BF16,
            vec![1],
            half::bf16::from_f32(scale).to_bits().to_le_bytes().to_vec(),
        ));
        all.insert(name, codes);
    }
    let views = data.iter().map(|(n, t, s, b)| (n.clone(), safetensors::tensor::TensorView::new(*t, s.clone(), b).expect("view")));
    std::fs::create_dir_all(dir).expect("dir");
    safetensors::serialize_to_file(views, None, &dir.join("model.safetensors")).expect("write");
    let mut json: serde_json::Value = serde_json::from_slice(&std::fs::read(source.join("config.json")).expect("config")).expect("JSON");
    json["quantization_config"] = json!({"quant_method": "bitnet", "linear_class": linear_class, "quantization_mode": "offline"});
    std::fs::write(dir.join("config.json"), json.to_string()).expect("write");
    assert_eq!(config.layers, 2);
    all
}

#[test]
fn packed_linears_divide_or_multiply_by_their_scale_as_the_configuration_says() {
    let dir = tempfile::tempdir().expect("dir");
    for (class, stored, wanted) in [("bitlinear", 4.0, 0.25), ("autobitlinear", 0.5, 0.5)] {
        let codes = write_packed(&dir.path().join(class), class, stored);
        let model = load(&dir.path().join(class)).expect("loads");
        let (again, scale) = ternarise(&model.tensors.tensor("layers.1.gate"), 128, 64);
        assert!(again == codes["model.layers.1.mlp.gate_proj.weight"] && (scale - wanted).abs() < 1e-6, "{class}: {scale}");
        // Straight to packed words, which are those that the kernels make of floats.
        let words = flow_shaders::pack_ternary(&model.tensors.tensor("layers.1.gate"), 64, 0).0;
        assert_eq!(model.tensors.packed("layers.1.gate"), Some(PackedMatrix::of_tensor(words, wanted, 64)));
        assert_eq!(model.tensors.packed("embed"), None);
        let plain = load_as(&dir.path().join(class), Some(Weights::Float)).expect("loads");
        assert!(plain.tensors.tensor("layers.1.gate").iter().zip(&again).all(|(v, c)| *v == f32::from(*c) * wanted));
    }
    let error = std::fs::read(dir.path().join("bitlinear/config.json"))
        .map(|b| String::from_utf8_lossy(&b).replace("\"bitnet\",\"num", "\"mamba\",\"num"));
    std::fs::write(
        dir.path().join("bitlinear/config.json"),
        error.expect("config").replace("\"model_type\":\"bitnet\"", "\"model_type\":\"mamba\""),
    )
    .expect("write");
    assert!(load(&dir.path().join("bitlinear")).expect_err("unknown family").to_string().contains("`mamba`"));
}

#[test]
fn golden_packings() {
    let bytes = std::fs::read(golden("gguf/packing.safetensors")).expect("golden");
    let stored = SafeTensors::deserialize(&bytes).expect("parse");
    let q = stored.tensor("q").expect("q");
    let (rows, cols) = (q.shape()[0], q.shape()[1]);
    let codes: Vec<i8> = q.data().iter().map(|b| *b as i8).collect();
    let scale = stored.tensor("scale").expect("scale").data();
    let scale = f32::from_le_bytes([scale[0], scale[1], scale[2], scale[3]]);
    let wanted = |name: &str| stored.tensor(name).expect("packed").data().to_vec();
    let by_row = |f: fn(&[i8], f32, &mut Vec<u8>)| {
        let mut out = Vec::new();
        codes.chunks(cols).for_each(|row| f(row, scale, &mut out));
        out
    };
    let (tq2, tq1) = (by_row(pack::tq2_0), by_row(pack::tq1_0));
    assert!(tq2 == wanted("tq2_0") && tq1 == wanted("tq1_0"));
    assert!(pack::i2_s_x86(&codes) == wanted("i2_s_x86"));
    assert!(pack::hf(&codes, rows, cols) == wanted("hf_packed"));
    let d = half::f16::from_f32(scale).to_f32();
    for (unpacked, scales) in [pack::unpack_tq2_0(&tq2), pack::unpack_tq1_0(&tq1)] {
        assert!(unpacked == codes && scales.len() == codes.len() / BLOCK && scales.iter().all(|s| *s == d));
    }
    let mut i2_s = wanted("i2_s_x86");
    i2_s.extend(scale.to_le_bytes());
    i2_s.resize(i2_s.len() + pack::I2_S_TAIL - 4, 0);
    assert_eq!(pack::unpack_i2_s_x86(&i2_s), (codes.clone(), scale));
    assert_eq!(pack::unpack_hf(&wanted("hf_packed"), rows, cols), Some(codes));
    assert_eq!(pack::unpack_hf(&[3, 0], 4, 2), None);
}

/// Our name of a tensor in a GGUF file.
fn ours(name: &str) -> String {
    let name = name.trim_end_matches(".weight");
    match name {
        "token_embd" => "embed".into(),
        "output_norm" => "norm".into(),
        _ => name
            .replace("blk.", "layers.")
            .replace("ffn_norm", "mlp_norm")
            .replace("ffn_sub_norm", "mlp_sub_norm")
            .replace("attn_output", "o")
            .replace("attn_q", "q")
            .replace("attn_k", "k")
            .replace("attn_v", "v")
            .replace("ffn_", ""),
    }
}

#[test]
fn golden_student_survives_import_and_export() {
    let path = golden("gguf/student-tq2_0.gguf");
    let reference = GgufFile::read(&path).expect("reads");
    let number = |key: &str| match reference.keys.get(&format!("bitnet.{key}")) {
        Some(Value::U32(v)) => *v as usize,
        other => panic!("{key}: {other:?}"),
    };
    let config = ModelConfig {
        vocab: number("vocab_size"),
        dim: number("embedding_length"),
        layers: number("block_count"),
        heads: number("attention.head_count"),
        kv_heads: number("attention.head_count_kv"),
        head_dim: number("rope.dimension_count"),
        mlp: number("feed_forward_length"),
        seq: number("context_length"),
        ..Preset::Poc.config()
    };
    let mut tensors = BTreeMap::new();
    for info in &reference.tensors {
        let (_, ty, raw) = reference.raw(&info.name).expect("raw");
        let values = match ty.id() {
            35 => {
                let (codes, scales) = pack::unpack_tq2_0(raw);
                assert!(scales.iter().all(|s| *s == scales[0]));
                masters(&codes, scales[0])
            }
            _ => reference.floats(&info.name).expect("floats"),
        };
        tensors.insert(ours(&info.name), values);
    }
    let dir = tempfile::tempdir().expect("dir");
    let model = dir.path().join("model");
    save(&model, &config, &tensors);
    let tokenizer = golden("models/student-tokenizer-4096.json");
    let inputs = [("student", "Model", model.as_path()), ("tokenizer", "Tokenizer", tokenizer.as_path())];
    let out = harness::run(&ExportStage, json!({}), &inputs, &dir.path().join("tq2")).expect("exports");
    let file = GgufFile::read(&out["gguf"]).expect("reads");
    for (key, value) in &reference.keys {
        assert!(key == "general.name" || file.keys.get(key) == Some(value), "{key}");
    }
    for info in &reference.tensors {
        let (a, b) = (reference.raw(&info.name).expect("reference"), file.raw(&info.name).expect("ours"));
        assert!(a.0.shape == b.0.shape && a.1 == b.1 && a.2 == b.2, "{}", info.name);
    }
    assert_eq!(file.tensors.len(), reference.tensors.len());
    let out = harness::run(&ExportStage, json!({"type": "tq1_0", "embedding": "f32"}), &inputs, &dir.path().join("tq1")).expect("exports");
    let small = GgufFile::read(&out["gguf"]).expect("reads");
    for info in &reference.tensors {
        assert!(small.floats(&info.name).expect("ours") == reference.floats(&info.name).expect("reference"), "{}", info.name);
    }
}

#[test]
fn students_that_llama_cpp_cannot_run_are_refused() {
    let dir = tempfile::tempdir().expect("dir");
    let tokenizer = golden("models/student-tokenizer-4096.json");
    for (name, config, wanted) in [
        ("relu2", ModelConfig { activation: Activation::Relu2, ..tiny() }, "ReLU²"),
        ("float", ModelConfig { weights: Weights::Float, ..tiny() }, "full precision"),
        ("untied", ModelConfig { tied: false, ..tiny() }, "ties the head"),
    ] {
        let model = dir.path().join(name);
        save(&model, &config, &harness::made_up(&config));
        let inputs = [("student", "Model", model.as_path()), ("tokenizer", "Tokenizer", tokenizer.as_path())];
        let error = harness::run(&ExportStage, json!({}), &inputs, &dir.path().join("out")).expect_err(name);
        assert!(error.message.contains(wanted) && error.help.is_some(), "{name}: {error}");
    }
    let small = ModelConfig { vocab: 100, ..tiny() };
    let model = dir.path().join("small");
    save(&model, &small, &harness::made_up(&small));
    let inputs = [("student", "Model", model.as_path()), ("tokenizer", "Tokenizer", tokenizer.as_path())];
    let error = harness::run(&ExportStage, json!({}), &inputs, &dir.path().join("out")).expect_err("vocabulary");
    assert!(error.message.contains("4096 tokens, the model only 100"), "{error}");
}

/// Leaves a random student at `FLOW_KEEP_GGUF`, for a look at it with llama.cpp.
#[test]
fn a_threshold_student_exports_with_a_scale_per_row() {
    let dir = tempfile::tempdir().expect("dir");
    let config = ModelConfig { weights: Weights::Threshold, ..tiny() };
    let mut tensors = harness::made_up(&config);
    for (name, values) in &mut tensors {
        if name.ends_with("_scale") {
            values.iter_mut().enumerate().for_each(|(i, v)| *v = 0.25 + i as f32 / 256.0);
        }
    }
    save(&dir.path().join("model"), &config, &tensors);
    let tokenizer = golden("models/student-tokenizer-4096.json");
    let model = dir.path().join("model");
    let inputs = [("student", "Model", model.as_path()), ("tokenizer", "Tokenizer", tokenizer.as_path())];
    let out = harness::run(&ExportStage, json!({}), &inputs, &dir.path().join("out")).expect("exports");
    let file = GgufFile::read(&out["gguf"]).expect("reads");
    let down = file.floats("blk.1.ffn_down.weight").expect("values");
    let row = &down[5 * config.mlp..6 * config.mlp];
    assert!(row.iter().all(|v| *v == 0.0 || v.abs() == 0.25 + 5.0 / 256.0) && row.iter().any(|v| *v != 0.0));
    if let Some(keep) = std::env::var_os("FLOW_KEEP_GGUF") {
        std::fs::copy(&out["gguf"], keep).expect("copy");
    }
}
