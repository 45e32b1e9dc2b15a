//! One sequence of the teacher's rows becomes one of the student's.

use super::buckets::{Buckets, Cut};
use super::byte_aligned::{Step, project, spans};
use super::first_subtoken::first_subtoken;
use super::first_token::FirstToken;
use super::stats::Tally;
use crate::traces::{Invalid, OTHER_FLOOR, OTHER_LEAST, ProjectedRow, RawRow, SequenceRow, Settled, is_structural, settle};
use flow_lm::tokenizer::TokenId;

/// What is done to rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rule {
    /// Equal tokenizers: rows pass.
    Same,
    /// One row per student token.
    ByteAligned,
    /// One row per teacher token.
    FirstSubtoken,
}

/// Projects sequences.
pub struct Projector<'a> {
    first: &'a FirstToken<'a>,
    rule: Rule,
    top_k: usize,
    teacher_eos: Option<i32>,
}

impl<'a> Projector<'a> {
    /// A projector onto the tokenizer of `first`.
    pub fn new(first: &'a FirstToken<'a>, rule: Rule, top_k: usize, teacher_eos: Option<i32>) -> Self {
        Self { first, rule, top_k, teacher_eos }
    }

    /// Projects one sequence.
    pub fn project(&self, mut sequence: SequenceRow, rows: &[RawRow]) -> (SequenceRow, Vec<ProjectedRow>, Tally) {
        let student = self.first.student();
        sequence.context_ids = Some(student.encode_bytes(&sequence.context).into_iter().map(TokenId::signed).collect());
        let mut tally = Tally::of_sequence(rows.len());
        let owned: Vec<RawRow>;
        let rows = match self.teacher_eos {
            // EOS may come with its literal text; everything below knows it by its empty bytes.
            Some(eos) if rows.iter().any(|r| names_eos(r, eos)) => {
                owned = rows.iter().map(|r| without_eos_text(r, eos)).collect();
                &owned[..]
            }
            _ => rows,
        };
        let steps: Vec<Step<'_>> = rows.iter().map(|r| Step::new(r, self.settle(r, &mut tally))).collect();
        tally.drawn_in_top_k = steps.iter().filter(|s| s.drawn.is_some()).count() as u64;
        let source = sequence.source.name();
        let mut out = Vec::with_capacity(rows.len() + rows.len() / 4);
        match self.rule {
            Rule::Same => {
                for step in &steps {
                    let row = self.same(step);
                    tally.emit(&row, source, 0.0);
                    out.push(row);
                }
            }
            Rule::FirstSubtoken => {
                for step in &steps {
                    let (row, lost) = self.first_subtoken(step, &mut tally);
                    tally.emit(&row, source, lost);
                    out.push(row);
                }
            }
            Rule::ByteAligned => self.byte_aligned(rows, &steps, source, &mut tally, &mut out),
        }
        (sequence, out, tally)
    }

    fn settle(&self, row: &RawRow, tally: &mut Tally) -> Option<Settled> {
        // An end without a distribution is not invalid: a hosted teacher ends, and tells nobody how likely that was.
        if row.sample_bytes.is_empty() && row.topk_ids.is_empty() {
            return None;
        }
        match self.check(row) {
            Ok(settled) => {
                tally.renormalised += u64::from(settled.renormalised);
                Some(settled)
            }
            Err(reason) => {
                tally.refuse(reason);
                None
            }
        }
    }

    /// A row's distribution, or what is wrong with it.
    pub fn check(&self, row: &RawRow) -> Result<Settled, Invalid> {
        let vocab = self.first.student().vocab_size() as i32;
        let settled = settle(&row.topk_ids, &row.topk_logprobs)?;
        if row.other_lse.iter().flatten().any(|l| !l.is_finite()) {
            return Err(Invalid::NotFinite);
        }
        match self.rule {
            Rule::Same if !row.topk_ids.iter().all(|id| (0..vocab).contains(id)) => Err(Invalid::Vocabulary),
            Rule::ByteAligned | Rule::FirstSubtoken if row.candidates_with_bytes() != row.topk_ids.len() => Err(Invalid::Length),
            _ => Ok(settled),
        }
    }

    fn same(&self, step: &Step<'_>) -> ProjectedRow {
        let row = step.row;
        let text = String::from_utf8_lossy(&row.sample_bytes).into_owned();
        let Some(settled) = &step.settled else { return quarantined(row.sample_id, text) };
        let keep = self.top_k.min(settled.probs.len());
        let cut_off: f64 = settled.probs[keep..].iter().sum();
        let logprob = |(p, l): (&f64, &f32)| if settled.renormalised { p.ln() as f32 } else { *l };
        let unchanged = keep == settled.probs.len() && !settled.renormalised;
        // The teacher's own Other is exact where 1 − Σp has lost its digits.
        let given = f64::from(row.other_logprob).exp();
        let other = if unchanged && (given - settled.other).abs() < 1e-4 && given >= OTHER_LEAST { given } else { settled.other + cut_off };
        ProjectedRow {
            sample_id: row.sample_id,
            is_struct: is_structural(&text),
            sample_text: text,
            topk_ids: row.topk_ids[..keep].to_vec(),
            topk_logprobs: settled.probs.iter().zip(&row.topk_logprobs).take(keep).map(logprob).collect(),
            other_logprob: other.ln() as f32,
            other_lse: if keep == settled.probs.len() { row.other_lse.clone() } else { None },
            kd_weight: 1.0,
        }
    }

    fn first_subtoken(&self, step: &Step<'_>, tally: &mut Tally) -> (ProjectedRow, f64) {
        let row = step.row;
        let text = String::from_utf8_lossy(&row.sample_bytes).into_owned();
        let student = self.first.student();
        let id = if row.sample_bytes.is_empty() { Some(student.eos()) } else { self.first.of(&row.sample_bytes) };
        let id = id.unwrap_or_else(|| student.eos()).signed();
        let Some(settled) = &step.settled else { return (quarantined(id, text), 0.0) };
        let candidates = row.candidate_bytes().zip(settled.probs.iter().copied());
        let (cut, dropped, lost) = first_subtoken(self.first, candidates, self.top_k);
        tally.moved_candidates += dropped.len() as u64;
        let exact = dropped.is_empty() && cut.beyond == 0.0;
        let lse = if exact { row.other_lse.clone() } else { None };
        let lost = lost + cut.beyond;
        (finished(id, text, cut, lse), lost)
    }

    fn byte_aligned(&self, rows: &[RawRow], steps: &[Step<'_>], source: &'static str, tally: &mut Tally, out: &mut Vec<ProjectedRow>) {
        let student = self.first.student();
        let text_of = |id: TokenId| String::from_utf8_lossy(student.token_bytes(id)).into_owned();
        let Some(spans) = spans(self.first, rows) else {
            tally.not_reproduced += 1;
            let text: Vec<u8> = rows.iter().flat_map(|r| r.sample_bytes.iter().copied()).collect();
            for id in student.encode_bytes(&text) {
                let row = quarantined(id.signed(), text_of(id));
                tally.emit(&row, source, 0.0);
                out.push(row);
            }
            return;
        };
        for span in &spans {
            tally.spanning += u64::from(span.last > span.row);
            let ends = steps[span.row].row.sample_bytes.is_empty();
            let text = if ends { String::new() } else { text_of(span.id) };
            let row = match project(self.first, steps, span) {
                Some((buckets, moved)) => {
                    let lse = exact_lse(steps[span.row].row, span.offset, &moved);
                    let (row, lost) = self.finish(span.id.signed(), text, buckets, &moved, lse);
                    tally.moved_candidates += moved.len() as u64;
                    tally.emit(&row, source, lost);
                    row
                }
                None => {
                    let row = quarantined(span.id.signed(), text);
                    tally.emit(&row, source, 0.0);
                    row
                }
            };
            out.push(row);
        }
    }

    fn finish(&self, id: i32, text: String, buckets: Buckets, moved: &[f64], lse: Option<Vec<f32>>) -> (ProjectedRow, f64) {
        let cut = buckets.cut(self.top_k);
        let lost = moved.iter().sum::<f64>() + cut.beyond;
        let lse = if cut.beyond == 0.0 { lse } else { None };
        (finished(id, text, cut, lse), lost)
    }
}

/// The tail's log-sum-exp holds over the teacher's own pieces as long as no candidate joined the tail.
fn exact_lse(row: &RawRow, offset: usize, moved: &[f64]) -> Option<Vec<f32>> {
    if offset == 0 && moved.is_empty() { row.other_lse.clone() } else { None }
}

fn finished(id: i32, text: String, cut: Cut, other_lse: Option<Vec<f32>>) -> ProjectedRow {
    ProjectedRow {
        sample_id: id,
        is_struct: is_structural(&text),
        sample_text: text,
        topk_ids: cut.ids,
        topk_logprobs: cut.logprobs.iter().map(|l| *l as f32).collect(),
        other_logprob: cut.other.ln() as f32,
        other_lse,
        kd_weight: 1.0,
    }
}

/// A row that keeps its position and its CE target, with a harmless distribution of weight 0.
fn quarantined(id: i32, text: String) -> ProjectedRow {
    ProjectedRow {
        sample_id: id,
        is_struct: is_structural(&text),
        sample_text: text,
        topk_ids: vec![id.max(0)],
        topk_logprobs: vec![(1.0 - OTHER_FLOOR).ln() as f32],
        other_logprob: OTHER_FLOOR.ln() as f32,
        other_lse: None,
        kd_weight: 0.0,
    }
}

fn names_eos(row: &RawRow, eos: i32) -> bool {
    let candidate = row.topk_ids.iter().position(|id| *id == eos).filter(|i| *i < row.candidates_with_bytes());
    (row.sample_id == eos && !row.sample_bytes.is_empty()) || candidate.is_some_and(|i| !row.candidate(i).is_empty())
}

fn without_eos_text(row: &RawRow, eos: i32) -> RawRow {
    let mut row = row.clone();
    if row.sample_id == eos {
        row.sample_bytes.clear();
    }
    if row.candidates_with_bytes() == row.topk_ids.len() {
        row.topk_bytes = row.topk_ids.iter().zip(row.candidate_bytes()).map(|(id, b)| if *id == eos { &[][..] } else { b }).collect();
    }
    row
}
