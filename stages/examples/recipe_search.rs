//! Held-out bits per byte of a recipe, without a pipeline:
//! `recipe_search TRACES|TEXT TOKENIZER HOLDOUT TOKENS '{"batch": 8, …}' [layers] [flip]`.
//! TRACES (a directory of projected traces) trains a ternary student, TEXT a full-precision model.
use flow_engine::plugin::{EventSink, Task, TaskContext, TaskEvent};
use flow_stages::eval::quality::{bits_per_byte, scorer};
use flow_stages::model::checkpoint::Checkpoint;
use flow_stages::model::config::{Preset, Weights};
use flow_stages::tokenizer::Tokenizer;
use flow_stages::traces::TraceReader;
use flow_stages::train::distillation::Distillation;
use flow_stages::train::loader::Loader;
use flow_stages::train::recipe::Recipe;
use flow_stages::train::windows::LossWeights;
use flow_stages::train::{Job, train};

struct Quiet;
impl EventSink for Quiet {
    fn emit(&self, _: TaskEvent) {}
}

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let tokenizer = Tokenizer::load(std::path::Path::new(&args[1])).expect("a tokenizer");
    let text = std::fs::read_to_string(&args[2]).expect("held-out text");
    let recipe: Recipe = serde_json::from_str(&args[4]).expect("a recipe");
    let mut config = Preset::Poc.config();
    config.vocab = tokenizer.vocab_size();
    config.layers = args.get(5).map_or(4, |l| l.parse().expect("a number"));
    let source = std::path::Path::new(&args[0]);
    let (mut loader, weights) = if source.is_dir() {
        let reader = TraceReader::open(source).expect("traces");
        let e = |n: &str, d: f32| std::env::var(n).ok().and_then(|x| x.parse().ok()).unwrap_or(d);
        let w = LossWeights { kd: e("KD", 1.0), ce: e("CE", 0.25), format: e("FMT", 0.2) };
        (Loader::of_traces(reader, &tokenizer, config.seq, Distillation::new(1.0, &[]), recipe.seed).expect("windows"), w)
    } else {
        if std::env::var("TERNARY").is_err() {
            (config.weights, config.sub_norm) = (Weights::Float, std::env::var("SUB").is_ok());
        }
        let tokens = tokenizer.encode(&std::fs::read_to_string(source).expect("a text"));
        (Loader::of_text(&tokens, config.seq, tokenizer.bos(), recipe.seed), LossWeights { kd: 0.0, ce: 1.0, format: 0.0 })
    };
    let state = std::env::temp_dir().join(format!("flow-search-{}", std::process::id()));
    std::fs::create_dir_all(&state).expect("a directory");
    let task: Task =
        serde_json::from_value(serde_json::json!({"flow": 1, "stage": "", "kind": "", "key": "", "params": null, "inputs": [],
        "outputs": {}, "state": state, "device": "cpu", "threads": 0, "provenance": []}))
        .expect("a task");
    let ctx = TaskContext::new(task, std::sync::Arc::new(Quiet), Default::default());
    let device = flow_shaders::device::open("cpu", 0).expect("the CPU");
    let flip_fraction = args.get(6).map(|f| f.parse().expect("a share"));
    let job =
        Job { config: config.clone(), recipe: &recipe, weights, tau: 1.0, budget_tokens: args[3].parse().expect("tokens"), flip_fraction };
    let start = std::time::Instant::now();
    let trained = train(&job, &mut loader, &device, &ctx).expect("trains");
    let seconds = start.elapsed().as_secs_f64();
    let model = Checkpoint { config, tensors: trained.tensors.into(), extra: serde_json::Value::Null, tokenizer: None };
    let mut lm = scorer(&device, &model, 0).expect("fits");
    let mut bpb = |bits| {
        lm.set_bits(bits).expect("sets");
        bits_per_byte(&mut lm, &tokenizer, &text, false, &ctx).expect("scores")
    };
    println!(
        "{:.4} (A8) {:.4} (A4) in {seconds:.0} s, last loss {:.4}: {}",
        bpb(8),
        bpb(4),
        trained.progress.curve.last().map_or(0.0, |p| p.loss),
        args[4]
    );
    let _ = std::fs::remove_dir_all(state);
}
