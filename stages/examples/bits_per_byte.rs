//! Bits per byte of a model directory on a text: `cargo run --release -p flow-stages --example bits_per_byte -- MODEL TEXT [bits]`.
use flow_engine::plugin::{EventSink, Task, TaskContext, TaskEvent};
use flow_stages::eval::quality::{bits_per_byte, scorer};
use flow_stages::lm;

struct Quiet;
impl EventSink for Quiet {
    fn emit(&self, _: TaskEvent) {}
}

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let (model, tokenizer) = lm::load(std::path::Path::new(&args[0])).expect("a model directory");
    let text = std::fs::read_to_string(&args[1]).expect("a text");
    let bits = args.get(2).map_or(8, |b| b.parse().expect("4 or 8"));
    let device = flow_shaders::device::open("cpu", 0).expect("the CPU");
    let mut lm = scorer(&device, &model, 0).expect("fits");
    lm.set_bits(bits).expect("sets");
    let task: Task =
        serde_json::from_value(serde_json::json!({"flow": 1, "stage": "", "kind": "", "key": "", "params": null, "inputs": [],
        "outputs": {}, "state": "", "device": "cpu", "threads": 0, "provenance": []}))
        .expect("a task");
    let ctx = TaskContext::new(task, std::sync::Arc::new(Quiet), Default::default());
    println!(
        "{:.4} bits per byte, {} tokens",
        bits_per_byte(&mut lm, &tokenizer, &text, false, &ctx).expect("scores"),
        tokenizer.encode(&text).len()
    );
}
