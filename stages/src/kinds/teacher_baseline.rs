//! `teacher.baseline`: the teacher's greedy answers to fixed prompts, its speed and memory; lockable by a file.

use flow_engine::plugin::{InputPort, OutputPort, ParamError, SourceFile, Stage, StageError, TaskContext};
use flow_lm::config::Bits;
use flow_lm::format::load_with_tokenizer;
use flow_lm::format::stored::Stored;
use flow_lm::infer::KvCache;
use flow_lm::tokenizer::TokenId;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::data::spread::spread_of;
use crate::data::{Lossy, Prompt, faithful, read_prompts};
use crate::eval::sides::memory;
use crate::eval::speed;
use crate::is_default;
use crate::measurements::{self, Answer, Baseline, Usage};
use crate::task::{self, go_on};
use crate::teacher::continuations::answers;
use crate::teacher::json::{Said, held_validity, json_validity};
use crate::teacher::template::{self, Template};
use crate::teacher::{MAX_REFUSED, POC_TEMPLATE, check_share, hosted};

/// Parameters of `teacher.baseline`.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct BaselineParams {
    /// How a prompt is put to the teacher: a text with `{prompt}`, or `chat` for the teacher's own chat template.
    pub template: String,
    /// Tokens of an answer, at most.
    pub max_tokens: usize,
    /// Prompts to answer, spread over the file; all where null.
    pub max_prompts: Option<usize>,
    /// A baseline that prompts, teacher and template must equal; others are refused.
    pub locked: Option<SourceFile>,
    /// Share of answers that may be refused (filtered, empty after reasoning, not readable) before the stage fails; of hosted teachers only.
    #[schemars(extend("x-key" = false))]
    pub max_refused: f64,
    /// How keys and values are held while a teacher that runs here decodes: `float16`, `int8` (a quarter of float32) or `float32`.
    #[serde(skip_serializing_if = "is_default")]
    pub kv_cache: KvCache,
    /// Where the tokenizer of a teacher that runs here does not give a prompt back: `refuse`, or `accept`.
    #[serde(skip_serializing_if = "is_default")]
    pub lossy: Lossy,
}

impl Default for BaselineParams {
    fn default() -> Self {
        Self {
            template: POC_TEMPLATE.into(),
            max_tokens: 128,
            max_prompts: None,
            locked: None,
            max_refused: MAX_REFUSED,
            kv_cache: KvCache::default(),
            lossy: Lossy::default(),
        }
    }
}

/// `teacher.baseline`.
pub struct BaselineStage;

impl Stage for BaselineStage {
    type Params = BaselineParams;
    const KIND: &'static str = "teacher.baseline";
    const REVISION: u32 = 8;
    const SUMMARY: &'static str = "Answers fixed prompts greedily and measures the teacher.";
    const HEAVY: bool = true;
    const NEEDS_SECRETS: bool = true;

    fn inputs(&self) -> Vec<InputPort> {
        vec![InputPort::required("teacher", &["Teacher"], "Who answers."), InputPort::required("prompts", &["Prompts"], "What is asked.")]
    }
    fn outputs(&self) -> Vec<OutputPort> {
        vec![OutputPort::measured("baseline", "Baseline", "Answers, digests, speed and memory (JSON).")]
    }
    fn fingerprints(&self, _: &Self::Params, _: &[&str]) -> Vec<(String, String)> {
        crate::fingerprints::inference()
    }
    fn check(&self, p: &BaselineParams) -> Result<Vec<String>, ParamError> {
        template::check(&p.template)?;
        if p.max_tokens == 0 {
            return Err(ParamError { path: "max_tokens".into(), message: "must be above 0".into(), help: None });
        }
        check_share("max_refused", p.max_refused)?;
        Ok(Vec::new())
    }
    fn run(&self, p: BaselineParams, ctx: &TaskContext) -> Result<(), StageError> {
        let dir = ctx.input("teacher")?;
        let locked = locked(&p)?;
        let prompts = chosen(read_prompts(ctx.input("prompts")?)?, &p, locked.as_ref());
        if let Some(asker) = hosted::open(ctx)? {
            let template = template::of_hosted(&p.template)?;
            let digests = Digests::new(&prompts, asker.spec().digest(), template);
            check_lock(locked.as_ref(), &digests)?;
            let out = hosted::baseline::baseline((&p.template, p.max_tokens, p.max_refused), ctx, &asker, &prompts)?;
            return measurements::write(ctx.output("baseline")?, &digests.of(out));
        }
        let (teacher, tokenizer) = load_with_tokenizer(dir)?;
        let template = Template::of(&p.template, dir, &tokenizer)?;
        let digests = Digests::new(&prompts, task::digest(dir)?, template.source());
        check_lock(locked.as_ref(), &digests)?;
        let device = task::device(ctx)?;
        let rendered: Vec<String> = prompts.iter().map(|q| template.render(&q.prompt)).collect::<Result<_, _>>()?;
        let inputs = faithful::encode_all((&tokenizer, "the teacher's"), &rendered, p.lossy, ctx)?;
        let inputs: Vec<Vec<TokenId>> = inputs.into_iter().map(|ids| tokenizer.with_bos(ids)).collect();
        let (asked, read) = (inputs.len() as u64, inputs.iter().map(Vec::len).sum::<usize>());
        let how = (Bits::Eight, p.max_tokens, p.kv_cache);
        let held = held_validity(&device, (&teacher, &tokenizer), (&prompts, &inputs), how, || go_on(ctx))?;
        let answers = answers(&device, &teacher, &tokenizer, (inputs, Vec::new()), how, |done| {
            ctx.progress(done as u64, asked, "prompts");
            go_on(ctx)
        })?;
        let texts: Vec<String> = answers.iter().map(|a| tokenizer.decode_lossy(&a.tokens)).collect();
        let measured = speed::measure(&device, &teacher, Bits::Eight, p.kv_cache)?;
        ctx.metric("decode_tokens_per_second", measured.decode);
        let results = prompts.iter().zip(&answers).zip(texts.iter().zip(rendered)).map(|((q, a), (text, rendered))| Answer {
            rendered: Some(rendered),
            tokens: Some(a.tokens.len() as u64),
            finish_reason: Some(if a.stopped { "stop" } else { "length" }.into()),
            ..Answer::of(q, text.clone())
        });
        let said = prompts.iter().zip(answers.iter().zip(&texts)).map(|(q, (a, text))| (q, Said { text, whole: a.stopped }));
        let parameters = teacher.config.parameters();
        let out = Baseline {
            teacher: json!({"config": teacher.config, "parameters": parameters}),
            parameters: Some(parameters as u64),
            max_tokens: p.max_tokens,
            decode_tokens_per_second: Some(measured.decode),
            prefill_tokens_per_second: Some(measured.prefill),
            speed_measured: Some(measured.how),
            memory_planned_bytes: Some(memory(&teacher, &Stored::of(dir)?, p.kv_cache).planned),
            json_validity: json_validity(said),
            json_validity_constrained: held,
            usage: Usage { prompt_tokens: read as u64, completion_tokens: answers.iter().map(|a| a.tokens.len() as u64).sum() },
            results: results.collect(),
            ..Baseline::default()
        };
        measurements::write(ctx.output("baseline")?, &digests.of(out))
    }
}

/// What a baseline is locked to.
struct Digests {
    prompts_digest: String,
    teacher_digest: String,
    template: String,
}

impl Digests {
    fn new(prompts: &[Prompt], teacher_digest: String, template: &str) -> Self {
        Self { prompts_digest: prompts_digest(prompts), teacher_digest, template: template.to_owned() }
    }

    /// A baseline with them.
    fn of(self, out: Baseline) -> Baseline {
        let Self { prompts_digest, teacher_digest, template } = self;
        Baseline { prompts_digest, teacher_digest, template, ..out }
    }
}

fn prompts_digest(prompts: &[Prompt]) -> String {
    let asked = serde_json::to_string(&prompts.iter().map(|q| (q.id, &q.prompt)).collect::<Vec<_>>()).unwrap_or_default();
    blake3::hash(asked.as_bytes()).to_hex().to_string()
}

/// The baseline that this one must equal, with its path.
fn locked(p: &BaselineParams) -> Result<Option<(&std::path::Path, Value)>, StageError> {
    let Some(SourceFile(path)) = &p.locked else { return Ok(None) };
    let text = std::fs::read(path).map_err(|e| StageError::io("cannot read", path, &e))?;
    let value = serde_json::from_slice(&text).map_err(|e| StageError::new(format!("{}: not JSON: {e}", path.display())))?;
    Ok(Some((path, value)))
}

/// The prompts that are answered. Before revision 5 `max_prompts` took the first ones: a baseline that was locked then keeps
/// them, so that nothing is asked anew.
fn chosen(all: Vec<Prompt>, p: &BaselineParams, locked: Option<&(&std::path::Path, Value)>) -> Vec<Prompt> {
    let first = &all[..p.max_prompts.unwrap_or(all.len()).min(all.len())];
    if locked.is_some_and(|(_, l)| l["prompts_digest"] == *prompts_digest(first)) {
        return first.to_vec();
    }
    spread_of(all, p.max_prompts, 0)
}

fn check_lock(locked: Option<&(&std::path::Path, Value)>, digests: &Digests) -> Result<(), StageError> {
    let Some((path, locked)) = locked else { return Ok(()) };
    let Digests { prompts_digest, teacher_digest, template } = digests;
    for (name, value) in [("prompts_digest", prompts_digest), ("teacher_digest", teacher_digest), ("template", template)] {
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

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_baseline_that_was_locked_with_the_first_prompts_keeps_them() {
        let all: Vec<Prompt> =
            (0..9).map(|i| serde_json::from_value(json!({"id": i, "kind": "prose", "prompt": format!("p{i}")})).unwrap()).collect();
        let p = BaselineParams { max_prompts: Some(3), ..BaselineParams::default() };
        let names = |prompts: &[Prompt]| prompts.iter().map(|p| p.prompt.clone()).collect::<Vec<_>>();
        let spread = names(&chosen(all.clone(), &p, None));
        assert!(spread.len() == 3 && spread != ["p0", "p1", "p2"], "{spread:?}");
        let path = std::path::Path::new("baseline.json");
        let early = json!({"prompts_digest": prompts_digest(&all[..3])});
        assert_eq!(names(&chosen(all.clone(), &p, Some(&(path, early)))), ["p0", "p1", "p2"]);
        let late = json!({"prompts_digest": "of others"});
        assert_eq!(names(&chosen(all, &p, Some(&(path, late)))), spread);
    }
}
