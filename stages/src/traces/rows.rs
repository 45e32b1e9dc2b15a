//! The rows of traces, as a program holds them.

use serde::{Deserialize, Serialize};

use super::tokens::CandidateBytes;

/// Candidates that sizes given in rows allow for: of wider rows (`method: full`) fewer are held at once.
pub(crate) const CANDIDATES_OF_A_ROW: usize = 64;

/// Where the tokens of a sequence come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Origin {
    /// Given text that the teacher scored.
    Text,
    /// The teacher's own continuation of a prompt.
    Sample,
    /// The student's continuation, scored by the teacher.
    OnPolicy,
}

impl Origin {
    /// Name in the `source` column.
    pub fn name(self) -> &'static str {
        match self {
            Origin::Text => "text",
            Origin::Sample => "sample",
            Origin::OnPolicy => "on_policy",
        }
    }
    /// By its name there.
    pub fn parse(name: &str) -> Option<Self> {
        [Origin::Text, Origin::Sample, Origin::OnPolicy].into_iter().find(|s| s.name() == name)
    }
}

/// One sequence: what stands before its rows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SequenceRow {
    /// Prompt, or window of the text.
    pub prompt_idx: i64,
    /// Sample of that prompt.
    pub sample_idx: i32,
    /// Where its tokens come from.
    pub source: Origin,
    /// Bytes before the first row, as the template rendered them; empty: the sequence starts at BOS.
    pub context: Vec<u8>,
    /// Student ids of `context`, without BOS; projected traces only.
    pub context_ids: Option<Vec<i32>>,
    /// `stop`, `length`, `text`, or `error: …`.
    pub finish_reason: String,
}

/// One step of a teacher.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct RawRow {
    /// Teacher id of the drawn token, −1 where the teacher tells none.
    pub sample_id: i32,
    /// Bytes of the drawn token; empty where it ends the sequence (EOS).
    pub sample_bytes: Vec<u8>,
    /// Teacher ids by falling logprob; −1 where the teacher tells none.
    pub topk_ids: Vec<i32>,
    /// Their bytes; empty for EOS.
    pub topk_bytes: CandidateBytes,
    /// Their logprobs at temperature 1, falling.
    pub topk_logprobs: Vec<f32>,
    /// log of the mass outside the Top-K.
    pub other_logprob: f32,
    /// Log-sum-exp of logprob/τ over the tail, at each τ of the metadata.
    pub other_lse: Option<Vec<f32>>,
}

impl RawRow {
    /// Bytes of candidate `i`.
    pub fn candidate(&self, i: usize) -> &[u8] {
        match &self.topk_bytes {
            CandidateBytes::Own(strings) => strings.get(i),
            CandidateBytes::Table(table) => table.get(self.topk_ids[i]).unwrap_or_default(),
        }
    }
    /// How many candidates have bytes: all of them, but in foreign or damaged rows.
    pub fn candidates_with_bytes(&self) -> usize {
        match &self.topk_bytes {
            CandidateBytes::Own(strings) => strings.len(),
            CandidateBytes::Table(_) => self.topk_ids.len(),
        }
    }
    /// Bytes of all candidates.
    pub fn candidate_bytes(&self) -> impl Iterator<Item = &[u8]> {
        (0..self.candidates_with_bytes()).map(|i| self.candidate(i))
    }
}

/// One row that trains a student.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ProjectedRow {
    /// Student id of this position's token: the CE target.
    pub sample_id: i32,
    /// Its text (byte-aligned), or the teacher token's text (first sub-token).
    pub sample_text: String,
    /// Student ids by falling logprob.
    pub topk_ids: Vec<i32>,
    /// Their logprobs at temperature 1.
    pub topk_logprobs: Vec<f32>,
    /// log of the mass outside them.
    pub other_logprob: f32,
    /// Log-sum-exp of logprob/τ over the tail, where projection left it exact.
    pub other_lse: Option<Vec<f32>>,
    /// Whether the token is structural.
    pub is_struct: bool,
    /// Weight of the KL at this row: 0 for a quarantined row, which keeps its position and its CE.
    pub kd_weight: f32,
}

/// Whether a token is structural: its text holds one of `{ } [ ] : , "` or a code fence.
pub fn is_structural(text: &str) -> bool {
    text.bytes().any(|b| matches!(b, b'{' | b'}' | b'[' | b']' | b':' | b',' | b'"')) || text.contains("```")
}

#[cfg(test)]
mod tests {
    #[test]
    fn structural_tokens() {
        for (text, wanted) in [(" {", true), ("\",", true), ("a:b", true), ("```json", true), ("``", false), (" word", false), ("", false)]
        {
            assert_eq!(super::is_structural(text), wanted, "{text}");
        }
    }
}
