//! Windows of text, laid out for scoring.

use crate::tokenizer::TokenId;

/// What is scored in one go: a token that is only read, and those that follow it.
#[derive(Clone, Copy, Debug)]
pub struct Window<'a> {
    /// Read first: BOS, or the first token of a prompt that has none.
    pub first: TokenId,
    /// Scored.
    pub targets: &'a [TokenId],
}

/// Windows of at most `seq` targets, scored `batch` at a time: ids, mask and labels.
pub struct ScoreBatch {
    /// Inputs `[batch, seq]`.
    pub ids: Vec<TokenId>,
    /// Real tokens.
    pub mask: Vec<u32>,
    /// Targets, −1 for none.
    pub labels: Vec<i32>,
}

/// Lays windows of targets out for scoring; fewer than `batch` are padded with empty ones.
pub fn score_batch(windows: &[Window<'_>], batch: usize, seq: usize) -> ScoreBatch {
    let mut b = ScoreBatch { ids: vec![TokenId(0); batch * seq], mask: vec![0; batch * seq], labels: vec![-1; batch * seq] };
    for (i, w) in windows.iter().enumerate() {
        b.ids[i * seq] = w.first;
        for (t, token) in w.targets.iter().enumerate() {
            b.labels[i * seq + t] = token.signed();
            b.mask[i * seq + t] = 1;
            if t + 1 < seq {
                b.ids[i * seq + t + 1] = *token;
            }
        }
    }
    b
}
