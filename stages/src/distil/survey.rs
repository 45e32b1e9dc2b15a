//! What a traces directory holds, counted row by row, and what is wrong with its rows.

use std::path::Path;

use flow_engine::plugin::StageError;
use serde::Serialize;

use super::stats::{Tally, TraceStats};
use crate::traces::{Invalid, Layout, RawRow, TraceMeta, TraceReader, TraceRow, Unchecked, layout, settle};

/// A row that trains nobody.
#[derive(Clone, Debug, Serialize)]
pub struct BadRow {
    /// Row shard.
    pub file: String,
    /// Row in it, from 0.
    pub row: u64,
    /// Prompt.
    pub prompt_idx: i64,
    /// Sample of the prompt.
    pub sample_idx: i32,
    /// Step of the sample.
    pub step_idx: usize,
    /// Why ([`Invalid::name`], or `quarantined` where an earlier stage refused it).
    pub reason: &'static str,
}

/// What was found.
pub struct Survey {
    /// What holds for all rows.
    pub meta: TraceMeta,
    /// Sums over rows.
    pub stats: TraceStats,
    /// The first bad rows, at most as many as were asked for.
    pub bad: Vec<BadRow>,
}

/// The candidates of a row, whichever layout it has.
pub trait Candidates: TraceRow {
    /// Ids, logprobs and Other's logprob.
    fn distribution(&self) -> (&[i32], &[f32], f32);
    /// Whether the row was refused before.
    fn quarantined(&self) -> bool;
    /// Whether it holds its tail at each temperature of the traces.
    fn holds_tail(&self) -> bool;
    /// Whether the drawn token is among the candidates.
    fn drawn_is_candidate(&self) -> bool;
    /// Text of the drawn token.
    fn text(&self) -> String;
}

impl Candidates for RawRow {
    fn distribution(&self) -> (&[i32], &[f32], f32) {
        (&self.topk_ids, &self.topk_logprobs, self.other_logprob)
    }
    fn quarantined(&self) -> bool {
        false
    }
    fn holds_tail(&self) -> bool {
        self.other_lse.is_some()
    }
    fn drawn_is_candidate(&self) -> bool {
        self.topk_ids.contains(&self.sample_id) && self.sample_id >= 0 || self.candidate_bytes().any(|b| b == self.sample_bytes)
    }
    fn text(&self) -> String {
        String::from_utf8_lossy(&self.sample_bytes).into_owned()
    }
}

impl Candidates for Unchecked {
    fn distribution(&self) -> (&[i32], &[f32], f32) {
        (&self.0.topk_ids, &self.0.topk_logprobs, self.0.other_logprob)
    }
    fn quarantined(&self) -> bool {
        self.0.kd_weight == 0.0
    }
    fn holds_tail(&self) -> bool {
        self.0.other_lse.is_some()
    }
    fn drawn_is_candidate(&self) -> bool {
        self.0.topk_ids.contains(&self.0.sample_id)
    }
    fn text(&self) -> String {
        self.0.sample_text.clone()
    }
}

/// Reads a directory once and counts; keeps the first `keep` bad rows.
pub fn survey(dir: &Path, keep: usize) -> Result<Survey, StageError> {
    match layout(dir)? {
        Layout::Raw => survey_of::<RawRow>(dir, keep),
        Layout::Projected => survey_of::<Unchecked>(dir, keep),
    }
}

fn survey_of<R: Candidates>(dir: &Path, keep: usize) -> Result<Survey, StageError> {
    let reader = TraceReader::<R>::open(dir)?;
    let (mut tally, mut bad) = (Tally::default(), Vec::new());
    let mut sequences = reader.sequences()?;
    let (mut shard, mut row_in_shard) = (usize::MAX, 0);
    while let Some(item) = sequences.next() {
        let (sequence, rows) = item?;
        if sequences.shard() != shard {
            (shard, row_in_shard) = (sequences.shard(), 0);
        }
        let mut one = Tally::of_sequence(rows.len());
        for (step_idx, row) in rows.iter().enumerate() {
            let (ids, logprobs, other) = row.distribution();
            let reason = match settle(ids, logprobs) {
                _ if row.quarantined() => Some("quarantined"),
                // All mass in Other: nothing is known of this position, and nothing is wrong with it.
                Err(Invalid::Empty) if other > -1e-6 => None,
                Ok(settled) => {
                    one.renormalised += u64::from(settled.renormalised);
                    one.drawn_in_top_k += u64::from(row.drawn_is_candidate());
                    None
                }
                Err(reason) => {
                    one.refuse(reason);
                    Some(reason.name())
                }
            };
            one.exact_tails += u64::from(reason.is_none() && row.holds_tail());
            one.count(logprobs, other, row.structural(), reason.is_none(), sequence.source.name());
            if let Some(reason) = reason.filter(|_| bad.len() < keep) {
                let (prompt_idx, sample_idx) = (sequence.prompt_idx, sequence.sample_idx);
                bad.push(BadRow { file: format!("rows-{shard:05}.parquet"), row: row_in_shard, prompt_idx, sample_idx, step_idx, reason });
            }
            row_in_shard += 1;
        }
        tally.merge(&one);
    }
    let meta = reader.meta().clone();
    let method = meta.projection.clone().unwrap_or_else(|| "raw".into());
    let stats = tally.report(&method, method == "exact", meta.top_k);
    Ok(Survey { meta, stats, bad })
}

/// The first rows of a directory, as lines for a person.
pub fn head(dir: &Path, rows: usize) -> Result<Vec<String>, StageError> {
    match layout(dir)? {
        Layout::Raw => head_of::<RawRow>(dir, rows),
        Layout::Projected => head_of::<Unchecked>(dir, rows),
    }
}

fn head_of<R: Candidates>(dir: &Path, limit: usize) -> Result<Vec<String>, StageError> {
    let reader = TraceReader::<R>::open(dir)?;
    let mut lines = Vec::new();
    for item in reader.sequences()? {
        let (sequence, rows) = item?;
        let context = String::from_utf8_lossy(&sequence.context).into_owned();
        lines.push(format!(
            "prompt {} sample {} ({}, {}): {} rows after {context:?}",
            sequence.prompt_idx,
            sequence.sample_idx,
            sequence.source.name(),
            sequence.finish_reason,
            rows.len()
        ));
        for (step, row) in rows.iter().enumerate() {
            if lines.len() >= limit {
                return Ok(lines);
            }
            let (ids, logprobs, other) = row.distribution();
            let best: Vec<String> = ids.iter().zip(logprobs).take(4).map(|(id, l)| format!("{id}: {:.3}", l.exp())).collect();
            lines.push(format!("  {step:4}  {:16}  {}  other {:.3}", format!("{:?}", row.text()), best.join("  "), other.exp()));
        }
        if lines.len() >= limit {
            break;
        }
    }
    Ok(lines)
}
