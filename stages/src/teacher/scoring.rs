//! Teacher-forced scoring: the Top-K rows of given tokens.

use flow_engine::plugin::StageError;

use crate::lm::{Window, score_batch};
use crate::model::inference::Inference;
use crate::tokenizer::Tokenizer;
use crate::traces::{ByteStrings, RawRow};
use crate::train::device_error;

/// What rows keep.
#[derive(Clone, Copy, Debug)]
pub struct Keep {
    /// Candidates of a row.
    pub top_k: usize,
    /// Temperatures of the stored tail.
    pub taus: usize,
    /// Windows scored together, and their length: those of the session.
    pub batch: usize,
    /// Tokens of a window.
    pub seq: usize,
}

/// Rows of every window (at most `keep.batch` of them): row `t` is the distribution that token `t` was drawn from.
pub fn score(lm: &mut Inference, tokenizer: &Tokenizer, windows: &[Window<'_>], keep: Keep) -> Result<Vec<Vec<RawRow>>, StageError> {
    let b = score_batch(windows, keep.batch, keep.seq);
    let top = lm.top_k(&b.ids, &b.mask).map_err(device_error)?;
    let (k, width) = (keep.top_k, 1 + keep.taus);
    let row = |r: usize, token: u32| {
        let ids = &top.ids[r * k..(r + 1) * k];
        RawRow {
            sample_id: token as i32,
            sample_bytes: bytes(tokenizer, token).to_vec(),
            topk_ids: ids.iter().map(|i| *i as i32).collect(),
            topk_bytes: ids.iter().map(|i| bytes(tokenizer, *i)).collect::<ByteStrings>(),
            topk_logprobs: top.logprobs[r * k..(r + 1) * k].iter().map(|l| l.min(0.0)).collect(),
            other_logprob: top.other[r * width].min(0.0),
            other_lse: (keep.taus > 0).then(|| top.other[r * width + 1..(r + 1) * width].to_vec()),
        }
    };
    Ok(windows
        .iter()
        .enumerate()
        .map(|(i, w)| w.targets.iter().enumerate().map(|(t, token)| row(i * keep.seq + t, *token)).collect())
        .collect())
}

/// Bytes of a token; none for one that ends a text.
fn bytes(tokenizer: &Tokenizer, id: u32) -> &[u8] {
    if tokenizer.is_end(id) { b"" } else { tokenizer.token_bytes(id) }
}
