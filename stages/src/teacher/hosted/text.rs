//! Given text for a hosted teacher: windows to score, or beginnings to continue.

use crate::data::spread::spread;

/// Bytes of a window that is scored: about 128 tokens.
const WINDOW: usize = 512;
/// Bytes of a beginning that is continued.
const BEGINNING: usize = 240;

/// Windows of a text, cut before white space where there is some, at most `bytes` long.
fn windows(text: &str, bytes: usize) -> Vec<&str> {
    let mut all = Vec::new();
    let mut rest = text;
    while !rest.is_empty() {
        let mut end = bytes.min(rest.len());
        while !rest.is_char_boundary(end) {
            end -= 1;
        }
        if end < rest.len()
            && let Some(space) = rest[..end].rfind(char::is_whitespace).filter(|s| *s > bytes / 2)
        {
            end = space;
        }
        let (window, after) = rest.split_at(end);
        all.push(window);
        rest = after;
    }
    all
}

/// Windows to score, spread over the text, of at most so many tokens in all, counted as four bytes each.
pub fn to_score(text: &str, tokens: Option<u64>, seed: u64) -> Vec<&str> {
    let all = windows(text, WINDOW);
    let most = tokens.map_or(usize::MAX, |n| usize::try_from(n).unwrap_or(usize::MAX).saturating_mul(4));
    if most >= text.len() || most == 0 {
        return if most == 0 { Vec::new() } else { all };
    }
    // A window is no longer than `WINDOW`; a budget that is smaller gives the beginning of one.
    let Some(whole) = (most / WINDOW).checked_sub(1) else {
        return all.get(spread(all.len(), 1, seed)[0]).and_then(|w| windows(w, most.max(4)).first().copied()).into_iter().collect();
    };
    spread(all.len(), whole + 1, seed).into_iter().map(|i| all[i]).collect()
}

/// Beginnings to continue, spread over the text, so many that their continuations have at most so many tokens.
pub fn to_continue(text: &str, tokens: Option<u64>, max_tokens: usize, seed: u64) -> Vec<&str> {
    let all = windows(text, BEGINNING);
    let most = tokens.map_or(all.len(), |n| usize::try_from(n / max_tokens.max(1) as u64).unwrap_or(usize::MAX)).min(all.len());
    spread(all.len(), most, seed).into_iter().map(|i| all[i]).filter(|w| !w.trim().is_empty()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_hold_the_whole_text_and_beginnings_are_spread() {
        let text = "Ünser täglich Brot gib uns heute. ".repeat(100);
        assert_eq!(windows(&text, 50).concat(), text);
        assert!(windows(&text, 50).iter().all(|w| w.len() <= 50));
        assert_eq!(windows(&"ä".repeat(200), 51).concat(), "ä".repeat(200));
        assert_eq!(to_continue(&text, Some(400), 100, 1).len(), 4);
        assert!(to_score(&text, Some(0), 1).is_empty());
        // Spread over the text, not its beginning: pieces of it with gaps between them.
        let long: String = (0..4000).map(|i| format!("{i} ")).collect();
        for some in [to_score(&long, Some(1000), 1), to_continue(&long, Some(800), 100, 1)] {
            let numbers: Vec<usize> = some.iter().filter_map(|w| w.split_whitespace().nth(1)?.parse().ok()).collect();
            assert!(numbers.iter().any(|n| *n < 1300) && numbers.iter().any(|n| *n > 2700), "{numbers:?}");
        }
        for tokens in [1, 100, 128, 300, 600, 10_000] {
            let scored = to_score(&text, Some(tokens), 1).concat();
            assert!(!scored.is_empty() && scored.len() as u64 <= 4 * tokens.max(2), "{tokens}");
        }
    }
}
