//! Models into files and back: GGUF and Hugging Face directories of every family, ternary matrices code by code.

mod common;
mod harness;

use std::path::{Path, PathBuf};

use common::golden_dir;
use flow_lm::config::{Activation, Activations, Group, ModelConfig, Preset, Role, RopeScaling, Weights};
use flow_lm::format::gguf::GgufFile;
use flow_lm::format::gguf::export::{About, How, Storage, export, fitting};
use flow_lm::format::hf_export::{self, FloatType};
use flow_lm::format::tensors::{TensorSource, half_pairs};
use flow_lm::format::ternary::held;
use flow_lm::format::tokenizer_file::TokenizerFile;
use flow_lm::format::{self, Checkpoint, load};
use flow_lm::infer::{Session, Uses};
use flow_lm::tokenizer::TokenId;
use flow_shaders::device::open;
use flow_stages::kinds::export_safetensors::SafetensorsStage;
use serde_json::{Value, json};

const FAMILIES: [&str; 5] = ["tiny-llama3", "tiny-mistral", "tiny-smollm3", "tiny-qwen2", "tiny-qwen3"];

fn tokenizer() -> TokenizerFile {
    TokenizerFile::read(&golden_dir().join("models/student-tokenizer-4096.json")).expect("a tokenizer")
}

fn family(name: &str) -> PathBuf {
    golden_dir().join("families").join(name)
}

fn gguf(model: &Checkpoint, (linear, embedding, head): (Storage, Storage, Option<Storage>), to: &Path) -> flow_lm::Result<()> {
    let about = About { name: "tiny".into(), author: Some("somebody".into()), licence: Some("mit".into()) };
    let how = How { about, template: Some("{{ messages }}"), linear, embedding, head };
    export(model, &tokenizer(), &how, to).map(drop)
}

fn logits(model: &Checkpoint) -> Vec<f32> {
    let ids: Vec<TokenId> = (0..24u32).map(|i| TokenId((i * 37 + 5) % model.config.vocab as u32)).collect();
    let uses = Uses { score: Some((1, ids.len())), logits: true, ..Uses::default() };
    let device = open("cpu", 2).expect("a device");
    let mut session = Session::new(&device, model.config.clone(), &model.tensors, uses).expect("a session");
    session.logits(&ids, &vec![1; ids.len()]).expect("logits")
}

/// The largest difference, in units of the standard deviation of what is wanted.
fn apart(got: &[f32], want: &[f32]) -> f32 {
    assert_eq!(got.len(), want.len());
    let spread = (want.iter().map(|x| x * x).sum::<f32>() / want.len() as f32).sqrt();
    got.iter().zip(want).fold(0f32, |m, (a, b)| m.max((a - b).abs())) / spread
}

/// What a GGUF file can say of a shape.
fn in_gguf(c: &ModelConfig) -> ModelConfig {
    let factors = |s: &RopeScaling| RopeScaling::Factors { divisors: s.divisors(c.rope_theta, c.head_dim) };
    let rope_scaling = c.rope_scaling.as_ref().map(factors);
    ModelConfig { rope_theta: f64::from(c.rope_theta as f32), rope_scaling, ..c.clone() }
}

#[test]
fn families_survive_a_gguf_file() {
    let dir = tempfile::tempdir().expect("dir");
    for name in FAMILIES {
        let model = load(&family(name)).expect("loads");
        let want = logits(&model);
        for (storage, allowed) in [(Storage::F32, 1e-5), (Storage::F16, 2e-2), (Storage::Q8_0, 0.3)] {
            let path = dir.path().join(format!("{name}-{}.gguf", storage.name()));
            gguf(&model, (storage, storage, None), &path).expect("exports");
            let back = load(&path).expect("loads");
            assert_eq!(back.config, in_gguf(&model.config), "{name}");
            let apart = apart(&logits(&back), &want);
            println!("{name} {}: {apart:e}", storage.name());
            assert!(apart <= allowed, "{name} {}: {apart}", storage.name());
            // As a teacher in the loop has them: float16, in our order of rows, whatever the file holds.
            for t in back.config.tensors() {
                assert_eq!(
                    back.tensors.halves(&t.name),
                    half_pairs(&back.tensors.tensor(&t.name)),
                    "{name} {}: {}",
                    storage.name(),
                    t.name
                );
            }
            // As llama.cpp's own converter writes it.
            let (ours, theirs) = (GgufFile::read(&path).expect("reads"), GgufFile::read(&family(name).join("model.gguf")).expect("reads"));
            for info in theirs.tensors.iter().filter(|_| storage == Storage::F32) {
                let close = |(a, b): (&f32, &f32)| (a - b).abs() <= 1e-3 * b.abs().max(1e-2);
                let (a, b) = (ours.floats(&info.name).expect("ours"), theirs.floats(&info.name).expect("theirs"));
                assert!(a.iter().zip(&b).all(close), "{name}: {}", info.name);
            }
        }
    }
}

#[test]
fn ternary_files_keep_their_codes_and_scales() {
    let dir = tempfile::tempdir().expect("dir");
    for name in ["tiny-qwen3-ternary-g64", "tiny-qwen3-ternary-g128"] {
        let model = load(&family(name).join("model.gguf")).expect("loads");
        let how = fitting(&model);
        assert_eq!(how, (Storage::Q2_0, Storage::Q2_0, None));
        let path = dir.path().join(format!("{name}.gguf"));
        gguf(&model, how, &path).expect("exports");
        let back = load(&path).expect("loads");
        let matrices = model.config.tensors().into_iter().filter(|t| matches!(t.role, Role::Linear | Role::Embedding));
        for spec in matrices {
            let of = |m: &Checkpoint| held(&m.config, &m.tensors, &spec).expect("ternary");
            assert!(of(&model) == of(&back), "{name}: {}", spec.name);
        }
        assert_eq!(apart(&logits(&back), &logits(&model)), 0.0, "{name}");
    }
}

#[test]
fn a_file_becomes_a_directory_with_the_same_logits() {
    let dir = tempfile::tempdir().expect("dir");
    for name in FAMILIES.into_iter().chain(["tiny-qwen3-ternary-g64"]) {
        let path = family(name).join("model.gguf");
        let (model, to) = (load(&path).expect("loads"), dir.path().join(name));
        let tokenizer = TokenizerFile::of_model(&path, &model).expect("a tokenizer");
        hf_export::export(&model, &tokenizer, Some("{{ x }}"), FloatType::Float32, &to).expect("exports");
        let back = flow_lm::Model::open(&to).expect("opens");
        assert_eq!(back.template.expect("a template").source(), "{{ x }}");
        assert_eq!(back.tokenizer.roles().bos, Some(tokenizer.bos()), "{name}");
        let apart = apart(&logits(&back.checkpoint), &logits(&model));
        println!("{name}: {apart:e}");
        // Llama 3's factors become its formula again; ternary matrices become floats, whose products round elsewhere.
        let exact = !["tiny-llama3", "tiny-qwen3-ternary-g64"].contains(&name);
        assert!(if exact { apart == 0.0 } else { apart < 1e-4 }, "{name}: {apart}");
        if name == "tiny-llama3" {
            assert_eq!(back.checkpoint.config.rope_scaling, load(&family(name)).expect("loads").config.rope_scaling);
        }
    }
}

fn student(config: ModelConfig) -> Checkpoint {
    let tensors = harness::made_up(&config).into();
    Checkpoint { config, tensors, extra: Value::Null, tokenizer: None }
}

/// A ternary model of a family, without SubLN.
fn of_base() -> ModelConfig {
    ModelConfig { layers: 2, sub_norm: false, activations: Activations::Float, ..Preset::Poc.config() }
}

#[test]
fn students_of_every_group_are_stored_as_they_were_trained() {
    let dir = tempfile::tempdir().expect("dir");
    let path = dir.path().join("m.gguf");
    for group in [Group::Tensor, Group::Row, Group::Of(64), Group::Of(128), Group::Of(256)] {
        for qwen in [false, true] {
            let c = ModelConfig { group, head_norm: qwen, ternary_embedding: true, ..of_base() };
            let model = student(c);
            let fits = !matches!(group, Group::Of(64 | 128));
            assert_eq!(fitting(&model).0, if fits { Storage::Tq2_0 } else { Storage::Q2_0 });
            for storage in [Storage::Q2_0, Storage::Tq2_0, Storage::Tq1_0] {
                let what = format!("{group:?} {storage:?} {qwen}");
                let done = gguf(&model, (storage, storage, None), &path);
                if storage != Storage::Q2_0 && !fits {
                    let error = done.expect_err(&what);
                    assert!(error.help.is_some_and(|h| h.contains("q2_0")), "{what}");
                    continue;
                }
                done.expect(&what);
                let back = load(&path).expect("loads");
                for spec in model.config.tensors().into_iter().filter(|t| matches!(t.role, Role::Linear | Role::Embedding)) {
                    let of = |m: &Checkpoint| held(&m.config, &m.tensors, &spec).expect("ternary");
                    let (want, got) = (of(&model), of(&back));
                    assert!(want.codes == got.codes, "{what}: {}", spec.name);
                    let half = |s: f32| half::f16::from_f32(s).to_f32();
                    let scales = |m: &flow_lm::format::tensors::PackedMatrix| {
                        (0..m.rows()).flat_map(|r| m.scales_of(r)).map(half).collect::<Vec<_>>()
                    };
                    assert!(scales(&want) == scales(&got), "{what}: {}", spec.name);
                }
            }
            // Values of ternary matrices, not their masters.
            gguf(&model, (Storage::F32, Storage::F32, None), &path).expect("exports");
            let apart = apart(&logits(&load(&path).expect("loads")), &logits(&model));
            assert!(apart < 1e-4, "{group:?}: {apart}");
        }
    }
}

#[test]
fn what_a_format_cannot_say_is_refused_with_a_next_step() {
    let dir = tempfile::tempdir().expect("dir");
    let path = dir.path().join("m.gguf");
    let ternary = (Storage::Tq2_0, Storage::F16, None);
    let float = ModelConfig { weights: Weights::Float, ..of_base() };
    let llama3 = RopeScaling::Llama3 { factor: 8.0, low_freq_factor: 1.0, high_freq_factor: 4.0, original_seq: 64.0 };
    for (what, config, how, wanted) in [
        ("ReLU²", ModelConfig { activation: Activation::Relu2, ..of_base() }, ternary, "ReLU²"),
        ("floats", float.clone(), ternary, "full precision"),
        ("embedding", of_base(), (Storage::Tq2_0, Storage::Q2_0, None), "`embed` is to be q2_0"),
        ("head", ModelConfig { tied: false, ..of_base() }, (Storage::Tq2_0, Storage::F16, Some(Storage::Tq1_0)), "`head` is to be tq1_0"),
        ("two families", ModelConfig { qkv_bias: true, head_norm: true, ..of_base() }, ternary, "no family has"),
        ("layers", ModelConfig { no_rope: vec![0], ..of_base() }, ternary, "have no RoPE"),
        ("scaling", ModelConfig { head_norm: true, rope_scaling: Some(llama3), ..of_base() }, ternary, "scales RoPE by one factor"),
    ] {
        let error = gguf(&student(config), how, &path).expect_err(what);
        assert!(error.to_string().contains(wanted) && error.help.is_some(), "{what}: {error}");
        assert!(!path.exists());
    }
    gguf(&student(float), (Storage::Q8_0, Storage::F16, None), &path).expect("floats as 8 bits");
    let windowed = student(ModelConfig { window: Some(32), ..ModelConfig { sub_norm: true, ..of_base() } });
    let error = hf_export::export(&windowed, &tokenizer(), None, FloatType::Bfloat16, &dir.path().join("d")).expect_err("a window");
    assert!(error.to_string().contains("window of 32") && error.help.is_some(), "{error}");
}

#[test]
fn directories_have_what_was_trained() {
    let dir = tempfile::tempdir().expect("dir");
    let quantised = ModelConfig { activations: Activations::Quantised, ..of_base() };
    for (i, config) in [
        ModelConfig { sub_norm: true, ..quantised.clone() },
        ModelConfig { sub_norm: true, activation: Activation::Relu2, tied: false, ..quantised.clone() },
        quantised,
        ModelConfig { weights: Weights::Threshold, ..of_base() },
        // BitNet's shape with what its class does not round: values, read as values.
        ModelConfig { sub_norm: true, weights: Weights::Float, ..of_base() },
        ModelConfig { sub_norm: true, group: Group::Of(64), ..of_base() },
        ModelConfig { window: Some(64), qkv_bias: true, group: Group::Of(64), ..of_base() },
        ModelConfig { window: Some(64), rope_scaling: Some(RopeScaling::Linear { factor: 2.0 }), ..of_base() },
    ]
    .into_iter()
    .enumerate()
    {
        let (model, to) = (student(config), dir.path().join(i.to_string()));
        hf_export::export(&model, &tokenizer(), None, FloatType::Float32, &to).expect("exports");
        let back = load(&to).expect("loads");
        assert_eq!((&back.config.window, &back.config.rope_scaling), (&model.config.window, &model.config.rope_scaling));
        let apart = apart(&logits(&back), &logits(&model));
        println!("{i}: {apart:e}");
        assert!(apart < 1e-3, "{i}: {apart}");
    }
}

#[test]
fn a_directory_comes_with_its_card() {
    let dir = tempfile::tempdir().expect("dir");
    let (model, report) = (dir.path().join("model"), dir.path().join("report.json"));
    let config = ModelConfig { group: Group::Of(64), ..of_base() };
    let tensors = harness::made_up(&config);
    let path = golden_dir().join("models/student-tokenizer-4096.json");
    format::save(&model, &config, tensors.iter().map(|(k, v)| (k.as_str(), v.as_slice())), Some(&path), &json!({})).expect("saves");
    let figures = json!({"bits_per_byte": {"student": 1.5, "teacher": 1.25}, "kl": 0.5, "top1_agreement": 0.75});
    std::fs::write(&report, figures.to_string()).expect("writes");
    let inputs =
        [("student", "Model", model.as_path()), ("tokenizer", "Tokenizer", path.as_path()), ("report", "EvalReport", report.as_path())];
    let said = json!({"name": "Tiny: one", "licence": "mit", "teacher": "somebody/Base", "author": "me"});
    let out = harness::run(&SafetensorsStage, said, &inputs, &dir.path().join("out")).expect("exports");
    let card = std::fs::read_to_string(out["model"].join("README.md")).expect("a card");
    for part in [
        "license: \"mit\"\n",
        "base_model: \"somebody/Base\"\n",
        "# Tiny: one\n",
        "each 64 weights",
        "| bits per byte of held-out text | 1.5000 |",
        "75.00 %",
        "| student | `stage.student` | `00` |",
    ] {
        assert!(card.contains(part), "{part}\n{card}");
    }
    for file in ["config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"] {
        assert!(out["model"].join(file).is_file(), "{file}");
    }
}
