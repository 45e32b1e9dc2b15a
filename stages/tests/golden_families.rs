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
