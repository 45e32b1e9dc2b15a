//! Which tokens of a text are read together, and which of these are scored: every byte of a text once.

use std::ops::Range;

use flow_lm::tokenizer::Tokenizer;

use super::quality::Heldout;

/// Tokens that are read together, from BOS.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Read {
    /// Their places in the text.
    pub tokens: Range<usize>,
    /// How many of them only stand before what is scored.
    pub skip: usize,
}

/// Windows of `len` tokens over a text of `count`, each `stride` after the one before; of what several hold the first scores it.
pub fn strided(count: usize, len: usize, stride: usize) -> Vec<Read> {
    let mut all = Vec::new();
    let mut scored = 0;
    for start in (0..count).step_by(stride.max(1)) {
        let end = count.min(start + len);
        if end > scored {
            all.push(Read { tokens: start..end, skip: scored - start });
            scored = end;
        }
    }
    all
}

/// Where each token of a text ends in it, in bytes; `None` where the text does not come back from its tokens byte for byte.
/// A space before the first word, which some tokenizers add, belongs to no byte.
pub fn ends(tokenizer: &Tokenizer, text: &Heldout) -> Option<Vec<usize>> {
    let found = &text.fidelity;
    let added = usize::try_from(found.added_spaces).ok().filter(|n| *n <= 1 && found.normalised + found.lost == 0)?;
    let mut at = 0;
    let ends: Vec<usize> = text
        .tokens
        .iter()
        .map(|t| {
            at += tokenizer.token_bytes(*t).len();
            at.saturating_sub(added)
        })
        .collect();
    // The one that was added stands in front, or none of this holds.
    (ends.last().copied().unwrap_or(0) == text.bytes).then_some(ends)
}

/// Windows of the same bytes in the tokens of two tokenizers, `(ends, most tokens)` each: both begin and end where a token of
/// either does, and each is as long as both sides have room for. `None` where no such place comes before one has none left.
pub fn shared(ours: (&[usize], usize), theirs: (&[usize], usize)) -> Option<Vec<(Range<usize>, Range<usize>)>> {
    let mut all = Vec::new();
    let (mut from, mut to) = ((0, 0), (0, 0));
    let whole = |from: (usize, usize), to: (usize, usize)| (from.0..to.0, from.1..to.1);
    for cut in cuts(ours.0, theirs.0) {
        let fits = |from: (usize, usize)| cut.0 - from.0 <= ours.1 && cut.1 - from.1 <= theirs.1;
        if !fits(from) {
            all.push(whole(from, to));
            from = to;
            if !fits(from) {
                return None;
            }
        }
        to = cut;
    }
    if to != from {
        all.push(whole(from, to));
    }
    Some(all)
}

/// How many tokens of both end at the same byte, at each such byte but the first; the last is the end of the text.
fn cuts(ours: &[usize], theirs: &[usize]) -> Vec<(usize, usize)> {
    let (mut i, mut j) = (0, 0);
    let mut all = Vec::new();
    while let (Some(a), Some(b)) = (ours.get(i), theirs.get(j)) {
        i += usize::from(a <= b);
        j += usize::from(b <= a);
        if a == b {
            all.push((i, j));
        }
    }
    // Tokens without bytes at the end.
    if let Some(last) = all.last_mut() {
        *last = (ours.len(), theirs.len());
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn windows_by_hand() {
        let read = |tokens, skip| Read { tokens, skip };
        assert_eq!(strided(10, 4, 4), [read(0..4, 0), read(4..8, 0), read(8..10, 0)]);
        assert_eq!(strided(10, 4, 2), [read(0..4, 0), read(2..6, 2), read(4..8, 2), read(6..10, 2)]);
        assert_eq!(strided(0, 4, 4), []);
        // "abcdefgh" as ab|cd|ef|gh and as abc|d|efgh: both end at 4 and 8.
        let (ours, theirs) = ([2, 4, 6, 8], [3, 4, 8]);
        assert_eq!(shared((&ours, 8), (&theirs, 8)), Some(vec![(0..4, 0..3)]));
        assert_eq!(shared((&ours, 3), (&theirs, 8)), Some(vec![(0..2, 0..2), (2..4, 2..3)]));
        assert_eq!(shared((&ours, 8), (&theirs, 2)), Some(vec![(0..2, 0..2), (2..4, 2..3)]));
        assert_eq!(shared((&ours, 1), (&theirs, 8)), None, "no token ends at 2 on the other side");
        assert_eq!(shared((&[], 4), (&[], 4)), Some(vec![]));
    }

    fn text() -> impl Strategy<Value = Vec<usize>> {
        proptest::collection::vec(0usize..4, 1..60).prop_map(|lens| {
            let mut at = 0;
            lens.iter()
                .map(|n| {
                    at += n;
                    at
                })
                .collect()
        })
    }

    proptest! {
        /// Both sides read the same bytes in every window, all of them once, and no more tokens than they have room for.
        #[test]
        fn both_sides_read_the_same_bytes(ours in text(), theirs in text(), most in (1usize..12, 1usize..12)) {
            let end = ours[ours.len() - 1].max(theirs[theirs.len() - 1]);
            let whole = |mut ends: Vec<usize>| { ends.push(end); ends };
            let (ours, theirs) = (whole(ours), whole(theirs));
            let at = |ends: &[usize], i: usize| if i == 0 { 0 } else { ends[i - 1] };
            if let Some(all) = shared((&ours, most.0), (&theirs, most.1)) {
                let (mut i, mut j) = (0, 0);
                for (a, b) in all {
                    prop_assert_eq!((a.start, b.start), (i, j));
                    (i, j) = (a.end, b.end);
                    prop_assert!(a.len() <= most.0 && b.len() <= most.1);
                    prop_assert_eq!((at(&ours, a.start), at(&ours, a.end)), (at(&theirs, b.start), at(&theirs, b.end)));
                }
                prop_assert!(end == 0 || (i, j) == (ours.len(), theirs.len()));
            }
        }
    }
}
