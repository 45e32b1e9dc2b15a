//! What is kept of a model: layers, heads and neurons, against activations that are computed here in float64.

mod common;
mod harness;

use std::collections::BTreeMap;

use common::golden_dir;
use flow_lm::config::{ModelConfig, Weights};
use flow_lm::format::tensors::TensorSource;
use flow_lm::format::{Checkpoint, load};
use flow_lm::infer::{Session, Uses, squares};
use flow_lm::tokenizer::TokenId;
use flow_lm::train::{Calibration, Carve, Carved, Layers};
use flow_shaders::device::{Device, open};
use harness::made_up;

fn cpu(threads: usize) -> Device {
    open("cpu", threads).expect("the CPU is always there")
}

fn family(name: &str) -> Checkpoint {
    load(&golden_dir().join("families").join(name)).expect(name)
}

fn checkpoint(config: ModelConfig, tensors: BTreeMap<String, Vec<f32>>) -> Checkpoint {
    Checkpoint { config, tensors: tensors.into(), extra: serde_json::Value::Null, tokenizer: None }
}

/// A full-precision model with SubLN.
fn with_sub_norm() -> Checkpoint {
    let config = ModelConfig { weights: Weights::Float, heads: 4, kv_heads: 2, head_dim: 8, layers: 2, ..harness::small_model(300) };
    let tensors = made_up(&config);
    checkpoint(config, tensors)
}

fn text(vocab: usize) -> Vec<TokenId> {
    let mut noise = common::noise(5);
    (0..150).map(|_| TokenId(((noise() + 0.5) * vocab as f32) as u32)).collect()
}

/// A calibration over 61 tokens: the last window is shorter than 16.
fn calibration<'a>(device: &'a Device, model: &Checkpoint) -> Calibration<'a> {
    Calibration::of(device, &text(model.config.vocab), TokenId(0), 16, 61, 3).expect("a text")
}

/// What attention gives and what the gated activation is, row by row, of each layer.
struct Flow {
    attention: Vec<Vec<f64>>,
    mlp: Vec<Vec<f64>>,
}

type Rows = Vec<Vec<f64>>;

fn normed(x: &[f64], g: &[f32], eps: f32) -> Vec<f64> {
    let mean = x.iter().map(|x| x * x).sum::<f64>() / x.len() as f64;
    x.iter().zip(g).map(|(x, g)| x / (mean + f64::from(eps)).sqrt() * f64::from(*g)).collect()
}

fn linear(x: &[f64], w: &[f32]) -> Vec<f64> {
    w.chunks_exact(x.len()).map(|row| row.iter().zip(x).map(|(w, x)| f64::from(*w) * x).sum()).collect()
}

/// Norms and rotates the heads of a row at a position.
fn heads(c: &ModelConfig, x: &mut [f64], norm: Option<&[f32]>, layer: usize, position: usize) {
    let half = c.head_dim / 2;
    for head in x.chunks_exact_mut(c.head_dim) {
        if let Some(g) = norm {
            head.copy_from_slice(&normed(head, g, c.norm_eps));
        }
        for i in (0..half).filter(|_| !c.no_rope.contains(&layer)) {
            let f = c.rope_theta.powf(-(i as f64) / half as f64);
            let angle = position as f64 * c.rope_scaling.as_ref().map_or(f, |s| f / s.divisor(i, f));
            let (a, b) = (head[i], head[i + half]);
            (head[i], head[i + half]) = (a * angle.cos() - b * angle.sin(), b * angle.cos() + a * angle.sin());
        }
    }
}

fn attention(c: &ModelConfig, q: &Rows, k: &Rows, v: &Rows) -> Rows {
    let (d, share) = (c.head_dim, c.heads / c.kv_heads);
    let of_head = |t: usize, h: usize| {
        let at = h / share * d;
        let dot = |s: usize| q[t][h * d..][..d].iter().zip(&k[s][at..]).map(|(q, k)| q * k).sum::<f64>() / (d as f64).sqrt();
        let weights: Vec<f64> = (0..=t).map(|s| dot(s).exp()).collect();
        let sum: f64 = weights.iter().sum();
        (0..d).map(move |i| weights.iter().enumerate().map(|(s, w)| w / sum * v[s][at + i]).sum::<f64>()).collect::<Vec<f64>>()
    };
    (0..q.len()).map(|t| (0..c.heads).flat_map(|h| of_head(t, h)).collect()).collect()
}

/// The reference: float linears and SiLU, in float64.
fn flows(c: &ModelConfig, tensors: &impl TensorSource, windows: &[Vec<TokenId>]) -> Vec<Flow> {
    let mut all: Vec<Flow> = (0..c.layers).map(|_| Flow { attention: Vec::new(), mlp: Vec::new() }).collect();
    let embed = tensors.tensor("embed");
    for window in windows {
        let mut x: Rows = window.iter().map(|t| embed[t.index() * c.dim..][..c.dim].iter().map(|x| f64::from(*x)).collect()).collect();
        for (l, flow) in all.iter_mut().enumerate() {
            let get = |part: &str| tensors.tensor(&format!("layers.{l}.{part}"));
            let norm = |part: &str, x: &[f64]| normed(x, &get(part), c.norm_eps);
            let sub_norm = |part: &str, x: &[f64]| if c.sub_norm { norm(part, x) } else { x.to_vec() };
            let project = |name: &str, of_heads: Option<&str>| -> Rows {
                let w = get(name);
                let row = |(t, x): (usize, &Vec<f64>)| {
                    let mut y = linear(&norm("attn_norm", x), &w);
                    if let Some(name) = of_heads {
                        let g = c.head_norm.then(|| get(name));
                        heads(c, &mut y, g.as_deref(), l, t);
                    }
                    y
                };
                x.iter().enumerate().map(row).collect()
            };
            let o = attention(c, &project("q", Some("q_norm")), &project("k", Some("k_norm")), &project("v", None));
            let (wo, gate, up, down) = (get("o"), get("gate"), get("up"), get("down"));
            for (x, o) in x.iter_mut().zip(&o) {
                x.iter_mut().zip(linear(&sub_norm("attn_sub_norm", o), &wo)).for_each(|(x, y)| *x += y);
                let h = norm("mlp_norm", x);
                let act: Vec<f64> = linear(&h, &gate).iter().zip(linear(&h, &up)).map(|(g, u)| g / (1.0 + (-g).exp()) * u).collect();
                x.iter_mut().zip(linear(&sub_norm("mlp_sub_norm", &act), &down)).for_each(|(x, y)| *x += y);
                flow.mlp.push(act);
            }
            flow.attention.extend(o);
        }
    }
    all
}

fn column_sums(rows: &Rows) -> Vec<f64> {
    (0..rows[0].len()).map(|c| rows.iter().map(|r| r[c] * r[c]).sum()).collect()
}

/// The `n` parts of `width` columns with the largest sums, ascending.
fn best(sums: &[f64], width: usize, n: usize) -> Vec<usize> {
    let mut scores: Vec<(usize, f64)> = sums.chunks(width).map(|p| p.iter().sum()).enumerate().collect();
    scores.sort_by(|a, b| b.1.partial_cmp(&a.1).expect("finite").then(a.0.cmp(&b.0)));
    let mut kept: Vec<usize> = scores[..n].iter().map(|s| s.0).collect();
    kept.sort_unstable();
    kept
}

fn models() -> [(&'static str, Checkpoint); 4] {
    [("qwen 3", family("tiny-qwen3")), ("llama 3", family("tiny-llama3")), ("smollm 3", family("tiny-smollm3")), ("SubLN", with_sub_norm())]
}

#[test]
fn heads_and_neurons_are_those_through_which_most_flows() {
    let device = cpu(2);
    for (name, model) in models() {
        let (c, tensors) = (model.config.clone(), model.tensors.clone());
        let calibration = calibration(&device, &model);
        assert_eq!((calibration.tokens(), calibration.windows().len()), (61, 4));
        let flows = flows(&c, &tensors, calibration.windows());
        let measured = squares(&device, &c, &tensors, 16, calibration.windows()).expect("runs");
        let entering = |l: usize, part: &str, rows: &Rows| -> Rows {
            let g = c.sub_norm.then(|| tensors.tensor(&format!("layers.{l}.{part}")));
            rows.iter().map(|r| g.as_ref().map_or(r.clone(), |g| normed(r, g, c.norm_eps))).collect()
        };
        let wanted: Vec<(Vec<f64>, Vec<f64>)> = flows
            .iter()
            .enumerate()
            .map(|(l, f)| (column_sums(&entering(l, "attn_sub_norm", &f.attention)), column_sums(&entering(l, "mlp_sub_norm", &f.mlp))))
            .collect();
        for (l, (measured, wanted)) in measured.iter().zip(&wanted).enumerate() {
            for (s, wanted) in [(&measured.attention, &wanted.0), (&measured.mlp, &wanted.1)] {
                let found = if c.sub_norm { &s.normed } else { &s.raw };
                let close = found.iter().zip(wanted).all(|(a, b)| (f64::from(*a) - b).abs() <= 1e-3 * b.abs().max(1e-12));
                assert!(close && found.len() == wanted.len(), "{name}, layer {l}");
            }
        }
        let (heads, mlp) = (c.heads / c.kv_heads, c.mlp / 2);
        let carve = Carve { layers: Layers::These(vec![1, 0]), heads: Some(heads), mlp: Some(mlp), insert_sub_norm: false };
        let carved = Carved::of(model, &carve, Some(&calibration)).expect("carves");
        let (width, d) = (heads * c.head_dim, c.head_dim);
        assert_eq!((carved.config().heads, carved.config().kv_heads, carved.config().mlp), (heads, 1, mlp));
        for (layer, from) in carved.layers().iter().zip([1, 0]) {
            assert_eq!(layer.from, from, "{name}");
            assert_eq!(layer.kv_heads, Some(best(&wanted[from].0, width, 1)), "{name}, layer {from}");
            assert_eq!(layer.neurons, Some(best(&wanted[from].1, 1, mlp)), "{name}, layer {from}");
        }
        // Elements are those of the kept rows and columns, whatever the tensor.
        for t in carved.config().tensors().iter().filter(|t| t.name.starts_with("layers.")) {
            let (l, part) = t.name["layers.".len()..].split_once('.').expect("a layer's tensor");
            let layer = &carved.layers()[l.parse::<usize>().expect("a number")];
            let (group, neurons) = (layer.kv_heads.as_ref().expect("chosen")[0], layer.neurons.as_ref().expect("chosen"));
            let whole = tensors.tensor(&format!("layers.{}.{part}", layer.from));
            let found = carved.tensor(&t.name);
            assert_eq!(found.len(), t.len(), "{name}, {}", t.name);
            let (rows, cols) = (t.shape[0], t.shape.get(1).copied().unwrap_or(1));
            let at = |r: usize, c_: usize| match part {
                "q" | "attn_sub_norm" => (group * width + r) * cols + c_,
                "k" | "v" => (group * d + r) * cols + c_,
                "o" => r * c.heads * d + group * width + c_,
                "gate" | "up" | "mlp_sub_norm" => neurons[r] * cols + c_,
                "down" => r * c.mlp + neurons[c_],
                _ => r * cols + c_,
            };
            let same = (0..rows).all(|r| (0..cols).all(|c_| found[r * cols + c_] == whole[at(r, c_)]));
            assert!(same, "{name}, {}", t.name);
        }
    }
}

/// Heads and neurons that are copies of each other.
#[test]
fn ties_go_to_the_lower_index() {
    let config = ModelConfig { sub_norm: false, ..with_sub_norm().config };
    let mut tensors = made_up(&config);
    for (name, values) in tensors.iter_mut().filter(|(n, _)| n.starts_with("layers.")) {
        let rows = match name.rsplit('.').next() {
            Some("gate" | "up") => 1,
            Some("q") => config.heads / config.kv_heads * config.head_dim,
            Some("k" | "v") => config.head_dim,
            _ => continue,
        };
        let first = values[..rows * config.dim].to_vec();
        values.chunks_exact_mut(first.len()).for_each(|part| part.copy_from_slice(&first));
    }
    let (device, model) = (cpu(2), checkpoint(config, tensors));
    let calibration = calibration(&device, &model);
    let carve = Carve { heads: Some(2), mlp: Some(20), ..Carve::default() };
    let carved = Carved::of(model, &carve, Some(&calibration)).expect("carves");
    for layer in carved.layers() {
        assert_eq!((&layer.kv_heads, &layer.neurons), (&Some(vec![0]), &Some((0..20).collect())));
    }
}

#[test]
fn layers_are_kept_as_they_are_named() {
    let model = family("tiny-smollm3");
    assert_eq!((model.config.layers, &model.config.no_rope[..]), (4, &[3][..]));
    for (layers, kept, no_rope) in [
        (Layers::All, vec![0, 1, 2, 3], vec![3]),
        (Layers::Every(2), vec![0, 2], vec![]),
        (Layers::Every(3), vec![0, 3], vec![1]),
        (Layers::These(vec![3, 0, 3]), vec![3, 0, 3], vec![0, 2]),
    ] {
        let carved = Carved::of(model.clone(), &Carve { layers, ..Carve::default() }, None).expect("carves");
        assert_eq!(carved.config(), &ModelConfig { layers: kept.len(), no_rope, ..model.config.clone() });
        for t in carved.config().tensors() {
            let there = match t.name.strip_prefix("layers.").and_then(|rest| rest.split_once('.')) {
                Some((l, part)) => format!("layers.{}.{part}", kept[l.parse::<usize>().expect("a number")]),
                None => t.name.clone(),
            };
            assert_eq!(carved.tensor(&t.name), model.tensors.tensor(&there), "{}", t.name);
        }
    }
}

#[test]
fn the_norms_that_are_put_in_keep_the_scale() {
    let device = cpu(2);
    for name in ["tiny-qwen3", "tiny-llama3"] {
        let model = family(name);
        let calibration = calibration(&device, &model);
        let carve = Carve { layers: Layers::Every(2), mlp: Some(100), insert_sub_norm: true, ..Carve::default() };
        let plain = Carved::of(model.clone(), &Carve { insert_sub_norm: false, ..carve.clone() }, Some(&calibration)).expect("carves");
        let carved = Carved::of(model, &carve, Some(&calibration)).expect("carves");
        assert_eq!(carved.config(), &ModelConfig { sub_norm: true, ..plain.config().clone() });
        // In the mean over tokens, the mean square behind the norm is that before it, of what flows in the carved model.
        let eps = f64::from(carved.config().norm_eps);
        for (l, flow) in flows(plain.config(), &plain, calibration.windows()).iter().enumerate() {
            for (part, rows) in [("attn_sub_norm", &flow.attention), ("mlp_sub_norm", &flow.mlp)] {
                let g = carved.tensor(&format!("layers.{l}.{part}"));
                assert!(g.len() == rows[0].len() && g.iter().all(|x| *x == g[0]), "{name}, layer {l}, {part}");
                let squares: Vec<f64> = rows.iter().map(|r| r.iter().map(|x| x * x).sum::<f64>() / r.len() as f64).collect();
                let before: f64 = squares.iter().sum();
                let after: f64 = squares.iter().map(|s| f64::from(g[0]).powi(2) * s / (s + eps)).sum();
                assert!((after / before - 1.0).abs() < 1e-4, "{name}, layer {l}, {part}: {before} became {after}");
            }
        }
        let logits = |carved: &Carved| {
            let uses = Uses { score: Some((1, 16)), logits: true, ..Uses::default() };
            let mut session = Session::new(&device, carved.config().clone(), carved, uses).expect("a session");
            session.logits(&calibration.windows()[0], &[1; 16]).expect("logits")
        };
        let (before, after) = (logits(&plain), logits(&carved));
        let norm = |x: &mut dyn Iterator<Item = f32>| x.map(|x| f64::from(x).powi(2)).sum::<f64>().sqrt();
        let off = norm(&mut before.iter().zip(&after).map(|(a, b)| a - b)) / norm(&mut before.iter().copied());
        println!("{name}: logits differ by {off:.3} of their norm");
        assert!(off < 0.35, "{name}: logits differ by {off} of their norm");
    }
}

/// Ternary models, packed in their file, are measured as they run.
#[test]
fn the_same_bits_on_any_number_of_threads_and_in_any_batch() {
    let ternary = load(&golden_dir().join("families/tiny-qwen3-ternary-g64/model.gguf")).expect("loads");
    for (name, model) in [("qwen 3", family("tiny-qwen3")), ("ternary", ternary)] {
        let (one, two) = (cpu(1), cpu(2));
        let windows = calibration(&one, &model).windows().to_vec();
        let on = |device: &Device, seq: usize| squares(device, &model.config, &model.tensors, seq, &windows).expect("runs");
        let all = on(&one, 16);
        assert!(all == on(&two, 16), "{name}: threads");
        // Windows of 512 are read two at a time, those of 16 all together.
        assert!(all == on(&two, 512), "{name}: batches");
        let carve = Carve { heads: Some(model.config.heads / model.config.kv_heads), mlp: Some(128), ..Carve::default() };
        let kept =
            |device: &Device| Carved::of(model.clone(), &carve, Some(&calibration(device, &model))).expect("carves").layers().to_vec();
        assert_eq!(kept(&one), kept(&two), "{name}");
    }
}

#[test]
fn what_cannot_be_kept_is_refused() {
    let (plain, normed) = (family("tiny-qwen3").config, with_sub_norm().config);
    let these = |layers: &[usize]| Carve { layers: Layers::These(layers.to_vec()), ..Carve::default() };
    for (config, carve, wanted) in [
        (&plain, these(&[0, 4]), "no layer 4: the model has 4, 0 to 3"),
        (&plain, these(&[]), "no layer is kept"),
        (&plain, Carve { heads: Some(3), ..Carve::default() }, "3 of 4 query heads: those that share a KV head, 2, stay together"),
        (&plain, Carve { heads: Some(6), ..Carve::default() }, "6 of 4 query heads"),
        (&plain, Carve { mlp: Some(193), ..Carve::default() }, "193 of 192 neurons"),
        (&normed, Carve { insert_sub_norm: true, ..Carve::default() }, "the model has SubLN"),
    ] {
        let error = carve.shape(config).expect_err(wanted);
        assert!(error.to_string().contains(wanted) && error.help.is_some(), "{wanted}: {error}");
    }
    let error =
        Carved::of(family("tiny-qwen3"), &Carve { mlp: Some(64), ..Carve::default() }, None).map(drop).expect_err("nothing to measure");
    assert!(error.to_string().contains("over a text"), "{error}");
}
