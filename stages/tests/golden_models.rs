//! Whole models against their recorded logits: Hugging Face directories and a ternary GGUF file.

mod common;

use std::collections::BTreeMap;

use common::{Golden, devices, golden_dir};
use flow_lm::config::{Activation, ModelConfig, Role, Weights};
use flow_lm::format::gguf::GgufFile;
use flow_lm::format::tensors::TensorSource;
use flow_lm::format::ternary::masters;
use flow_lm::format::{load, load_as};
use flow_lm::infer::{Choice, Sampling, Session, Uses};
use flow_lm::tokenizer::TokenId;
use flow_shaders::device::{Device, open};

type Tensors = BTreeMap<String, Vec<f32>>;

/// Logits `[batch · seq, vocab]` at A8.
fn logits(
    device: &Device,
    config: &ModelConfig,
    tensors: &impl TensorSource,
    (batch, seq): (usize, usize),
    ids: &[TokenId],
    mask: &[u32],
) -> Vec<f32> {
    let uses = Uses { score: Some((batch, seq)), logits: true, ..Uses::default() };
    let mut model = Session::new(device, config.clone(), tensors, uses).unwrap();
    model.logits(ids, mask).unwrap()
}

/// Largest difference in units of what is allowed, over the rows whose mask is 1.
fn compare(what: &str, got: &[f32], want: &[f32], mask: &[u32], rtol: f32, atol: f32) -> f32 {
    assert_eq!(got.len(), want.len(), "{what}");
    let vocab = want.len() / mask.len();
    let mut worst = 0f32;
    for (i, (g, w)) in got.iter().zip(want).enumerate().filter(|(i, _)| mask[i / vocab] == 1) {
        let (error, allowed) = ((g - w).abs(), atol + rtol * w.abs());
        assert!(error <= allowed, "{what}: row {} token {}: {g} against {w}", i / vocab, i % vocab);
        worst = worst.max(error / allowed);
    }
    worst
}

/// A directory of `models/` with `expected.json` and `expected.safetensors`.
fn directory(name: &str, weights: Option<Weights>) {
    let model = load_as(&golden_dir().join("models").join(name), weights).expect("loads");
    let expected = Golden::file(&format!("models/{name}/expected.safetensors"), &format!("models/{name}/expected.json"));
    let shape = expected.shape("input_ids");
    let ids: Vec<TokenId> = expected.i32("input_ids").into_iter().map(|t| TokenId(t as u32)).collect();
    let mask: Vec<u32> = expected.u8("attention_mask").into_iter().map(u32::from).collect();
    let tolerance = |key: &str| expected.about[key].as_f64().expect("a number") as f32;
    for device in devices() {
        let got = logits(&device, &model.config, &model.tensors, (shape[0], shape[1]), &ids, &mask);
        let worst = compare(name, &got, &expected.f32("logits"), &mask, tolerance("rtol"), tolerance("atol"));
        println!("{name} on {}: {worst:.3} of the tolerance", device.name());
    }
}

#[test]
fn golden_tiny_llama_logits() {
    directory("tiny-llama", None);
}

#[test]
fn golden_tiny_bitnet_logits() {
    directory("tiny-bitnet", None);
}

/// Its `expected.json`: the same architecture with plain linears.
#[test]
fn golden_tiny_bitnet_unquantized_logits() {
    assert_eq!(load(&golden_dir().join("models/tiny-bitnet-unquantized")).expect("loads").config.weights, Weights::Absmean);
    directory("tiny-bitnet-unquantized", Some(Weights::Float));
}

/// Name of one of our tensors in a GGUF file of llama.cpp's architecture `bitnet`.
fn gguf_name(ours: &str) -> String {
    let Some((layer, part)) = ours.strip_prefix("layers.").and_then(|r| r.split_once('.')) else {
        return match ours {
            "embed" => "token_embd.weight".into(),
            "norm" => "output_norm.weight".into(),
            other => panic!("{other}: the file is tied"),
        };
    };
    let part = match part {
        "mlp_norm" => "ffn_norm",
        "mlp_sub_norm" => "ffn_sub_norm",
        "q" => "attn_q",
        "k" => "attn_k",
        "v" => "attn_v",
        "o" => "attn_output",
        "gate" => "ffn_gate",
        "up" => "ffn_up",
        "down" => "ffn_down",
        same => same,
    };
    format!("blk.{layer}.{part}.weight")
}

/// As for the directories. The reference ran on the file's own scales, which TQ2_0 holds as f16: so do we, and no
/// difference of 2^-11 between a scale and its f16 enters.
const GGUF_TOLERANCE: f32 = 2e-4;

#[test]
fn golden_gguf_student_logits() {
    let expected = Golden::file("gguf/student-expected.safetensors", "gguf/student-expected.json");
    let c = &expected.about["config"];
    let n = |key: &str| c[key].as_u64().expect("a count") as usize;
    let config = ModelConfig {
        vocab: expected.about["vocab"].as_u64().expect("a count") as usize,
        dim: n("dim"),
        layers: n("layers"),
        heads: n("heads"),
        kv_heads: n("kv"),
        head_dim: n("hd"),
        mlp: n("ff"),
        seq: n("ctx"),
        rope_theta: c["theta"].as_f64().expect("a number"),
        norm_eps: c["eps"].as_f64().expect("a number") as f32,
        activation: Activation::Silu,
        weights: Weights::Absmean,
        sub_norm: true,
        tied: true,
        ..ModelConfig::plain()
    };
    let file = GgufFile::read(&golden_dir().join("gguf/student-tq2_0.gguf")).expect("reads");
    let stored: Tensors = config.tensors().iter().map(|t| (t.name.clone(), file.floats(&gguf_name(&t.name)).expect("tensor"))).collect();
    // Linears hold code · d with one d per tensor: as masters they ternarise to those codes and that scale again.
    let mut packed = stored.clone();
    for t in config.tensors().iter().filter(|t| t.role == Role::Linear) {
        let values = packed.get_mut(&t.name).expect("every tensor");
        let scale = values.iter().fold(0f32, |m, v| m.max(v.abs()));
        let codes: Vec<i8> = values.iter().map(|v| (v / scale) as i8).collect();
        assert!(values.iter().zip(&codes).all(|(v, c)| *v == f32::from(*c) * scale), "{}: one scale a tensor", t.name);
        *values = masters(&codes, scale);
    }
    let plain = ModelConfig { weights: Weights::Float, ..config.clone() };
    let ids: Vec<TokenId> = expected.i32("ids").into_iter().map(|t| TokenId(t as u32)).collect();
    let mask = vec![1; ids.len()];
    for device in devices() {
        for (name, config, tensors) in [("logits_a8", &config, &packed), ("logits_fp", &plain, &stored)] {
            let got = logits(&device, config, tensors, (1, ids.len()), &ids, &mask);
            let worst = compare(name, &got, &expected.f32(name), &mask, GGUF_TOLERANCE, GGUF_TOLERANCE);
            println!("{name} on {}: {worst:.3} of the tolerance", device.name());
        }
    }
}

/// A prompt that is read by tiles leads on as one that is read token by token, from full and from short chunks, and the
/// float16 head and the packed blocks of the file give what their floats give.
#[test]
fn prompts_read_together_go_on_as_read_one_by_one() {
    let path = golden_dir().join("gguf/student-tq2_0.gguf");
    let (config, tensors) = flow_lm::format::gguf::model::load(GgufFile::read(&path).expect("reads")).expect("loads");
    assert!(config.weights == Weights::Absmean && tensors.packed("layers.0.gate").is_some());
    let floats: Tensors = config.tensors().iter().map(|t| (t.name.clone(), tensors.tensor(&t.name).into_owned())).collect();
    let (n, prompt, decode) = (2, 21, 6);
    let ids: Vec<TokenId> = (0..n * prompt).map(|i| TokenId((i * 37 % config.vocab) as u32)).collect();
    for device in devices() {
        let one_by_one = |lm: &mut Session| {
            let mut next = Vec::new();
            for t in 0..prompt {
                let column: Vec<TokenId> = ids.chunks(prompt).map(|s| s[t]).collect();
                next = lm.step(&column, &[t as u32; 2]).unwrap();
            }
            next
        };
        let go_on = |lm: &mut Session, mut next: Vec<TokenId>| {
            let mut all = next.clone();
            for t in 0..decode {
                next = lm.step(&next, &[(prompt + t) as u32; 2]).unwrap();
                all.extend(&next);
            }
            all
        };
        let uses = |prefill| Uses { decode: Some((n, 40)), prefill, ..Uses::default() };
        let mut lm = Session::new(&device, config.clone(), &floats, uses(0)).unwrap();
        let next = one_by_one(&mut lm);
        let want = go_on(&mut lm, next);
        for chunk in [8, 16] {
            let mut lm = Session::new(&device, config.clone(), &tensors, uses(chunk)).unwrap();
            let mut next = Vec::new();
            for first in (0..prompt).step_by(chunk) {
                let len = chunk.min(prompt - first);
                let part: Vec<TokenId> = ids.chunks(prompt).flat_map(|s| s[first..first + len].to_vec()).collect();
                next = lm.prefill(&part, first, len).unwrap();
            }
            assert_eq!(go_on(&mut lm, next), want, "chunks of {chunk} on {}", device.name());
        }
    }
}

/// Beginnings of different lengths are read together as they are read beside others: a sequence goes on with the same
/// tokens, whatever its neighbours are.
#[test]
fn beginnings_of_different_lengths_do_not_touch_each_other() {
    let path = golden_dir().join("gguf/student-tq2_0.gguf");
    let (config, tensors) = flow_lm::format::gguf::model::load(GgufFile::read(&path).expect("reads")).expect("loads");
    let starts: Vec<Vec<TokenId>> =
        [19usize, 0, 9, 33].iter().map(|n| (0..*n).map(|t| TokenId(((n * 31 + t * 37) % config.vocab) as u32)).collect()).collect();
    let go_on = |order: [usize; 4]| {
        let uses = Uses { decode: Some((4, 56)), prefill: 8, ..Uses::default() };
        let mut lm = Session::new(&open("cpu", 2).unwrap(), config.clone(), &tensors, uses).unwrap();
        lm.read_starts(&order.map(|i| &starts[i][..])).unwrap();
        let (mut next, mut all) = (order.map(|i| TokenId(i as u32 + 5)).to_vec(), vec![Vec::new(); 4]);
        for t in 0..12 {
            let pos = order.map(|i| (starts[i].len() + t) as u32);
            next = lm.step(&next, &pos).unwrap();
            order.iter().zip(&next).for_each(|(i, id)| all[*i].push(*id));
        }
        all
    };
    let all = go_on([0, 1, 2, 3]);
    assert_eq!(all, go_on([3, 2, 0, 1]));
    // Read step by step, the longest one goes on the same way.
    let mut lm =
        Session::new(&open("cpu", 2).unwrap(), config.clone(), &tensors, Uses { decode: Some((1, 56)), ..Uses::default() }).unwrap();
    starts[3].iter().enumerate().for_each(|(t, id)| drop(lm.step(&[*id], &[t as u32]).unwrap()));
    let mut next = vec![TokenId(8)];
    for (t, want) in all[3].iter().enumerate() {
        next = lm.step(&next, &[(starts[3].len() + t) as u32]).unwrap();
        assert_eq!(next[0], *want, "token {t}");
    }
}

/// A sequence goes on with the same tokens however many others are decoded beside it: full precision, and ternary with a
/// float16 head.
#[test]
fn the_number_of_sequences_changes_no_token() {
    let path = golden_dir().join("gguf/student-tq2_0.gguf");
    let ternary = flow_lm::format::gguf::model::load(GgufFile::read(&path).expect("reads")).expect("loads");
    let llama = flow_lm::format::load(&golden_dir().join("models/tiny-llama")).expect("loads");
    for device in devices() {
        for (config, tensors) in [&ternary, &(llama.config.clone(), llama.tensors.clone())] {
            let start: Vec<TokenId> = (0..9).map(|t| TokenId(t * 37 % config.vocab as u32)).collect();
            let sampling = Sampling::nucleus(1.5, 1.0, 0);
            let go_on = |n: usize| {
                let uses = Uses { decode: Some((n, 40)), prefill: 8, draws: true, ..Uses::default() };
                let mut lm = Session::new(&device, config.clone(), tensors, uses).unwrap();
                lm.read_starts(&vec![&start[..]; n]).unwrap();
                let (mut next, mut all) = (vec![TokenId(3); n], Vec::new());
                for t in 0..16 {
                    // Drawn, so that a rounding shows in more places than between the two most likely tokens.
                    let drawn = Choice { sampling: &sampling, tokens: &[], prompt: 0, uniform: (t as f32 * 0.619).fract(), tell: false };
                    next = lm.step_with(0, &next, &vec![9 + t; n], &vec![drawn; n]).unwrap().into_iter().map(|n| n.token).collect();
                    assert!(next.iter().all(|id| *id == next[0]), "{n} equal sequences on {}", device.name());
                    all.push(next[0]);
                }
                all
            };
            let one = go_on(1);
            for n in [2, 3, 8, 17, 20] {
                assert_eq!(go_on(n), one, "{n} sequences on {}", device.name());
            }
        }
    }
}
