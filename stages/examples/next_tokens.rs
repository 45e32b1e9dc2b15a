//! Our greedy next token at every position: `next_tokens MODEL [bits]` reads a JSON list of token ids a line from standard
//! input and prints the list of next tokens; ids are fed as they are. A line that is a JSON string is tokenised instead,
//! BOS in front, and its ids are printed.
use flow_lm::config::Bits;
use flow_lm::format::load_with_tokenizer;
use flow_lm::infer::{Session, Uses};
use flow_lm::tokenizer::TokenId;
use serde_json::json;

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let (model, tokenizer) = load_with_tokenizer(std::path::Path::new(&args[0])).expect("a model directory");
    let device = flow_shaders::device::open("cpu", 0).expect("the CPU");
    let seq = model.config.seq;
    let uses = Uses { score: Some((1, seq)), ..Uses::default() };
    let mut lm = Session::new(&device, model.config.clone(), &model.tensors, uses).expect("fits");
    let bits = args.get(1).map_or(8, |b| b.parse().expect("4 or 8"));
    lm.set_bits(Bits::of(bits).expect("4 or 8")).expect("sets");
    for line in std::io::stdin().lines() {
        let line = line.expect("a line");
        if let Ok(text) = serde_json::from_str::<String>(&line) {
            println!("{}", json!([vec![tokenizer.bos()], tokenizer.encode(&text)].concat()));
            continue;
        }
        let ids: Vec<TokenId> = serde_json::from_str(&line).expect("a JSON list of ids");
        let mut input = ids.clone();
        input.resize(seq, TokenId(0));
        let mask: Vec<u32> = (0..seq).map(|i| u32::from(i < ids.len())).collect();
        lm.nll(&input, &mask, &vec![-1; seq]).expect("scores");
        println!("{}", json!(lm.best().expect("reads")[..ids.len()]));
    }
}
