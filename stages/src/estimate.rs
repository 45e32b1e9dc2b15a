//! What trainings will take, said before them: memory by the planner, work by the shape. Nothing is executed, and of a model's
//! files only what says its shape is read.
//!
//! Work is counted in the floating-point operations of float products (two for each multiply-add). How many of them a device does
//! in a second of training is [`crate::bench::training_speed`].

use std::path::Path;

use flow_engine::plugin::{Estimate, Stage as _, Wired};
use flow_lm::config::{ModelConfig, Role};
use flow_lm::format;
use flow_lm::graph::{Moments, NewtonSchulz, Optimizer, Storage};
use flow_lm::train::{Beside, Recipe, TeacherShape, TrainShape, Trainer};

use crate::kinds::teacher_file::FileStage;
use crate::teacher::WINDOW;

/// Sizes that are planned for: what is beyond is a mistake in a file, and a plan of it would not end.
const MOST: ModelSizes = ModelSizes { layers: 1 << 10, width: 1 << 24, buffer: 1 << 44 };

struct ModelSizes {
    layers: usize,
    /// Vocabulary, hidden sizes, heads, window, batch.
    width: usize,
    /// Words of the largest buffer.
    buffer: u128,
}

/// Shape of the model in a GGUF file or a directory; nothing where it cannot be read, or is beyond what is planned for.
pub fn shape_of_model(path: &Path) -> Option<ModelConfig> {
    format::shape(path).ok().filter(|config| is_planned_for(config, 1))
}

/// Whether a training of `batch` sequences of this shape is planned for.
fn is_planned_for(c: &ModelConfig, batch: usize) -> bool {
    let widest = [c.vocab, c.dim, c.mlp, c.heads, c.kv_heads, c.head_dim, c.seq, batch].into_iter().max().unwrap_or(0);
    if c.layers > MOST.layers || widest > MOST.width {
        return false;
    }
    let columns = c.vocab.max(c.mlp).max(c.dim).max(c.heads * c.head_dim) as u128;
    columns * (batch as u128 * c.seq as u128).max(c.dim as u128) <= MOST.buffer
}

/// Weights that every token is multiplied by: (those of block linears, those of the head). Rows of an embedding are looked up.
fn multiplied(config: &ModelConfig) -> (f64, f64) {
    let (q, kv) = (config.heads * config.head_dim, config.kv_heads * config.head_dim);
    let block = config.dim as f64 * (2 * q + 2 * kv + 3 * config.mlp) as f64;
    (config.layers as f64 * block, config.vocab as f64 * config.dim as f64)
}

/// Operations of causal attention over windows of `config.seq`, forward: a token sees half of its window, and each key costs
/// two multiply-adds a dimension.
fn attention_work(config: &ModelConfig, tokens: u64) -> f64 {
    tokens as f64 * config.layers as f64 * (2 * config.seq * config.heads * config.head_dim) as f64
}

/// Operations of a forward pass with logits over `tokens`, in windows of `config.seq`.
pub fn forward_work(config: &ModelConfig, tokens: u64) -> f64 {
    let (blocks, head) = multiplied(config);
    2.0 * tokens as f64 * (blocks * forward_share(config) + head) + attention_work(config, tokens)
}

/// What a forward product of a block linear costs of a float one: ternary codes take bytes, not floats.
fn forward_share(config: &ModelConfig) -> f64 {
    if config.quantises() { TERNARY } else { 1.0 }
}

/// `ternary_gemm` reaches 257 GOP/s where `gemm_nn` reaches 90 GFLOP/s (`flow bench kernels` on two AVX2 cores).
const TERNARY: f64 = 0.35;

/// Operations of forward and backward passes over `tokens`; those of a block's forward pass twice where its activations are
/// computed again.
pub fn training_work(config: &ModelConfig, tokens: u64, recompute: bool) -> f64 {
    let (blocks, head) = multiplied(config);
    let (products, attention) = (2.0 * tokens as f64, attention_work(config, tokens));
    let again = if recompute { products * blocks * forward_share(config) + attention } else { 0.0 };
    // Both gradients of a product are float products, and attention's backward pass is two and a half times its forward pass.
    forward_work(config, tokens) + 2.0 * products * (blocks + head) + 2.5 * attention + again
}

/// Operations of one step of Muon: products with the Gram matrix of each block linear's smaller side. What is symmetric is
/// computed by half, but these products are small: they count as whole ones.
pub fn muon_work(config: &ModelConfig, ns: NewtonSchulz) -> f64 {
    let steps = ns.steps as f64;
    let one = |rows: usize, cols: usize| {
        let (short, long) = (rows.min(cols) as f64, rows.max(cols) as f64);
        4.0 * short * short * long + 2.0 * short.powi(3) * (4.0 * steps - 3.0).max(1.0)
    };
    let linears = config.tensors().into_iter().filter(|t| t.role == Role::Linear);
    linears.map(|t| one(t.shape[0], t.shape[1])).sum()
}

/// What a training of a shape is.
pub struct TrainingJob<'a> {
    /// Shape, its vocabulary and window included.
    pub config: &'a ModelConfig,
    /// Batch, optimizer, and what is kept how.
    pub recipe: &'a Recipe,
    /// Targets to see.
    pub tokens: u64,
    /// Candidates of a target, 0 without a teacher.
    pub top_k: usize,
    /// Whether it is evaluated in between.
    pub evaluates: bool,
    /// Weights that are softened, a teacher in the loop.
    pub beside: Beside,
}

/// What a training will hold and compute. Evaluations are not counted, nor is what windows leave empty.
pub fn training(job: &TrainingJob<'_>) -> Option<Estimate> {
    let TrainingJob { config, recipe: r, beside, .. } = job;
    if !is_planned_for(config, r.batch) || config.problem().is_some() {
        return None;
    }
    let shape = TrainShape::of(r, config.seq, job.top_k, job.evaluates);
    let updates = match r.optimizer {
        Optimizer::Muon => {
            let a_step = r.batch as f64 * r.accumulate as f64 * config.seq as f64;
            (job.tokens as f64 / a_step).ceil() * muon_work(config, r.newton_schulz())
        }
        Optimizer::Adamw => 0.0,
    };
    Some(Estimate {
        memory_bytes: Some(Trainer::planned_bytes((*config).clone(), shape, r.optimizer, beside)),
        work: Some(training_work(config, job.tokens, r.recompute) + updates + beside.teacher.as_ref().map_or(0.0, |t| reading(t, job))),
        smaller: smaller(r),
    })
}

/// What a teacher in the loop computes beside its student.
fn reading(teacher: &TeacherShape, job: &TrainingJob<'_>) -> f64 {
    forward_work(&ModelConfig { seq: job.config.seq, ..teacher.config.clone() }, job.tokens)
}

/// The shape of the model that will lie on an input, with the window that its maker gives it; nothing where it is not known
/// before that is made.
pub fn model_on(wired: &Wired<'_>, port: &str) -> Option<ModelConfig> {
    let maker = wired.maker(port).filter(|m| m.kind == FileStage::KIND)?;
    let shape = shape_of_model(Path::new(maker.params["path"].as_str()?))?;
    let seq = whole(maker.params, "seq").unwrap_or(shape.seq.min(WINDOW));
    Some(ModelConfig { seq, ..shape })
}

/// Settings of a recipe that would take less memory, the one that changes least first.
fn smaller(r: &Recipe) -> Vec<String> {
    let settings = [
        ("`recompute: true`", !r.recompute),
        ("a smaller `batch` with more `accumulate`", r.batch > 1),
        ("`storage: float16`", r.storage == Storage::Float32),
        ("`moments: int8`", r.optimizer == Optimizer::Adamw && r.moments == Moments::Float32),
    ];
    settings.into_iter().filter(|(_, helps)| *helps).map(|(setting, _)| setting.to_owned()).collect()
}

/// Tokens of the tokenizer that is wired, where its maker says them.
pub fn vocabulary(wired: &Wired<'_>) -> Option<usize> {
    whole(wired.maker("tokenizer")?.params, "vocab_size")
}

/// Candidates of a row of the traces that are wired: what they were projected to, or else collected with.
pub fn candidates(wired: &Wired<'_>) -> usize {
    let mut maker = wired.maker("traces");
    while let Some(m) = maker {
        if let Some(top_k) = whole(m.params, "top_k") {
            return top_k;
        }
        maker = m.wired.maker("traces");
    }
    0
}

fn whole(params: &serde_json::Value, name: &str) -> Option<usize> {
    params[name].as_u64().and_then(|n| usize::try_from(n).ok())
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use flow_engine::pipeline::{Overrides, Pipeline};
    use flow_engine::plan::Plan;
    use flow_lm::config::Preset;

    use super::*;

    #[test]
    fn work_grows_with_what_multiplies() {
        let poc = Preset::Poc.config();
        let (blocks, head) = (4.0 * 256.0 * (2.0 * 256.0 + 2.0 * 128.0 + 3.0 * 768.0), 4096.0 * 256.0);
        assert_eq!(multiplied(&poc), (blocks, head));
        let float = ModelConfig { weights: flow_lm::config::Weights::Float, ..poc.clone() };
        let attention = 4.0 * 2.0 * 128.0 * 256.0;
        assert_eq!(forward_work(&float, 1000), 1000.0 * (2.0 * (blocks + head) + attention));
        assert_eq!(training_work(&float, 1000, false), 1000.0 * (6.0 * (blocks + head) + 3.5 * attention));
        assert_eq!(training_work(&float, 1000, true), 1000.0 * (8.0 * blocks + 6.0 * head + 4.5 * attention));
        assert!(forward_work(&poc, 1000) < forward_work(&float, 1000));
        // Muon's products are a fifth of a step of 1,024 tokens.
        let share = muon_work(&poc, Recipe::default().newton_schulz()) / training_work(&poc, 1024, false);
        assert!((0.15..0.35).contains(&share), "{share}");
    }

    /// The plan of a pipeline beside a text.
    fn plan(dir: &Path, stages: &str) -> Plan {
        std::fs::write(dir.join("a.txt"), "# A\ntext\n").unwrap();
        let file = dir.join("p.yaml");
        std::fs::write(&file, format!("flow: 1\nstages:\n  corpus: {{ use: data.text, with: {{ path: a.txt }} }}\n{stages}")).unwrap();
        Plan::link(Pipeline::load(&file, &Overrides::default()).unwrap(), &crate::registry()).unwrap()
    }

    #[test]
    fn a_student_is_planned_with_its_tokenizers_vocabulary_and_its_traces_candidates() {
        let dir = tempfile::tempdir().unwrap();
        let stages = |projected: &str| {
            format!(
                "  words: {{ use: tokenizer.bpe, in: {{ text: corpus.train }}, with: {{ vocab_size: 640 }} }}
  teacher: {{ use: teacher.train, in: {{ text: corpus.train, tokenizer: words }}, with: {{ tokens: 5000 }} }}
  traces: {{ use: kd.collect, in: {{ teacher: teacher, text: corpus.train }}, with: {{ top_k: 12 }} }}
  projected: {{ use: kd.project, in: {{ traces: traces, tokenizer: words }}, with: {{ {projected} }} }}
  student:
    use: train.bitnet
    in: {{ traces: projected, tokenizer: words, validation: corpus.holdout }}
    with: {{ preset: poc, budget_tokens: 5000, recipe: {{ batch: 2, recompute: true, storage: float16 }} }}
"
            )
        };
        let mut config = Preset::Poc.config();
        config.vocab = 640;
        let recipe = Recipe { batch: 2, recompute: true, storage: Storage::Float16, ..Recipe::default() };
        for (projected, top_k) in [("", 12), ("top_k: 7", 7)] {
            let plan = plan(dir.path(), &stages(projected));
            let found = plan.estimate(plan.find("student").unwrap()).unwrap();
            let job = TrainingJob { config: &config, recipe: &recipe, tokens: 5000, top_k, evaluates: true, beside: Beside::default() };
            assert_eq!(Some(&found), training(&job).as_ref());
            assert_eq!(found.smaller, ["a smaller `batch` with more `accumulate`"]);
            assert!(plan.estimate(plan.find("teacher").unwrap()).is_some());
            assert!(plan.estimate(plan.find("traces").unwrap()).is_none());
        }
    }

    #[test]
    fn a_shape_comes_from_a_header_however_large_or_broken_the_file_is() {
        const TB: u64 = 1 << 40;
        let dir = tempfile::tempdir().unwrap();
        let golden = crate::golden_dir().join("gguf/student-tq2_0.gguf");
        let shape = shape_of_model(&golden).unwrap();
        assert_eq!(shape.parameters(), flow_lm::format::load(&golden).unwrap().config.parameters());
        let file = dir.path().join("model.gguf");
        let write = |content: &[u8], len: u64| {
            let mut f = std::fs::File::create(&file).unwrap();
            f.write_all(content).unwrap();
            f.set_len(len).unwrap();
            shape_of_model(&file)
        };
        let whole = std::fs::read(&golden).unwrap();
        assert_eq!(write(&whole, TB), Some(shape));
        assert_eq!(write(&[], TB), None);
        // Counts that the file's size allows and its content does not.
        let counts = |tensors: u64, keys: u64| [&b"GGUF\x03\0\0\0"[..], &tensors.to_le_bytes(), &keys.to_le_bytes()].concat();
        for header in [counts(1 << 38, 0), counts(0, 1 << 38), counts(u64::MAX, 1)] {
            assert_eq!(write(&header, TB), None);
        }
        for cut in [0, 3, 20, 200] {
            assert_eq!(write(&whole[..cut], cut as u64), None);
        }
        assert_eq!(shape_of_model(&dir.path().join("nothing")), None);
    }

    #[test]
    fn a_shape_comes_from_a_directorys_config() {
        let dir = tempfile::tempdir().unwrap();
        let write = |text: &str| std::fs::write(dir.path().join("config.json"), text).unwrap();
        assert_eq!(shape_of_model(dir.path()), None);
        let config = Preset::Poc.config();
        write(&serde_json::json!({"model_type": "flow", "config": config}).to_string());
        assert_eq!(shape_of_model(dir.path()), Some(config.clone()));
        write(
            r#"{"model_type": "llama", "vocab_size": 100, "hidden_size": 64, "num_attention_heads": 4, "num_hidden_layers": 2,
                "intermediate_size": 96, "max_position_embeddings": 512}"#,
        );
        assert_eq!(shape_of_model(dir.path()).map(|c| (c.vocab, c.dim, c.layers)), Some((100, 64, 2)));
        write(&serde_json::json!({"model_type": "flow", "config": ModelConfig { layers: 1 << 40, ..config }}).to_string());
        assert_eq!(shape_of_model(dir.path()), None);
        write("{");
        assert_eq!(shape_of_model(dir.path()), None);
    }
}
