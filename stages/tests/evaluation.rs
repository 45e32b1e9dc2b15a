//! Bits per byte against the definition, on models whose every probability is known by hand.

mod harness;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use flow_engine::plugin::TaskContext;
use flow_lm::config::ModelConfig;
use flow_lm::format::Checkpoint;
use flow_lm::infer::Session;
use flow_lm::rng::Rng;
use flow_lm::tokenizer::{Tokenizer, train};
use flow_stages::eval::quality::{Heldout, bits_of, bits_per_byte, scorer};
use flow_stages::eval::windows::{self, Read};
use serde_json::Value;

const TEXT: &str =
    "the cat sat on the mat and the rat ran to the cat; the hat, the bat: that is that. Ten cats, ten mats — and naïve rats.";

fn tokenizer(vocab: usize) -> Tokenizer {
    let json = train(TEXT, vocab, &["<|endoftext|>".to_owned()], 1).expect("trains");
    Tokenizer::from_bytes(json.as_bytes()).expect("reads")
}

/// A model that looks at the last token alone: its blocks add nothing, each embedding is a direction of its own, and the head
/// gives each the logits of a row of `table`.
struct Bigram {
    checkpoint: Checkpoint,
    /// Logits `[vocab][vocab]` of the next token after each.
    table: Vec<Vec<f64>>,
}

fn bigram(vocab: usize, seq: usize, seed: u64) -> Bigram {
    let dim = vocab.next_multiple_of(16);
    let shape = ModelConfig { vocab, dim, layers: 1, heads: 1, kv_heads: 1, head_dim: 16, mlp: 16, seq, ..ModelConfig::plain() };
    let config = ModelConfig { tied: false, norm_eps: 1e-12, ..shape };
    let mut rng = Rng::new(seed, "bigrams");
    let table: Vec<Vec<f64>> = (0..vocab).map(|_| (0..vocab).map(|_| f64::from(4.0 * rng.uniform() - 2.0)).collect()).collect();
    // A unit vector of length `dim` has a root mean square of 1 / √dim, which the norm takes out.
    let gain = (dim as f64).sqrt();
    let mut tensors: BTreeMap<String, Vec<f32>> = BTreeMap::new();
    for spec in config.tensors() {
        let values = match spec.name.as_str() {
            "embed" => (0..vocab * dim).map(|i| f32::from(u8::from(i / dim == i % dim))).collect(),
            "head" => (0..vocab * dim).map(|i| if i % dim < vocab { (table[i % dim][i / dim] / gain) as f32 } else { 0.0 }).collect(),
            name if name.ends_with("norm") => vec![1.0; spec.len()],
            _ => vec![0.0; spec.len()],
        };
        tensors.insert(spec.name, values);
    }
    Bigram { checkpoint: Checkpoint { config, tensors: tensors.into(), extra: Value::Null, tokenizer: None }, table }
}

impl Bigram {
    /// −log2 p of a token after another.
    fn bits(&self, before: usize, token: usize) -> f64 {
        let row = &self.table[before];
        let sum: f64 = row.iter().map(|z| z.exp()).sum();
        (sum.ln() - row[token]) / std::f64::consts::LN_2
    }

    /// Bits of a text per byte, where the first token of each window has BOS before it.
    fn by_hand(&self, tokenizer: &Tokenizer, tokens: &[usize], bytes: usize, windows: &[(usize, usize, usize)]) -> f64 {
        let bos = tokenizer.bos().index();
        let of = |(from, to, skip): &(usize, usize, usize)| -> f64 {
            (from + skip..*to).map(|i| self.bits(if i == *from { bos } else { tokens[i - 1] }, tokens[i])).sum()
        };
        windows.iter().map(of).sum::<f64>() / bytes as f64
    }
}

fn with_context(test: impl FnOnce(&TaskContext)) {
    let dir = tempfile::tempdir().expect("dir");
    let sink = Arc::new(harness::Events::default());
    test(&TaskContext::new(harness::task(dir.path()), sink, Arc::new(AtomicBool::new(false))));
}

fn session(of: &Bigram) -> Session {
    scorer(&flow_shaders::device::open("cpu", 2).expect("the CPU"), &of.checkpoint, 0).expect("fits")
}

fn close(found: f64, wanted: f64, what: &str) {
    assert!((found - wanted).abs() < 2e-5 * wanted, "{what}: {found}, by hand {wanted}");
}

#[test]
fn every_byte_is_scored_once_in_windows_of_the_models_length() {
    let (vocab, seq) = (280, 8);
    let (tokenizer, model) = (tokenizer(vocab), bigram(vocab, seq, 1));
    let text = Heldout::unjudged(&tokenizer, TEXT);
    let tokens: Vec<usize> = text.tokens.iter().map(|t| t.index()).collect();
    let n = tokens.len();
    assert!(n > 4 * seq && !n.is_multiple_of(seq) && text.fidelity.is_exact());
    let plain: Vec<_> = (0..n.div_ceil(seq)).map(|i| (i * seq, n.min((i + 1) * seq), 0)).collect();
    // Each window begins half a window after the last; what that one scored is only read.
    let mut sliding = vec![(0, seq, 0)];
    while sliding.last().is_some_and(|w| w.1 < n) {
        let from = sliding.len() * seq / 2;
        sliding.push((from, n.min(from + seq), seq / 2));
    }
    with_context(|ctx| {
        let mut lm = session(&model);
        let by_hand = |windows: &[(usize, usize, usize)]| model.by_hand(&tokenizer, &tokens, TEXT.len(), windows);
        close(bits_per_byte(&mut lm, &text, false, ctx).expect("scores"), by_hand(&plain), "plain");
        close(bits_per_byte(&mut lm, &text, true, ctx).expect("scores"), by_hand(&sliding), "sliding");
        // Of a model that looks back by one token, windows matter for their first one alone; they do matter.
        assert!((by_hand(&plain) - by_hand(&sliding)).abs() > 1e-4);
    });
}

#[test]
fn both_sides_see_the_same_bytes_in_the_windows_of_equal_context() {
    let (ours, theirs) = (tokenizer(280), tokenizer(300));
    let (student, teacher) = (bigram(280, 6, 2), bigram(300, 16, 3));
    let (a, b) = (Heldout::unjudged(&ours, TEXT), Heldout::unjudged(&theirs, TEXT));
    let ends = (windows::ends(&ours, &a).expect("exact"), windows::ends(&theirs, &b).expect("exact"));
    let shared = windows::shared((&ends.0, 6), (&ends.1, 16)).expect("they meet");
    assert!(shared.len() > TEXT.len() / 6 / 6 && a.tokens.len() > b.tokens.len());
    with_context(|ctx| {
        for (of, tokenizer, text, side) in [(&student, &ours, &a, 0), (&teacher, &theirs, &b, 1)] {
            let ranges: Vec<_> = shared.iter().map(|w| if side == 0 { w.0.clone() } else { w.1.clone() }).collect();
            let reads: Vec<Read> = ranges.iter().map(|r| Read { tokens: r.clone(), skip: 0 }).collect();
            let whole: Vec<_> = ranges.iter().map(|r| (r.start, r.end, 0)).collect();
            let tokens: Vec<usize> = text.tokens.iter().map(|t| t.index()).collect();
            let found = bits_of(&mut session(of), text, &reads, ctx).expect("scores");
            close(found, of.by_hand(tokenizer, &tokens, TEXT.len(), &whole), "equal context");
        }
    });
}

#[test]
fn tokens_end_where_their_bytes_do_also_behind_a_space_that_a_tokenizer_adds() {
    let json = serde_json::json!({"version": "1.0", "added_tokens": [], "pre_tokenizer": null,
        "normalizer": {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "▁"},
            {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}]},
        "decoder": {"type": "Sequence", "decoders": [{"type": "Replace", "pattern": {"String": "▁"}, "content": " "}, {"type": "ByteFallback"}, {"type": "Fuse"}]},
        "model": {"type": "BPE", "unk_token": "<unk>", "byte_fallback": true, "fuse_unk": true, "ignore_merges": false,
                  "vocab": {"<unk>": 0, "▁": 1, "a": 2, "b": 3, "▁a": 4}, "merges": ["▁ a"]}});
    let adds = Tokenizer::from_bytes(json.to_string().as_bytes()).expect("reads");
    let of = |text: &str| windows::ends(&adds, &Heldout::unjudged(&adds, text));
    // ▁a b ▁a: the first space is nobody's.
    assert_eq!(of("ab a"), Some(vec![1, 2, 4]));
    assert_eq!(of("ab c"), None, "c is lost");
}
