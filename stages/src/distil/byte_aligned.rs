//! Byte-aligned projection: one row for every token of the student, whatever the teacher's tokens are.
//!
//! The drawn text is encoded by the student's tokenizer. A student token `s` that starts after the bytes `b` of a
//! teacher token gets
//!
//!   P(s | b) = Σ p(t : bytes(t) starts with b and the rest encodes to s first) / (Σ p(t : bytes(t) starts with b) + Other)
//!
//! and the remaining mass is Other. The drawn teacher token needs no encoding of its own: its text did become the drawn
//! student token `s*`, in its context. Where `s*` reaches into later teacher tokens, the drawn mass is multiplied along
//! the drawn path, by the probability of each later token, and for the last one by that of all candidates that start
//! with the part that `s*` covers; what the product leaves of the drawn mass is Other.
//!
//! A candidate that was not drawn is encoded without what might have followed it. That is exact where the student's
//! tokens lie inside the teacher's, and where both break at the same places (spaces, in every byte-level BPE), and an
//! approximation where a longer student token could have begun there.

use super::buckets::Buckets;
use super::first_token::FirstToken;
use crate::traces::{CandidateBytes, RawRow, Settled};
use flow_lm::tokenizer::TokenId;

/// A student token over the teacher's rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    /// Student id.
    pub id: TokenId,
    /// Row in whose token it starts.
    pub row: usize,
    /// Bytes of that token before it.
    pub offset: usize,
    /// Row in whose token it ends.
    pub last: usize,
    /// Bytes of the last row's token up to its end.
    pub end: usize,
}

/// A teacher's row, ready to project: its distribution where it is valid.
pub struct Step<'a> {
    /// As collected.
    pub row: &'a RawRow,
    /// Settled, or quarantined.
    pub settled: Option<Settled>,
    /// Candidate that was drawn.
    pub drawn: Option<usize>,
}

impl<'a> Step<'a> {
    /// Finds the drawn candidate, by id where ids are known, else by bytes.
    pub fn new(row: &'a RawRow, settled: Option<Settled>) -> Self {
        let by_id = (row.sample_id >= 0).then(|| row.topk_ids.iter().position(|id| *id == row.sample_id)).flatten();
        let drawn = by_id.or_else(|| {
            let unknown = row.sample_id < 0 || row.topk_ids.iter().all(|id| *id < 0);
            unknown.then(|| row.candidate_bytes().position(|b| b == row.sample_bytes)).flatten()
        });
        Self { row, settled, drawn: drawn.filter(|d| *d < row.candidates_with_bytes()) }
    }
    /// Probability of the drawn token; 0 where it is not among the candidates.
    fn drawn_probability(&self) -> f64 {
        match (&self.settled, self.drawn) {
            (Some(s), Some(d)) => s.probs.get(d).copied().unwrap_or(0.0),
            _ => 0.0,
        }
    }
    /// Probability that the token starts with `part`, as far as the candidates tell.
    fn starts_with(&self, part: &[u8]) -> f64 {
        let Some(settled) = &self.settled else { return 0.0 };
        settled.probs.iter().zip(self.row.candidate_bytes()).filter(|(_, b)| b.starts_with(part)).map(|(p, _)| p).sum()
    }
}

/// The student's tokens of the drawn text, or `None` where its tokenizer does not reproduce the bytes.
/// A row with empty bytes ends a text: it becomes the student's EOS, and no token reaches over it.
pub fn spans(first: &FirstToken<'_>, rows: &[RawRow]) -> Option<Vec<Span>> {
    let student = first.student();
    let mut all = Vec::with_capacity(rows.len() + rows.len() / 4);
    let mut start = 0;
    while start < rows.len() {
        let stop = rows[start..].iter().position(|r| r.sample_bytes.is_empty()).map_or(rows.len(), |n| start + n);
        let text: Vec<u8> = rows[start..stop].iter().flat_map(|r| r.sample_bytes.iter().copied()).collect();
        let (mut row, mut row_start, mut at) = (start, 0usize, 0usize);
        for id in student.encode_bytes(&text) {
            let bytes = student.token_bytes(id);
            if bytes.is_empty() || !text[at..].starts_with(bytes) {
                return None;
            }
            let offset = at - row_start;
            let (first_row, end) = (row, at + bytes.len());
            while row_start + rows[row].sample_bytes.len() < end {
                row_start += rows[row].sample_bytes.len();
                row += 1;
            }
            all.push(Span { id, row: first_row, offset, last: row, end: end - row_start });
            at = end;
            if row_start + rows[row].sample_bytes.len() == end {
                row_start = end;
                row += 1;
            }
        }
        if at != text.len() {
            return None;
        }
        if stop < rows.len() {
            all.push(Span { id: student.eos(), row: stop, offset: 0, last: stop, end: 0 });
        }
        start = stop + 1;
    }
    Some(all)
}

/// The distribution at a span, and the probabilities of candidates whose mass moved into Other. `None` where the row is
/// quarantined.
pub fn project(first: &FirstToken<'_>, steps: &[Step<'_>], span: &Span) -> Option<(Buckets, Vec<f64>)> {
    let step = &steps[span.row];
    let settled = step.settled.as_ref()?;
    if step.row.candidates_with_bytes() != settled.probs.len() {
        return None;
    }
    let by_id = matches!(step.row.topk_bytes, CandidateBytes::Table(_));
    let before = &step.row.sample_bytes[..span.offset];
    // Without bytes before, the candidates and Other sum to 1.
    let total = if before.is_empty() { 1.0 } else { step.starts_with(before) + settled.other };
    let mut buckets = Buckets::with_capacity(settled.probs.len());
    let mut moved = Vec::new();
    for (i, (bytes, p)) in step.row.candidate_bytes().zip(&settled.probs).enumerate() {
        let Some(rest) = bytes.strip_prefix(before) else { continue };
        let p = p / total;
        if step.drawn == Some(i) {
            let kept = p * along_path(steps, span);
            buckets.add(span.id, kept);
            if kept < p {
                moved.push(p - kept);
            }
            continue;
        }
        let id = if bytes.is_empty() {
            Some(first.student().eos())
        } else if rest.is_empty() {
            // What follows this shorter token is not known at this row.
            None
        } else if by_id && before.is_empty() {
            first.of_id(step.row.topk_ids[i], bytes)
        } else {
            first.of(rest)
        };
        match id {
            Some(id) => buckets.add(id, p),
            None => moved.push(p),
        }
    }
    Some((buckets, moved))
}

/// Probability of what the span covers beyond its first row, along the drawn path.
fn along_path(steps: &[Step<'_>], span: &Span) -> f64 {
    if span.last == span.row {
        return 1.0;
    }
    let between: f64 = steps[span.row + 1..span.last].iter().map(Step::drawn_probability).product();
    let last = &steps[span.last];
    between * last.starts_with(&last.row.sample_bytes[..span.end])
}
