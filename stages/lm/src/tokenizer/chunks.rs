//! Long texts in pieces that encode as the whole does.

/// Text longer than this is cut at safe places and encoded in parallel.
pub(super) const CHUNK: usize = 32 << 10;

/// Cuts before a single space between two ASCII letters: every pre-tokenizer of the GPT-2 and Llama families starts a
/// piece there whatever stands around it, so the parts encode as the whole does.
pub(super) fn safe_pieces(text: &str, target: usize) -> Vec<&str> {
    let bytes = text.as_bytes();
    let mut pieces = Vec::with_capacity(bytes.len() / target + 1);
    let mut start = 0;
    while bytes.len() - start > target {
        let from = start + target;
        let cut =
            (from..bytes.len() - 1).find(|&i| bytes[i] == b' ' && bytes[i - 1].is_ascii_alphabetic() && bytes[i + 1].is_ascii_alphabetic());
        let Some(cut) = cut else { break };
        pieces.push(&text[start..cut]);
        start = cut;
    }
    pieces.push(&text[start..]);
    pieces
}
