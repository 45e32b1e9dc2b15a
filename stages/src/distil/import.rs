//! Rows that another tool collected and projected: sequences are found by their steps, bad rows keep their place.

use std::collections::BTreeMap;
use std::path::Path;

use flow_engine::plugin::{StageError, TaskContext};

use super::sequence::Projector;
use super::stats::Tally;
use crate::traces::foreign::ForeignRow;
use crate::traces::{Origin, ProjectedRow, RawRow, SequenceRow, TraceWriter};

fn named(file: &Path, row: u64, what: &str) -> String {
    format!("{} row {row}: {what}", file.display())
}

/// Rows of another tool on their way into projected traces.
pub struct Import<'a> {
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

impl<'a> Import<'a> {
    /// Rows over a vocabulary, with the contexts of their prompts.
    pub fn new(contexts: &'a [String], vocab: usize, projector: Projector<'a>, writer: TraceWriter<ProjectedRow>) -> Self {
        Self {
            contexts,
            vocab: vocab as i32,
            projector,
            writer,
            tally: Tally::default(),
            waiting: Vec::new(),
            parts: BTreeMap::new(),
            gaps: 0,
            first_bad: None,
        }
    }

    /// Takes a row, in order.
    pub fn take(&mut self, row: ForeignRow) -> Result<(), StageError> {
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
            source: Origin::Sample,
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

    /// Writes what is left, and refuses where more than `max_invalid` of the rows in `path` are bad.
    pub fn finish(mut self, path: &Path, max_invalid: f64, ctx: &TaskContext) -> Result<Tally, StageError> {
        self.close()?;
        self.writer.finish()?;
        let (tally, path) = (&self.tally, path.display());
        if tally.rows == 0 {
            return Err(StageError::new(format!("{path}: the files hold no rows")));
        }
        let reasons = tally.invalid.iter().map(|(k, v)| format!("{k}: {v}")).collect::<Vec<_>>().join(", ");
        if let Some(first) = &self.first_bad {
            let what = format!("{:.2} % of the rows are invalid ({reasons}), the first is {first}", 100.0 * tally.invalid_share());
            if tally.invalid_share() > max_invalid {
                return Err(StageError::new(format!("{path}: {what}; max_invalid allows {:.2} %", 100.0 * max_invalid)).help(
                    "mend them where they were made, or raise `max_invalid`: such rows keep their place and train by cross-entropy",
                ));
            }
            ctx.warn(format!("{what}; they keep their place and train without KL"));
        }
        if self.gaps > 0 {
            ctx.warn(format!("{} sequences begin after step 0: steps before them were dropped where the traces were made", self.gaps));
        }
        Ok(self.tally)
    }
}
