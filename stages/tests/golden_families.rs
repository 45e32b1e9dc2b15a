//! The families of models against the logits that transformers recorded for them: Hugging Face directories and GGUF files.

mod common;

use common::{Golden, devices, golden_dir};
use flow_lm::config::{Activations, Group, Weights};
use flow_lm::format::load;
use flow_lm::format::tensors::TensorSource;
use flow_lm::infer::{Session, Uses};
use flow_lm::tokenizer::TokenId;

/// What `expected.safetensors` says of some rows of every sequence, and of all of them.
struct Expected {
    golden: Golden,
    ids: Vec<TokenId>,
    mask: Vec<u32>,
    batch: usize,
    seq: usize,
}

impl Expected {
    fn of(name: &str) -> Self {
        let at = format!("families/{name}/expected");
        let golden = Golden::file(&format!("{at}.safetensors"), &format!("{at}.json"));
        let shape = golden.shape("input_ids");
        let ids: Vec<TokenId> = golden.i32("input_ids").into_iter().map(|t| TokenId(t as u32)).collect();
        let mask = if golden.has("attention_mask") {
            golden.u8("attention_mask").into_iter().map(u32::from).collect()
        } else {
            vec![1; ids.len()]
        };
        Self { ids, mask, batch: shape[0], seq: shape[1], golden }
    }

    /// Compares logits `[batch · seq, vocab]`; the largest difference in units of what is allowed.
    fn compare(&self, what: &str, got: &[f32]) -> f32 {
        let vocab = got.len() / self.ids.len();
        let allowed = |want: f32| {
            let tolerance = |key: &str| self.golden.about[key].as_f64().expect("a number") as f32;
            tolerance("atol") + tolerance("rtol") * want.abs()
        };
        let rows: Vec<usize> = self.golden.i32("rows").into_iter().map(|r| r as usize).collect();
        let mut worst = 0f32;
        let mut check = |place: String, got: f32, want: f32| {
            let error = (got - want).abs() / allowed(want);
            assert!(error <= 1.0, "{what}: {place}: {got} against {want}");
            worst = worst.max(error);
        };
        for (i, want) in self.golden.f32("logits").iter().enumerate() {
            let (sequence, row, token) = (i / vocab / rows.len(), rows[i / vocab % rows.len()], i % vocab);
            let at = sequence * self.seq + row;
            if self.mask[at] == 1 {
                check(format!("row {at} token {token}"), got[at * vocab + token], *want);
            }
        }
        let (sums, best) = (self.golden.f32("logsumexp"), self.golden.i32("argmax"));
        for (at, row) in got.chunks_exact(vocab).enumerate().filter(|(at, _)| self.mask[*at] == 1) {
            let largest = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            let sum: f64 = row.iter().map(|x| f64::from(x - largest).exp()).sum();
            check(format!("log-sum-exp of row {at}"), largest + sum.ln() as f32, sums[at]);
            let said = row[best[at] as usize];
            assert!(said >= largest - allowed(largest), "{what}: row {at}: token {} has {said}, the best {largest}", best[at]);
        }
        worst
    }
}

/// Logits of a directory or a file, on every device, in float activations.
fn agrees(name: &str, file: &str) {
    let expected = Expected::of(name);
    let model = load(&golden_dir().join("families").join(name).join(file)).expect("loads");
    for device in devices() {
        let uses = Uses { score: Some((expected.batch, expected.seq)), logits: true, ..Uses::default() };
        let mut session = Session::new(&device, model.config.clone(), &model.tensors, uses).expect("a session");
        let got = session.logits(&expected.ids, &expected.mask).expect("logits");
        let worst = expected.compare(&format!("{name}/{file}"), &got);
        println!("{name}/{file} on {}: {worst:.3} of the tolerance", device.name());
    }
}

#[test]
fn golden_llama_3() {
    agrees("tiny-llama3", "");
    agrees("tiny-llama3", "model.gguf");
}

#[test]
fn golden_mistral() {
    agrees("tiny-mistral", "");
    agrees("tiny-mistral", "model.gguf");
}

#[test]
fn golden_qwen_2() {
    agrees("tiny-qwen2", "");
    agrees("tiny-qwen2", "model.gguf");
}

#[test]
fn golden_qwen_3() {
    agrees("tiny-qwen3", "");
    agrees("tiny-qwen3", "model.gguf");
}

#[test]
fn golden_smollm_3() {
    agrees("tiny-smollm3", "");
    agrees("tiny-smollm3", "model.gguf");
}

#[test]
fn golden_ternary_in_groups() {
    for (name, group) in [("tiny-qwen3-ternary-g64", 64), ("tiny-qwen3-ternary-g128", 128)] {
        let model = load(&golden_dir().join("families").join(name).join("model.gguf")).expect("loads");
        let c = &model.config;
        assert_eq!(
            (c.weights, c.group, c.activations, c.ternary_embedding),
            (Weights::Absmean, Group::Of(group), Activations::Float, true)
        );
        assert!(model.tensors.packed("embed").is_some() && model.tensors.packed("layers.1.down").is_some());
        agrees(name, "model.gguf");
    }
}

/// A copy of a golden directory whose configuration was changed.
fn with_config(name: &str, change: impl Fn(&mut serde_json::Value)) -> tempfile::TempDir {
    let (from, to) = (golden_dir().join("families").join(name), tempfile::tempdir().expect("dir"));
    for entry in std::fs::read_dir(&from).expect("reads") {
        let path = entry.expect("an entry").path();
        let file = path.file_name().expect("a name").to_string_lossy().into_owned();
        if file == "config.json" || file.ends_with(".safetensors") && !file.starts_with("expected") {
            std::fs::copy(&path, to.path().join(file)).expect("copies");
        }
    }
    let at = to.path().join("config.json");
    let mut config = serde_json::from_slice(&std::fs::read(&at).expect("reads")).expect("JSON");
    change(&mut config);
    std::fs::write(&at, config.to_string()).expect("writes");
    to
}

#[test]
fn what_no_family_has_is_refused_by_its_key() {
    type Change = fn(&mut serde_json::Value);
    let cases: [(&str, Change, &[&str]); 7] = [
        ("tiny-llama3", |c| c["rope_parameters"]["rope_type"] = "yarn".into(), &["rope_parameters.rope_type", "`yarn`", "llama3"]),
        (
            "tiny-mistral",
            |c| c["rope_scaling"] = serde_json::json!({"type": "dynamic", "factor": 2.0}),
            &["rope_scaling.type", "`dynamic`"],
        ),
        ("tiny-llama3", |c| c["rope_parameters"]["factor"] = "eight".into(), &["rope_parameters.factor", "number"]),
        ("tiny-qwen2", |c| c["model_type"] = "gemma2".into(), &["`gemma2`", "llama, mistral, smollm3, qwen2, qwen3, bitnet"]),
        ("tiny-mistral", |c| c["attention_bias"] = true.into(), &["attention_bias"]),
        ("tiny-smollm3", |c| c["no_rope_layers"] = serde_json::json!([1, 0]), &["no_rope_layers", "4 layers"]),
        ("tiny-qwen3", |c| c["partial_rotary_factor"] = 0.5.into(), &["partial_rotary_factor"]),
    ];
    for (name, change, wanted) in cases {
        let dir = with_config(name, change);
        let error = load(dir.path()).expect_err("is refused").to_string();
        assert!(wanted.iter().all(|w| error.contains(w)), "{name}: {error}");
    }
}

/// A window is no matter until a sequence is longer; Qwen's is used only where the configuration says so.
#[test]
fn sequences_longer_than_a_window_are_refused() {
    let session = |dir: &tempfile::TempDir, seq: usize| {
        let model = load(dir.path()).expect("loads");
        let uses = Uses { score: Some((1, seq)), top_k: 1, ..Uses::default() };
        Session::new(&flow_shaders::device::open("cpu", 0).expect("a CPU"), model.config, &model.tensors, uses).map(drop)
    };
    let mistral = with_config("tiny-mistral", |c| c["sliding_window"] = 32.into());
    session(&mistral, 32).expect("all of it is seen");
    let error = session(&mistral, 33).expect_err("is refused").to_string();
    assert!(error.contains("33 tokens") && error.contains("window of 32"), "{error}");
    session(&with_config("tiny-qwen2", |c| c["sliding_window"] = 32.into()), 48).expect("not used");
    let with = |layers: &[&str], first: u32| {
        with_config("tiny-qwen2", |c| {
            (c["sliding_window"], c["use_sliding_window"], c["max_window_layers"]) = (32.into(), true.into(), first.into());
            c["layer_types"] = if layers.is_empty() { serde_json::Value::Null } else { layers.into() };
        })
    };
    let layers = load(with(&["sliding_attention"; 3], 0).path()).expect("loads").config.layers;
    let (all, none) = (vec!["sliding_attention"; layers], vec!["full_attention"; layers]);
    assert!(session(&with(&all, 0), 48).is_err() && session(&with(&[], 0), 48).is_err());
    session(&with(&none, 0), 48).expect("no layer has one");
    session(&with(&[], layers as u32), 48).expect("no layer has one");
    // Some layers only.
    for (dir, field) in [(with(&[&all[..1], &none[1..]].concat(), 0), "layer_types"), (with(&[], 1), "max_window_layers")] {
        let error = load(dir.path()).expect_err("is refused").to_string();
        assert!(error.contains(field) && error.contains("all or none"), "{error}");
    }
}

/// A code of 3 makes a tensor a float one; the others stay packed, and the logits those of the values.
#[test]
fn a_tensor_with_a_code_of_3_is_a_float_one() {
    let dir = tempfile::tempdir().expect("dir");
    let source = golden_dir().join("families/tiny-qwen3-ternary-g64/model.gguf");
    let mut bytes = std::fs::read(&source).expect("reads");
    let place = {
        let file = flow_lm::format::gguf::GgufFile::read(&source).expect("reads");
        file.place("blk.1.attn_k.weight").expect("is there").2
    };
    // The codes of the first block begin after its scale.
    bytes[place.start + 2] |= 3;
    let path = dir.path().join("model.gguf");
    std::fs::write(&path, &bytes).expect("writes");
    let model = load(&path).expect("loads");
    assert_eq!(model.config.weights, Weights::Float);
    assert!(model.tensors.packed("layers.1.k").is_none() && model.tensors.packed("layers.1.q").is_some());
    let scale = half::f16::from_le_bytes([bytes[place.start], bytes[place.start + 1]]).to_f32();
    assert_eq!(model.tensors.tensor("layers.1.k")[0], 2.0 * scale);
    // The same model with every tensor as floats.
    let floats: std::collections::BTreeMap<String, Vec<f32>> =
        model.config.tensors().into_iter().map(|t| (t.name.clone(), model.tensors.tensor(&t.name).into_owned())).collect();
    let ids: Vec<TokenId> = (0..20).map(|i| TokenId(7 * i + 3)).collect();
    for device in devices() {
        let logits = |tensors: &dyn Fn() -> Session| tensors().logits(&ids, &[1; 20]).expect("logits");
        let uses = || Uses { score: Some((1, 20)), logits: true, ..Uses::default() };
        let packed = logits(&|| Session::new(&device, model.config.clone(), &model.tensors, uses()).expect("a session"));
        let plain = logits(&|| Session::new(&device, model.config.clone(), &floats, uses()).expect("a session"));
        let apart = packed.iter().zip(&plain).map(|(a, b)| (a - b).abs()).fold(0f32, f32::max);
        assert!(apart < 1e-4, "{}: {apart}", device.name());
    }
}

/// int8 in blocks of 64: near the floats, and a row does not depend on how it is read.
#[test]
fn blocks_of_int8_are_near_floats() {
    let model = load(&golden_dir().join("families/tiny-qwen3-ternary-g64/model.gguf")).expect("loads");
    let ids: Vec<TokenId> = (0..20).map(|i| TokenId(11 * i + 5)).collect();
    for device in devices() {
        let logits = |block8| {
            let uses = Uses { score: Some((1, 20)), logits: true, block8, ..Uses::default() };
            let mut session = Session::new(&device, model.config.clone(), &model.tensors, uses).expect("a session");
            session.logits(&ids, &[1; 20]).expect("logits")
        };
        let (floats, blocks) = (logits(false), logits(true));
        let vocab = model.config.vocab;
        let size = floats.iter().map(|x| x * x).sum::<f32>().sqrt();
        let apart = floats.iter().zip(&blocks).map(|(a, b)| (a - b).powi(2)).sum::<f32>().sqrt() / size;
        assert!(apart > 1e-5 && apart < 0.05, "{}: {apart}", device.name());
        assert_eq!(floats.len(), 20 * vocab);
    }
}
