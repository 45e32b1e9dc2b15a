//! `kd.project`: from the teacher's tokens to the student's.

use std::sync::mpsc::sync_channel;

use flow_engine::plugin::{InputPort, OutputPort, ParamError, Stage, StageError, TaskContext};
use rayon::prelude::*;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use flow_lm::tokenizer::Tokenizer;

use super::first_token::FirstToken;
use super::sequence::{Projector, Rule};
use super::stats::Tally;
use crate::traces::{CANDIDATES_OF_A_ROW, ProjectedRow, RawRow, SequenceRow, TraceReader, TraceWriter};

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

/// Rows that go through the pool at once.
const CHUNK_ROWS: usize = 16_384;

type Raw = Vec<(SequenceRow, Vec<RawRow>)>;
type Done = Vec<(SequenceRow, Vec<ProjectedRow>, Tally)>;

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
        meta.eos_id = Some(student.eos() as i32);
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
        let out = ctx.output("stats")?;
        let json = serde_json::to_string_pretty(&stats).map_err(|e| StageError::new(e.to_string()))?;
        std::fs::write(out, json + "\n").map_err(|e| StageError::io("cannot write", out, &e))
    }
}

/// Reads, projects and writes at once; order and result do not depend on threads, memory not on the size.
fn stream(
    reader: &TraceReader<RawRow>,
    projector: &Projector<'_>,
    mut writer: TraceWriter<ProjectedRow>,
    ctx: &TaskContext,
) -> Result<Tally, StageError> {
    let total = reader.counts().rows;
    let sequences = reader.sequences()?;
    std::thread::scope(|scope| {
        let (send_raw, raw) = sync_channel::<Result<Raw, StageError>>(2);
        scope.spawn(move || {
            let (mut chunk, mut rows, mut candidates) = (Vec::new(), 0, 0);
            for item in sequences {
                match item {
                    Ok(item) => {
                        rows += item.1.len();
                        candidates += item.1.iter().map(|r| r.topk_ids.len()).sum::<usize>();
                        chunk.push(item);
                    }
                    Err(e) => {
                        let _ = send_raw.send(Err(e));
                        return;
                    }
                }
                if rows >= CHUNK_ROWS || candidates >= CHUNK_ROWS * CANDIDATES_OF_A_ROW {
                    (rows, candidates) = (0, 0);
                    // The receiver hangs up after an error of its own.
                    if send_raw.send(Ok(std::mem::take(&mut chunk))).is_err() {
                        return;
                    }
                }
            }
            let _ = send_raw.send(Ok(chunk));
        });
        let (send_done, done) = sync_channel::<Done>(2);
        let writing = scope.spawn(move || {
            let mut tally = Tally::default();
            for chunk in done {
                for (sequence, rows, one) in chunk {
                    tally.merge(&one);
                    writer.push(sequence, rows)?;
                }
            }
            writer.finish().map(|_| tally)
        });
        let mut read = 0;
        let mut failure = None;
        for chunk in raw {
            if ctx.should_stop() {
                failure = Some(StageError::interrupted());
                break;
            }
            match chunk {
                Ok(chunk) => {
                    read += chunk.iter().map(|s| s.1.len() as u64).sum::<u64>();
                    let projected: Done = chunk.into_par_iter().map(|(s, rows)| projector.project(s, &rows)).collect();
                    if send_done.send(projected).is_err() {
                        break;
                    }
                    ctx.progress(read, total, "rows");
                }
                Err(e) => {
                    failure = Some(e);
                    break;
                }
            }
        }
        drop(send_done);
        let written = writing.join().unwrap_or_else(|_| Err(StageError::new("the writer of projected traces panicked")));
        failure.map_or(written, Err)
    })
}
