//! `kd.project`: from the teacher's tokens to the student's.

use flow_engine::plugin::{InputPort, OutputPort, ParamError, Stage, StageError, TaskContext};
use flow_lm::tokenizer::Tokenizer;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::distil::project::stream;
use crate::distil::{FirstToken, Projector, Rule};
use crate::task;
use crate::traces::{ProjectedRow, RawRow, TraceReader, TraceWriter};

/// How tokens of the teacher become tokens of the student.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Method {
    /// One row for every student token, probabilities conditional on the bytes already drawn.
    #[default]
    ByteAligned,
    /// One row for every teacher token, the first student token of its text (the proof of concept's rule).
    FirstSubtoken,
}

/// Parameters of `kd.project`.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ProjectParams {
    /// The rule. Where both tokenizers are equal rows pass unchanged.
    pub method: Method,
    /// Student candidates to keep per row; all that the traces hold where null.
    pub top_k: Option<usize>,
    /// Share of invalid teacher rows above which the stage fails.
    pub max_invalid: f64,
}

impl Default for ProjectParams {
    fn default() -> Self {
        Self { method: Method::ByteAligned, top_k: None, max_invalid: 0.02 }
    }
}

/// `kd.project`.
pub struct ProjectStage;

impl Stage for ProjectStage {
    type Params = ProjectParams;
    const KIND: &'static str = "kd.project";
    const REVISION: u32 = 3;
    const SUMMARY: &'static str = "Turns a teacher's traces into rows over the student's vocabulary.";

    fn inputs(&self) -> Vec<InputPort> {
        vec![
            InputPort::required("traces", &["Traces"], "What `kd.collect` wrote."),
            InputPort::required("tokenizer", &["Tokenizer"], "The student's tokenizer."),
        ]
    }
    fn outputs(&self) -> Vec<OutputPort> {
        vec![
            OutputPort::pure("traces", "ProjectedTraces", "Rows with student ids."),
            OutputPort::pure("stats", "TraceStats", "Coverage, refused rows, lost mass (JSON)."),
        ]
    }
    fn check(&self, p: &ProjectParams) -> Result<Vec<String>, ParamError> {
        let wrong = |path: &str, message: String| Err(ParamError { path: path.into(), message, help: None });
        if p.top_k == Some(0) {
            return wrong("top_k", "0 is not above 0".into());
        }
        if !(0.0..=1.0).contains(&p.max_invalid) {
            return wrong("max_invalid", format!("{} is not a share between 0 and 1", p.max_invalid));
        }
        Ok(Vec::new())
    }
    fn run(&self, p: ProjectParams, ctx: &TaskContext) -> Result<(), StageError> {
        let student = Tokenizer::load(ctx.input("tokenizer")?)?;
        let path = ctx.input("traces")?;
        let reader = TraceReader::<RawRow>::open(path)?;
        let first = FirstToken::new(&student).with_ids(reader.tokens());
        let exact = reader.meta().tokenizer_hash == student.digest();
        let rule = match (exact, p.method) {
            (true, _) => Rule::Same,
            (false, Method::ByteAligned) => Rule::ByteAligned,
            (false, Method::FirstSubtoken) => Rule::FirstSubtoken,
        };
        let projector = Projector::new(&first, rule, p.top_k.unwrap_or(usize::MAX), reader.meta().eos_id);
        let method = match p.method {
            Method::ByteAligned => "byte_aligned",
            Method::FirstSubtoken => "first_subtoken",
        };
        let mut meta = reader.meta().clone();
        meta.teacher_tokenizer_hash = std::mem::replace(&mut meta.tokenizer_hash, student.digest());
        meta.vocab = student.vocab_size();
        meta.eos_id = Some(student.eos().signed());
        meta.top_k = p.top_k.unwrap_or(meta.top_k);
        let top_k = meta.top_k;
        meta.projection = Some(if exact { "exact".into() } else { method.into() });
        let writer = TraceWriter::<ProjectedRow>::create(ctx.output("traces")?, &meta)?;
        let tally = stream(&reader, &projector, writer, ctx)?;
        let stats = tally.report(method, exact, top_k);
        if tally.rows == 0 {
            return Err(StageError::new(format!("{}: the traces hold no rows", path.display())).help("collect some: `kd.collect`"));
        }
        if tally.invalid_share() > p.max_invalid {
            return Err(StageError::new(format!(
                "{}: {:.2} % of the teacher's rows are invalid, max_invalid allows {:.2} % ({})",
                path.display(),
                100.0 * tally.invalid_share(),
                100.0 * p.max_invalid,
                tally.invalid.iter().map(|(k, v)| format!("{k}: {v}")).collect::<Vec<_>>().join(", ")
            ))
            .help("see what the teacher sends as logprobs, or raise `max_invalid`"));
        }
        if tally.not_reproduced > 0 {
            ctx.warn(format!(
                "{} of {} sequences are not reproduced byte by byte by the student's tokenizer; they train without KL",
                tally.not_reproduced, tally.sequences
            ));
        }
        ctx.metric("rows", tally.rows as f64);
        ctx.metric("coverage", stats.coverage);
        task::write_json(ctx.output("stats")?, &stats)
    }
}
