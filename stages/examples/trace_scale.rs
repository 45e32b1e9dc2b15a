//! Traces at size, from a teacher that costs nothing: `trace_scale [MILLION_TOKENS] [THREADS]`.
//!
//! Writes rows of K = 20, projects them to a tokenizer of 4,096 tokens, and lays them out as training batches; prints
//! rows a second of each part, the bytes of a row and the memory at its highest.
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use flow_engine::plugin::{EventSink, Stage, Task, TaskContext, TaskEvent};
use flow_lm::rng::Rng;
use flow_lm::tokenizer::{TokenId, Tokenizer};
use flow_lm::train::LossWeights;
use flow_stages::distil::Distillation;
use flow_stages::distil::windows::windows_of_traces;
use flow_stages::kinds::kd_project::ProjectStage;
use flow_stages::traces::{CandidateBytes, Origin, ProjectedRow, RawRow, SequenceRow, TokenTable, TraceMeta, TraceReader, TraceWriter};

struct Quiet;
impl EventSink for Quiet {
    fn emit(&self, _: TaskEvent) {}
}

const K: usize = 20;
const LENGTH: usize = 512;

fn main() {
    let millions: f64 = std::env::args().nth(1).map_or(1.0, |n| n.parse().expect("millions of tokens"));
    let threads: usize = std::env::args().nth(2).map_or(2, |n| n.parse().expect("threads"));
    rayon::ThreadPoolBuilder::new().num_threads(threads).build_global().expect("threads");
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden/models");
    let teacher = Tokenizer::load(&golden.join("smollm2-tokenizer.json")).expect("the teacher's tokenizer");
    let student_path = golden.join("student-tokenizer-4096.json");
    let student = Tokenizer::load(&student_path).expect("the student's tokenizer");
    let text = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../pipelines/data/corpus.txt")).expect("the corpus");
    let tokens = teacher.encode(&text[..text.len() / 2]);
    let dir = tempfile::tempdir().expect("a directory");
    let sequences = (millions * 1e6 / LENGTH as f64).ceil() as usize;

    let raw = dir.path().join("raw");
    let began = Instant::now();
    let (rows, making) = write(&raw, &teacher, &tokens, sequences);
    let seconds = began.elapsed().as_secs_f64() - making;
    let bytes = size(&raw) as f64 / rows as f64;
    println!(
        "write     {rows:>10} rows   {:>9.0} rows/s   {bytes:.1} bytes a row (synthetic)   peak {} MiB",
        rows as f64 / seconds,
        peak()
    );

    let projected = dir.path().join("projected");
    let task = serde_json::json!({"flow": 1, "stage": "", "kind": "", "key": "", "params": null, "inputs": [
        {"port": "traces", "path": raw, "ty": "Traces", "digest": "", "from": ""},
        {"port": "tokenizer", "path": student_path, "ty": "Tokenizer", "digest": "", "from": ""}],
        "outputs": {"traces": projected, "stats": dir.path().join("stats.json")},
        "state": dir.path().join("state"), "device": "cpu", "threads": threads, "provenance": []});
    let task: Task = serde_json::from_value(task).expect("a task");
    let ctx = TaskContext::new(task, Arc::new(Quiet), Default::default());
    let began = Instant::now();
    ProjectStage.run(Default::default(), &ctx).expect("projects");
    println!(
        "project   {rows:>10} rows   {:>9.0} rows/s on {threads} threads   peak {} MiB",
        rows as f64 / began.elapsed().as_secs_f64(),
        peak()
    );

    let reader = TraceReader::<ProjectedRow>::open(&projected).expect("projected traces");
    let began = Instant::now();
    let mut loader = windows_of_traces(reader, &student, 128, Distillation::new(1.0, &[]), 7).expect("windows").0;
    let counted = began.elapsed().as_secs_f64();
    let weights = LossWeights { kd: 1.0, ce: 0.25, format: 0.2 };
    let (began, mut cursor, mut seen) = (Instant::now(), 0, 0);
    while cursor < loader.len() {
        let (batch, targets) = loader.step(cursor, 8, 1, &weights).expect("a batch");
        std::hint::black_box(&batch[0].targets);
        cursor += 8;
        seen += targets;
    }
    println!(
        "load      {seen:>10} tokens {:>9.0} tokens/s on one thread, after {counted:.1} s to count them   peak {} MiB",
        seen as f64 / began.elapsed().as_secs_f64(),
        peak()
    );
}

/// Writes sequences of the text's tokens with made-up candidates; gives the rows and the seconds spent on making them up.
fn write(dir: &Path, teacher: &Tokenizer, tokens: &[TokenId], sequences: usize) -> (u64, f64) {
    let meta = TraceMeta {
        teacher: "synthetic".into(),
        tokenizer_hash: teacher.digest(),
        eos_id: Some(teacher.eos().signed()),
        vocab: teacher.vocab_size(),
        top_k: K,
        ..TraceMeta::default()
    };
    let mut writer = TraceWriter::<RawRow>::create(dir, &meta).expect("a writer");
    let mut table = TokenTable::default();
    (0..teacher.vocab_size() as u32).map(TokenId).for_each(|id| table.insert(id.0, teacher.token_bytes(id)));
    let table = Arc::new(table);
    let mut rng = Rng::new(1, "synthetic");
    let mut making = 0.0;
    for n in 0..sequences {
        let began = Instant::now();
        let at = rng.below(tokens.len() - LENGTH);
        let rows: Vec<RawRow> = tokens[at..at + LENGTH].iter().map(|t| row(&table, tokens, *t, &mut rng)).collect();
        making += began.elapsed().as_secs_f64();
        let sequence = SequenceRow {
            prompt_idx: n as i64,
            sample_idx: 0,
            source: Origin::Text,
            context: Vec::new(),
            context_ids: None,
            finish_reason: "text".into(),
        };
        writer.push(sequence, rows).expect("a sequence");
    }
    (writer.finish().expect("written").rows, making)
}

/// Candidates as often as the text has them: frequent tokens are frequent candidates.
fn row(table: &Arc<TokenTable>, tokens: &[TokenId], drawn: TokenId, rng: &mut Rng) -> RawRow {
    let mut ids = vec![drawn];
    while ids.len() < K {
        let id = tokens[rng.below(tokens.len())];
        if !ids.contains(&id) {
            ids.push(id);
        }
    }
    // A falling geometric distribution with a random head and a tail of a few percent.
    let head = 0.3 + 0.6 * f64::from(rng.uniform());
    let logprobs: Vec<f32> = (0..K).map(|i| (head.ln() + i as f64 * (1.0 - head).ln()) as f32).collect();
    let other = 1.0 - logprobs.iter().map(|l| f64::from(*l).exp()).sum::<f64>();
    RawRow {
        sample_id: drawn.signed(),
        sample_bytes: table.get(drawn.signed()).expect("a token").to_vec(),
        topk_bytes: CandidateBytes::Table(table.clone()),
        topk_ids: ids.iter().map(|i| i.signed()).collect(),
        topk_logprobs: logprobs,
        other_logprob: other.max(1e-9).ln() as f32,
        other_lse: None,
    }
}

fn size(dir: &Path) -> u64 {
    std::fs::read_dir(dir).expect("a directory").flatten().map(|e| e.metadata().map_or(0, |m| m.len())).sum()
}

/// Peak resident memory in MiB.
fn peak() -> u64 {
    flow_engine::memory::resident().map_or(0, |r| r.peak >> 20)
}
