//! `kd.import`: traces that another tool collected and projected, as Parquet with the proof of concept's columns.

use flow_engine::plugin::{InputPort, OutputPort, ParamError, SourcePath, Stage, StageError, TaskContext};
use flow_lm::tokenizer::Tokenizer;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::data::read_prompts;
use crate::distil::import::Import;
use crate::distil::{FirstToken, Projector, Rule};
use crate::task::{self, go_on};
use crate::teacher::template::{self, Template};
use crate::traces::foreign::ForeignSequences;
use crate::traces::{TraceMeta, TraceWriter};

/// Parameters of `kd.import`.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ImportParams {
    /// A Parquet file, or a directory of them: rows follow `prompt_idx`, `sample_idx` and `step_idx`, whatever their files' names.
    pub path: SourcePath,
    /// Who made them, for reports.
    #[serde(default)]
    pub teacher: String,
    /// How the prompts were put to that teacher: a text with `{prompt}`.
    #[serde(default = "poc_template")]
    pub template: String,
    /// Candidates to keep per row; all that the rows hold where null.
    #[serde(default)]
    pub top_k: Option<usize>,
    /// Share of invalid rows above which the stage fails.
    #[serde(default = "max_invalid")]
    pub max_invalid: f64,
}

fn poc_template() -> String {
    crate::teacher::POC_TEMPLATE.into()
}

fn max_invalid() -> f64 {
    0.02
}

/// `kd.import`.
pub struct ImportStage;

impl Stage for ImportStage {
    type Params = ImportParams;
    const KIND: &'static str = "kd.import";
    const REVISION: u32 = 3;
    const SUMMARY: &'static str = "Reads another tool's traces over the student's vocabulary and quarantines their bad rows.";

    fn inputs(&self) -> Vec<InputPort> {
        vec![
            InputPort::required("tokenizer", &["Tokenizer"], "The student's tokenizer, whose ids the rows hold."),
            InputPort::optional("prompts", &["Prompts"], "What was asked, by `prompt_idx` from 0: the rows' contexts."),
        ]
    }
    fn outputs(&self) -> Vec<OutputPort> {
        vec![
            OutputPort::pure("traces", "ProjectedTraces", "Rows with student ids."),
            OutputPort::pure("stats", "TraceStats", "Coverage, refused rows by reason (JSON)."),
        ]
    }
    fn check(&self, p: &ImportParams) -> Result<Vec<String>, ParamError> {
        let wrong = |path: &str, message: String| Err(ParamError { path: path.into(), message, help: None });
        template::check(&p.template)?;
        if p.top_k == Some(0) {
            return wrong("top_k", "0 is not above 0".into());
        }
        if !(0.0..=1.0).contains(&p.max_invalid) {
            return wrong("max_invalid", format!("{} is not a share between 0 and 1", p.max_invalid));
        }
        Ok(Vec::new())
    }
    fn run(&self, p: ImportParams, ctx: &TaskContext) -> Result<(), StageError> {
        let dir = ctx.input("tokenizer")?;
        let tokenizer = Tokenizer::load(dir)?;
        let template = Template::of(&p.template, dir, &tokenizer)?;
        let contexts: Vec<String> = match ctx.input_opt("prompts") {
            Some(path) => read_prompts(path)?.iter().map(|q| template.render(&q.prompt)).collect::<Result<_, _>>()?,
            None => Vec::new(),
        };
        let meta = TraceMeta {
            teacher: p.teacher.clone(),
            template: template.source().into(),
            tokenizer_hash: tokenizer.digest(),
            eos_id: Some(tokenizer.eos().signed()),
            vocab: tokenizer.vocab_size(),
            top_k: p.top_k.unwrap_or(0),
            projection: Some("import".into()),
            ..TraceMeta::default()
        };
        let first = FirstToken::new(&tokenizer);
        let projector = Projector::new(&first, Rule::Same, p.top_k.unwrap_or(usize::MAX), None);
        let writer = TraceWriter::create(ctx.output("traces")?, &meta)?;
        let mut import = Import::new(&contexts, tokenizer.vocab_size(), projector, writer);
        for sequence in ForeignSequences::open(&p.path.0)? {
            sequence?.into_iter().try_for_each(|row| import.take(row))?;
            go_on(ctx)?;
        }
        let tally = import.finish(&p.path.0, p.max_invalid, ctx)?;
        ctx.metric("rows", tally.rows as f64);
        task::write_json(ctx.output("stats")?, &tally.report("import", true, p.top_k.unwrap_or(0)))
    }
}
