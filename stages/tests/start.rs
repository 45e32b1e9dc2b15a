//! A training that starts from another model.

mod common;
mod harness;

use std::path::{Path, PathBuf};

use flow_lm::config::{Group, ModelConfig, Role, RopeScaling, TensorSpec, Weights};
use flow_lm::format::tensors::TensorSource as _;
use flow_lm::format::{self, load, load_with_tokenizer};
use flow_lm::tokenizer::{TokenId, Tokenizer};
use flow_lm::train::Start;
use flow_lm::train::initial_values;
use flow_stages::kinds::teacher_train::TeacherStage;
use flow_stages::kinds::train_bitnet::StudentStage;
use harness::run;
use serde_json::json;

/// A start from the model in a directory.
fn start_from(dir: &Path, config: &ModelConfig, tokenizer: &Tokenizer) -> Result<Start, flow_lm::Error> {
    let (model, theirs) = load_with_tokenizer(dir)?;
    Start::of(model, &theirs, config, tokenizer)
}

fn tokenizer(name: &str) -> PathBuf {
    common::golden_dir().join("models").join(name)
}

/// The beginning of the shipped text.
fn text(dir: &Path) -> PathBuf {
    let corpus = std::fs::read_to_string(harness::corpus()).expect("the shipped text");
    std::fs::write(dir.join("text"), &corpus[..8_000]).expect("a text");
    dir.join("text")
}

/// A teacher of one block.
fn teacher(dir: &Path, text: &Path) -> PathBuf {
    let params = json!({
        "layers": 1, "seq": 32, "shape": {"dim": 64, "heads": 2, "kv_heads": 1, "mlp": 128, "sub_norm": true}, "tokens": 600,
        "recipe": {"lr": 3e-3}
    });
    let tokenizer = tokenizer("student-tokenizer-4096.json");
    run(&TeacherStage, params, &[("text", "Text", text), ("tokenizer", "Tokenizer", &tokenizer)], &dir.join("teacher")).expect("trains")["teacher"]
        .clone()
}

#[test]
fn a_student_begins_as_what_it_starts_from() {
    let dir = tempfile::tempdir().expect("a directory");
    let text = text(dir.path());
    let (teacher, ours) = (teacher(dir.path(), &text), tokenizer("student-tokenizer-4096.json"));
    let params = |shape| {
        json!({
            "preset": "poc", "layers": 1, "seq": 32, "shape": shape, "budget_tokens": 100, "flip_fraction": null,
            "recipe": {"batch": 4, "lr": 1e-9, "muon_lr": 1e-9}
        })
    };
    let wired = [("text", "Text", text.as_path()), ("tokenizer", "Tokenizer", &ours), ("init", "Teacher", &teacher)];
    let shape = json!({"dim": 64, "heads": 2, "kv_heads": 1, "mlp": 128});
    let out = run(&StudentStage, params(shape), &wired, &dir.path().join("student")).expect("trains");
    let (before, after) = (load(&teacher).expect("reads"), load(&out["student"]).expect("reads"));
    for t in after.config.tensors() {
        let (before, after) = (before.tensors.tensor(&t.name), after.tensors.tensor(&t.name));
        assert!(before.iter().zip(&*after).all(|(a, b)| (a - b).abs() <= 1e-6 * a.abs().max(1e-2)), "{}", t.name);
    }
    for (shape, words) in [
        (json!({"dim": 64, "heads": 2, "kv_heads": 1, "mlp": 192}), ["layers.0.mlp_sub_norm", "[128]", "[192]"]),
        (json!({"dim": 64, "heads": 4, "kv_heads": 2, "mlp": 128}), ["heads", "same `shape`", "init"]),
        (json!({"dim": 64, "heads": 2, "kv_heads": 1, "mlp": 128, "sub_norm": false}), ["layers.0.attn_sub_norm", "has not", "SubLN"]),
    ] {
        let error = run(&StudentStage, params(shape), &wired, &dir.path().join("refused")).expect_err("must refuse");
        let error = format!("{} {}", error.message, error.help.unwrap_or_default());
        words.iter().for_each(|w| assert!(error.contains(w), "{w}: {error}"));
    }
}

/// Masters of one rule are no weights of another.
#[test]
fn weights_of_another_rule_are_refused() {
    let dir = tempfile::tempdir().expect("a directory");
    let tokenizer = tokenizer("student-tokenizer-4096.json");
    let vocabulary = Tokenizer::load(&tokenizer).expect("reads");
    let config = |weights| ModelConfig { weights, ..harness::small_model(vocabulary.vocab_size()) };
    for (there, here, fits) in [
        (Weights::Float, Weights::Absmean, true),
        (Weights::Absmean, Weights::Absmean, true),
        (Weights::Threshold, Weights::Threshold, true),
        (Weights::Float, Weights::Float, true),
        (Weights::Absmean, Weights::Float, false),
        (Weights::Float, Weights::Threshold, false),
        (Weights::Threshold, Weights::Absmean, false),
    ] {
        let (to, theirs) = (dir.path().join(format!("{there:?} {here:?}")), config(there));
        let values: Vec<(String, Vec<f32>)> = theirs.tensors().iter().map(|t| (t.name.clone(), vec![0.25; t.len()])).collect();
        format::save(&to, &theirs, values.iter().map(|(n, v)| (n.as_str(), v.as_slice())), Some(&tokenizer), &json!({})).expect("writes");
        match start_from(&to, &config(here), &vocabulary) {
            Ok(start) => {
                assert!(fits, "{there:?} {here:?}");
                let all = config(here).tensors();
                assert!(all.iter().all(|t| start.values(&config(here), t, 1).iter().all(|v| *v == 0.25)), "scales are taken over too");
            }
            Err(e) => assert!(!fits && e.to_string().contains("weights"), "{there:?} {here:?}: {e}"),
        }
    }
}

/// A model that computes something else with the same linears is no start.
#[test]
fn other_options_of_the_shape_are_refused() {
    let dir = tempfile::tempdir().expect("a directory");
    let tokenizer = tokenizer("student-tokenizer-4096.json");
    let vocabulary = Tokenizer::load(&tokenizer).expect("reads");
    let config = ModelConfig { weights: Weights::Absmean, ..harness::small_model(vocabulary.vocab_size()) };
    let biased = ModelConfig { qkv_bias: true, ..config.clone() };
    let scaled = ModelConfig { rope_scaling: Some(RopeScaling::Linear { factor: 4.0 }), ..config.clone() };
    let grouped = ModelConfig { group: Group::Row, ..config.clone() };
    let cases = [
        (&config, &biased, "q_bias"),
        (&biased, &config, "q_bias"),
        (&scaled, &config, "RoPE is scaled"),
        (&grouped, &config, "other groups"),
    ];
    for (i, (there, here, wanted)) in cases.into_iter().enumerate() {
        let to = dir.path().join(i.to_string());
        let values: Vec<(String, Vec<f32>)> = there.tensors().iter().map(|t| (t.name.clone(), vec![0.25; t.len()])).collect();
        format::save(&to, there, values.iter().map(|(n, v)| (n.as_str(), v.as_slice())), Some(&tokenizer), &json!({})).expect("writes");
        let Err(error) = start_from(&to, here, &vocabulary) else { panic!("{i} is taken") };
        assert!(error.to_string().contains(wanted), "{error}");
    }
}

/// Over another vocabulary, a token begins as the mean of its pieces.
#[test]
fn tokens_that_the_model_has_not_begin_as_the_mean_of_their_pieces() {
    let dir = tempfile::tempdir().expect("a directory");
    let text = text(dir.path());
    let teacher = teacher(dir.path(), &text);
    let model = load(&teacher).expect("reads");
    let theirs = Tokenizer::load(&tokenizer("student-tokenizer-4096.json")).expect("reads");
    let ours = Tokenizer::load(&tokenizer("smollm2-tokenizer.json")).expect("reads");
    let config = ModelConfig { vocab: ours.vocab_size(), ..model.config.clone() };
    let start = start_from(&teacher, &config, &ours).expect("fits");
    let spec = |name: &str| config.tensors().into_iter().find(|t| t.name == name).expect(name);
    let (embed, table) = (start.values(&config, &spec("embed"), 1), model.tensors.tensor("embed"));
    let row = |table: &[f32], id: TokenId| table[id.index() * 64..][..64].to_vec();
    let mut several = 0;
    for id in (100..ours.vocab_size() as u32).step_by(997).map(TokenId) {
        let bytes = ours.token_bytes(id);
        let whole = (0..4096).map(TokenId).find(|t| !theirs.is_special(*t) && theirs.token_bytes(*t) == bytes);
        let pieces = whole.map_or_else(|| theirs.encode_bytes(bytes), |t| vec![t]);
        let mut want = [0f64; 64];
        for piece in &pieces {
            want.iter_mut().zip(row(&table, *piece)).for_each(|(w, x)| *w += f64::from(x) / pieces.len() as f64);
        }
        several += usize::from(pieces.len() > 1);
        assert!(row(&embed, id).iter().zip(want).all(|(a, w)| (f64::from(*a) - w).abs() < 1e-6), "token {id}");
    }
    assert!(several > 10, "{several} tokens of several pieces");
    assert_eq!(row(&embed, ours.bos()), row(&table, theirs.bos()));
    let linear: TensorSpec = spec("layers.0.q");
    assert_eq!(linear.role, Role::Linear);
    assert_eq!(start.values(&config, &linear, 1), model.tensors.tensor("layers.0.q").into_owned());
    // A special token without a name there is drawn.
    let only_ours = (0..ours.vocab_size() as u32).map(TokenId).find(|id| {
        ours.is_special(*id) && ![ours.bos(), ours.eos()].contains(id) && ours.name_of(*id).is_some_and(|n| theirs.id_of(&n).is_none())
    });
    let drawn = initial_values(&config, &spec("embed"), 1);
    assert_eq!(only_ours.map(|id| row(&embed, id)), only_ours.map(|id| row(&drawn, id)));
    assert!(only_ours.is_some());
}
