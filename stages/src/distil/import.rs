//! `kd.import`: traces that another tool collected and projected, as Parquet with the proof of concept's columns.

use crate::task;
use std::collections::BTreeMap;
use std::path::Path;

use flow_engine::plugin::{InputPort, OutputPort, ParamError, SourcePath, Stage, StageError, TaskContext};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::first_token::FirstToken;
use super::sequence::{Projector, Rule};
use super::stats::Tally;
use crate::data::read_prompts;
use crate::teacher::template::{self, Template};
use crate::traces::foreign::{ForeignRow, ForeignSequences};
use crate::traces::{ProjectedRow, RawRow, SequenceRow, Source, TraceMeta, TraceWriter};
use flow_lm::tokenizer::Tokenizer;

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
    const REVISION: u32 = 2;
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
            eos_id: Some(tokenizer.eos() as i32),
            vocab: tokenizer.vocab_size(),
            top_k: p.top_k.unwrap_or(0),
            projection: Some("import".into()),
            ..TraceMeta::default()
        };
        let first = FirstToken::new(&tokenizer);
        let mut import = Import {
            contexts: &contexts,
            vocab: tokenizer.vocab_size() as i32,
            projector: Projector::new(&first, Rule::Same, p.top_k.unwrap_or(usize::MAX), None),
            writer: TraceWriter::create(ctx.output("traces")?, &meta)?,
            tally: Tally::default(),
            waiting: Vec::new(),
            parts: BTreeMap::new(),
            gaps: 0,
            first_bad: None,
        };
        for sequence in ForeignSequences::open(&p.path.0)? {
            sequence?.into_iter().try_for_each(|row| import.take(row))?;
            if ctx.should_stop() {
                return Err(StageError::interrupted());
            }
        }
        import.finish(&p, ctx)
    }
}

fn named(file: &Path, row: u64, what: &str) -> String {
    format!("{} row {row}: {what}", file.display())
}

struct Import<'a> {
    contexts: &'a [String],
    vocab: i32,
    projector: Projector<'a>,
    writer: TraceWriter<ProjectedRow>,
    tally: Tally,
    /// Rows of the sequence that is being read.
    waiting: Vec<ForeignRow>,
    /// Sequences written so far, by prompt.
    parts: BTreeMap<i64, i32>,
    gaps: u64,
    first_bad: Option<String>,
}

impl Import<'_> {
    fn take(&mut self, row: ForeignRow) -> Result<(), StageError> {
        if !(0..self.vocab).contains(&row.row.sample_id) {
            let what = format!(
                "field `teacher_sample_id`: {} is no token of the student's tokenizer, which has {}",
                row.row.sample_id, self.vocab
            );
            return Err(
                StageError::new(named(&row.file, row.place, &what)).help("these rows were made for another tokenizer: wire that one")
            );
        }
        let follows =
            |last: &ForeignRow| (last.prompt_idx, last.sample_idx) == (row.prompt_idx, row.sample_idx) && row.step_idx == last.step_idx + 1;
        if !self.waiting.last().is_some_and(follows) {
            self.close()?;
            self.gaps += u64::from(row.step_idx != 0);
        }
        self.waiting.push(row);
        Ok(())
    }

    /// Writes the sequence that ended. Steps that the other tool dropped cut a sequence in two: what follows them has no
    /// context, as the student never saw the text between.
    fn close(&mut self) -> Result<(), StageError> {
        let rows = std::mem::take(&mut self.waiting);
        let Some(first) = rows.first() else { return Ok(()) };
        let prompt_idx = first.prompt_idx;
        let context = usize::try_from(prompt_idx).ok().and_then(|i| self.contexts.get(i)).filter(|_| first.step_idx == 0);
        let part = self.parts.entry(prompt_idx).or_default();
        let sequence = SequenceRow {
            prompt_idx,
            sample_idx: *part,
            source: Source::Sample,
            context: context.cloned().unwrap_or_default().into_bytes(),
            context_ids: None,
            finish_reason: "unknown".into(),
        };
        *part += 1;
        let (places, rows): (Vec<_>, Vec<RawRow>) = rows.into_iter().map(|r| ((r.file, r.place), r.row)).unzip();
        let (sequence, projected, one) = self.projector.project(sequence, &rows);
        if self.first_bad.is_none() && !one.invalid.is_empty() {
            let bad = places.iter().zip(&rows).find_map(|(place, row)| Some((place, self.projector.check(row).err()?)));
            self.first_bad = bad.map(|((file, place), reason)| named(file, *place, reason.name()));
        }
        self.tally.merge(&one);
        self.writer.push(sequence, projected)
    }

    fn finish(mut self, p: &ImportParams, ctx: &TaskContext) -> Result<(), StageError> {
        self.close()?;
        self.writer.finish()?;
        let (tally, path) = (&self.tally, p.path.0.display());
        if tally.rows == 0 {
            return Err(StageError::new(format!("{path}: the files hold no rows")));
        }
        let reasons = tally.invalid.iter().map(|(k, v)| format!("{k}: {v}")).collect::<Vec<_>>().join(", ");
        if let Some(first) = &self.first_bad {
            let what = format!("{:.2} % of the rows are invalid ({reasons}), the first is {first}", 100.0 * tally.invalid_share());
            if tally.invalid_share() > p.max_invalid {
                return Err(StageError::new(format!("{path}: {what}; max_invalid allows {:.2} %", 100.0 * p.max_invalid)).help(
                    "mend them where they were made, or raise `max_invalid`: such rows keep their place and train by cross-entropy",
                ));
            }
            ctx.warn(format!("{what}; they keep their place and train without KL"));
        }
        if self.gaps > 0 {
            ctx.warn(format!("{} sequences begin after step 0: steps before them were dropped where the traces were made", self.gaps));
        }
        ctx.metric("rows", tally.rows as f64);
        task::write_json(ctx.output("stats")?, &tally.report("import", true, p.top_k.unwrap_or(0)))
    }
}
