//! Prints the logits after every token: `logits MODEL ID...` gives a JSON list of rows.

use std::path::Path;

use flow_lm::format::load;
use flow_lm::infer::{Session, Uses};
use flow_lm::tokenizer::TokenId;
use flow_shaders::device::open;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut args = std::env::args().skip(1);
    let path = args.next().ok_or("usage: logits MODEL ID...")?;
    let ids: Vec<TokenId> = args.map(|id| id.parse().map(TokenId)).collect::<Result<_, _>>()?;
    let model = load(Path::new(&path))?;
    let uses = Uses { score: Some((1, ids.len())), logits: true, ..Uses::default() };
    let mut session = Session::new(&open("cpu", 0)?, model.config.clone(), &model.tensors, uses)?;
    let logits = session.logits(&ids, &vec![1; ids.len()])?;
    let rows: Vec<&[f32]> = logits.chunks(model.config.vocab).collect();
    println!("{}", serde_json::to_string(&rows)?);
    Ok(())
}
