//! `teacher.baseline`: the teacher's greedy answers to fixed prompts, its speed and memory; lockable by a file.

use flow_engine::plugin::{InputPort, OutputPort, ParamError, SourceFile, Stage, StageError, TaskContext};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::{POC_TEMPLATE, json_validity, render};
use crate::data::read_prompts;
use crate::eval::speed;
use crate::lm::{self, Generation, generate};

/// Parameters of `teacher.baseline`.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct BaselineParams {
    /// How a prompt is put to the teacher.
    pub template: String,
    /// Tokens of an answer, at most.
    pub max_tokens: usize,
    /// Prompts to answer; all where null.
    pub max_prompts: Option<usize>,
    /// A baseline that prompts, teacher and template must equal; others are refused.
    pub locked: Option<SourceFile>,
}

impl Default for BaselineParams {
    fn default() -> Self {
        Self { template: POC_TEMPLATE.into(), max_tokens: 128, max_prompts: None, locked: None }
    }
}

/// `teacher.baseline`.
pub struct BaselineStage;

impl Stage for BaselineStage {
    type Params = BaselineParams;
    const KIND: &'static str = "teacher.baseline";
    const REVISION: u32 = 1;
    const SUMMARY: &'static str = "Answers fixed prompts greedily and measures the teacher.";
    const HEAVY: bool = true;
    const NEEDS_SECRETS: bool = true;

    fn inputs(&self) -> Vec<InputPort> {
        vec![InputPort::required("teacher", &["Teacher"], "Who answers."), InputPort::required("prompts", &["Prompts"], "What is asked.")]
    }
    fn outputs(&self) -> Vec<OutputPort> {
        vec![OutputPort::measured("baseline", "Baseline", "Answers, digests, speed and memory (JSON).")]
    }
    fn fingerprints(&self) -> Vec<(String, String)> {
        crate::fingerprints::inference()
    }
    fn check(&self, p: &BaselineParams) -> Result<Vec<String>, ParamError> {
        if p.max_tokens == 0 {
            return Err(ParamError { path: "max_tokens".into(), message: "must be above 0".into(), help: None });
        }
        Ok(Vec::new())
    }
    fn run(&self, p: BaselineParams, ctx: &TaskContext) -> Result<(), StageError> {
        let dir = ctx.input("teacher")?;
        let hosted = super::hosted::open(ctx)?;
        let prompts: Vec<_> = read_prompts(ctx.input("prompts")?)?.into_iter().take(p.max_prompts.unwrap_or(usize::MAX)).collect();
        let asked = serde_json::to_string(&prompts.iter().map(|q| (q.id, &q.prompt)).collect::<Vec<_>>()).unwrap_or_default();
        let digests = [
            ("prompts_digest", blake3::hash(asked.as_bytes()).to_hex().to_string()),
            ("teacher_digest", hosted.as_ref().map_or_else(|| lm::digest(dir), |h| Ok(h.spec().digest()))?),
            ("template", p.template.clone()),
        ];
        if let Some(lock) = &p.locked {
            check_lock(&lock.0, &digests)?;
        }
        if let Some(asker) = &hosted {
            let out = super::hosted::baseline::baseline(&p, ctx, asker, &prompts)?;
            return write(ctx, out, digests);
        }
        let (teacher, tokenizer) = lm::load(dir)?;
        let device = lm::device(ctx)?;
        let inputs: Vec<Vec<u32>> = prompts.iter().map(|q| tokenizer.encode(&render(&p.template, &q.prompt))).collect();
        let how = Generation { batch: 32, max_tokens: p.max_tokens, sampling: None, seed: 0, bits: 8 };
        let answers = generate(&teacher, &tokenizer, &device, &inputs, &how, |done| {
            ctx.progress(done as u64, inputs.len() as u64, "prompts");
            if ctx.should_stop() { Err(StageError::interrupted()) } else { Ok(()) }
        })?;
        let texts: Vec<String> = answers.iter().map(|a| tokenizer.decode_lossy(&a.tokens)).collect();
        let measured = speed::measure(&device, &teacher, 8)?;
        ctx.metric("decode_tokens_per_second", measured.decode);
        let results: Vec<Value> = prompts
            .iter()
            .zip(&answers)
            .zip(&texts)
            .map(|((q, a), text)| {
                json!({"id": q.id, "kind": q.kind, "prompt": q.prompt, "text": text, "tokens": a.tokens.len(),
                       "finish_reason": if a.stopped { "stop" } else { "length" }})
            })
            .collect();
        let out = json!({
            "teacher": {"config": teacher.config, "parameters": teacher.config.parameters()},
            "parameters": teacher.config.parameters(),
            "max_tokens": p.max_tokens,
            "decode_tokens_per_second": measured.decode,
            "prefill_tokens_per_second": measured.prefill,
            "memory_bytes": measured.bytes,
            "json_validity": json_validity(prompts.iter().zip(texts.iter().map(String::as_str))),
            "usage": {"prompt_tokens": inputs.iter().map(Vec::len).sum::<usize>(), "completion_tokens": answers.iter().map(|a| a.tokens.len()).sum::<usize>()},
            "results": results,
        });
        write(ctx, out, digests)
    }
}

fn write(ctx: &TaskContext, mut out: Value, digests: [(&str, String); 3]) -> Result<(), StageError> {
    for (name, value) in digests {
        out[name] = value.into();
    }
    crate::write_json(ctx.output("baseline")?, &out)
}

fn check_lock(path: &std::path::Path, digests: &[(&str, String)]) -> Result<(), StageError> {
    let text = std::fs::read(path).map_err(|e| StageError::io("cannot read", path, &e))?;
    let locked: Value = serde_json::from_slice(&text).map_err(|e| StageError::new(format!("{}: not JSON: {e}", path.display())))?;
    for (name, value) in digests {
        if locked[name] != **value {
            return Err(StageError::new(format!(
                "{}: the baseline is locked with `{name}` {}, this run has {value}",
                path.display(),
                locked[name]
            ))
            .help("undo the change of prompts, teacher or template, or lock a new baseline on purpose"));
        }
    }
    Ok(())
}
