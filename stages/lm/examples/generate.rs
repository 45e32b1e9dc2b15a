//! Loads a model (a GGUF file or a directory) and continues a prompt:
//! `cargo run --release -p flow-lm --example generate -- MODEL "Once upon a time"`

use std::io::Write;

use flow_lm::format::load_with_tokenizer;
use flow_lm::infer::{Generator, Request, Sampling, Session, Uses};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut args = std::env::args().skip(1);
    let (Some(path), Some(text)) = (args.next(), args.next()) else { return Err("give a model and a prompt".into()) };
    let (model, tokenizer) = load_with_tokenizer(path.as_ref())?;
    let device = flow_shaders::device::open("auto", 0)?;
    let uses = Uses { decode: Some((1, model.config.seq.min(512))), draws: true, prefill: 32, ..Uses::default() };
    let mut session = Session::new(&device, model.config.clone(), &model.tensors, uses)?;
    let mut generator = Generator::new(&mut session);
    let (prompt, ends) = (tokenizer.context(&text), tokenizer.ends().to_vec());
    generator.join(Request { prompt, ends, max_tokens: 100, sampling: Sampling::nucleus(0.8, 0.95, 1234), ..Request::default() })?;
    while !generator.is_idle() {
        for token in generator.step()?.into_iter().filter_map(|event| event.token) {
            std::io::stdout().write_all(tokenizer.token_bytes(token))?;
            std::io::stdout().flush()?;
        }
    }
    println!();
    Ok(())
}
