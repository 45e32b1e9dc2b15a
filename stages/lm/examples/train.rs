//! Learns a tokenizer and a small ternary model from a text, and saves it:
//! `cargo run --release -p flow-lm --example train -- TEXT.txt DIR`

use flow_lm::config::{ModelConfig, Preset};
use flow_lm::format::save;
use flow_lm::tokenizer::{self, Tokenizer};
use flow_lm::train::{Loader, LossWeights, Recipe, Training, Windows, train};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut args = std::env::args().skip(1);
    let (Some(path), Some(dir)) = (args.next(), args.next()) else { return Err("give a text and a directory".into()) };
    let text = std::fs::read_to_string(path)?;
    let json = tokenizer::train(&text, 1024, &["<|endoftext|>".into()], 2).map_err(flow_lm::Error::from)?;
    let tokenizer = Tokenizer::from_bytes(json.as_bytes())?;
    let config = ModelConfig { vocab: 1024, layers: 2, ..Preset::Poc.config() };
    let windows = Windows::of_text(&tokenizer.encode(&text), config.seq, tokenizer.bos());
    let (recipe, weights) = (Recipe::default(), LossWeights { kd: 0.0, ce: 1.0, format: 0.0 });
    let (budget_tokens, flip_fraction) = (50_000, Some(0.9));
    let job = Training {
        config: config.clone(),
        recipe: &recipe,
        weights,
        tau: 1.0,
        budget_tokens,
        flip_fraction,
        start: None,
        validation: None,
        ternary: Default::default(),
        teacher: None,
    };
    let device = flow_shaders::device::open("auto", 0)?;
    let trained = train::<flow_lm::Error>(&job, &mut Loader::of(windows, 1), &device, &())?.ok_or("nobody stops it")?;
    println!("loss {:.3} after {} steps", trained.progress.curve.last().map_or(0.0, |p| p.loss), trained.progress.step);
    std::fs::create_dir_all(&dir)?;
    let tokens = std::path::Path::new(&dir).join("tokenizer.json");
    std::fs::write(&tokens, json)?;
    let tensors = trained.tensors.iter().map(|(name, values)| (name.as_str(), values.as_slice()));
    Ok(save(dir.as_ref(), &config, tensors, None, &serde_json::json!({"activation_bits": 4}))?)
}
