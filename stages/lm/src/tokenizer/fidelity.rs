//! Whether a text comes back from its tokens: their joined bytes against the text, place by place.

use serde::{Deserialize, Serialize};
use tokenizers::NormalizedString;

/// How a text comes back from its tokens. Places are counted; the first that are lost are kept.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fidelity {
    /// Bytes of the text.
    pub bytes: u64,
    /// Places whose letters were composed (Unicode NFC): the same text in other bytes.
    pub normalised: u64,
    /// Spaces that stand before what has none.
    pub added_spaces: u64,
    /// Places that come back as something else, or not at all.
    pub lost: u64,
    /// The first of them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub first: Vec<Difference>,
}

/// A place of a text that its tokens do not give back.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Difference {
    /// Bytes of the text before it.
    pub offset: u64,
    /// What stands there.
    pub text: String,
    /// What the tokens give.
    pub tokens: String,
}

/// Differences that are kept with their places.
const KEPT: usize = 5;
/// Differences after which the rest counts as one: nothing more is learned from a text that is lost throughout.
const MOST: u64 = 10_000;
/// Equal bytes that end a difference, and how far they are looked for.
const ANCHOR: usize = 3;
const REACH: usize = 192;
/// Characters of a difference that are shown.
const SHOWN: usize = 24;

impl Fidelity {
    /// Compares a text with the joined bytes of its tokens.
    pub fn of(text: &[u8], back: &[u8]) -> Self {
        let mut found = Self { bytes: text.len() as u64, ..Self::default() };
        let (mut i, mut j) = (0, 0);
        if back.starts_with(b" ") && !text.starts_with(b" ") {
            (found.added_spaces, j) = (1, 1);
        }
        while i < text.len() || j < back.len() {
            let same = text[i..].iter().zip(&back[j..]).take_while(|(a, b)| a == b).count();
            (i, j) = (i + same, j + same);
            if i == text.len() && j == back.len() {
                break;
            }
            let (a, b) = if found.lost < MOST { resume(&text[i..], &back[j..]) } else { (text.len() - i, back.len() - j) };
            found.difference(text, back, (i, a), (j, b));
            (i, j) = (i + a, j + b);
        }
        found
    }

    /// Whether nothing is lost: what is left are other bytes for the same letters, and spaces.
    pub fn is_lossless(&self) -> bool {
        self.lost == 0
    }

    /// Whether all bytes come back.
    pub fn is_exact(&self) -> bool {
        (self.lost, self.normalised, self.added_spaces) == (0, 0, 0)
    }

    /// Adds what was found in a text that follows.
    pub fn add(&mut self, after: Fidelity) {
        let moved = after.first.into_iter().map(|d| Difference { offset: d.offset + self.bytes, ..d });
        self.first.extend(moved.take(KEPT - self.first.len().min(KEPT)));
        self.bytes += after.bytes;
        self.normalised += after.normalised;
        self.added_spaces += after.added_spaces;
        self.lost += after.lost;
    }

    /// Counts a difference of `a` bytes of the text at `i` and `b` bytes at `j`.
    fn difference(&mut self, text: &[u8], back: &[u8], (i, a): (usize, usize), (j, b): (usize, usize)) {
        if a == 0 && back[j..j + b] == *b" " {
            self.added_spaces += 1;
            return;
        }
        // To whole characters, over bytes that are the same on both sides.
        let inside = |at: usize| text.get(at).is_some_and(|b| b & 0xc0 == 0x80);
        let before = (0..i.min(j)).take_while(|k| inside(i - k)).count();
        let after = (0..text.len() - i - a).take_while(|k| inside(i + a + k)).count().min(back.len() - j - b);
        let (text, tokens) = (&text[i - before..i + a + after], &back[j - before..j + b + after]);
        let composed = std::str::from_utf8(text).is_ok_and(|t| {
            let mut whole = NormalizedString::from(t);
            whole.nfc();
            whole.get().as_bytes() == tokens
        });
        if composed {
            self.normalised += 1;
            return;
        }
        self.lost += 1;
        if self.first.len() < KEPT {
            self.first.push(Difference { offset: (i - before) as u64, text: shown(text), tokens: shown(tokens) });
        }
    }
}

/// After how many bytes on either side the two go on alike; the fewest together. All that is left where they do not.
fn resume(text: &[u8], back: &[u8]) -> (usize, usize) {
    let alike = |a: usize, b: usize| {
        let (Some(text), Some(back)) = (text.get(a..), back.get(b..)) else { return false };
        let n = text.len().max(back.len()).min(ANCHOR);
        text.len() >= n && back.len() >= n && text[..n] == back[..n]
    };
    let together = (1..=REACH).flat_map(|n| (0..=n).map(move |a| (a, n - a)));
    let mut together = together;
    together.find(|(a, b)| alike(*a, *b)).unwrap_or((text.len(), back.len()))
}

fn shown(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes);
    let mut shown: String = text.chars().take(SHOWN).collect();
    if shown.len() < text.len() {
        shown.push('…');
    }
    shown
}

impl std::fmt::Display for Fidelity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} of {} bytes' places are lost", self.lost, self.bytes)?;
        if self.normalised > 0 {
            write!(f, ", {} composed (NFC)", self.normalised)?;
        }
        if self.added_spaces > 0 {
            write!(f, ", {} spaces added", self.added_spaces)?;
        }
        for (i, d) in self.first.iter().enumerate() {
            write!(f, "{} byte {}: {:?} comes back as {:?}", if i == 0 { ":" } else { ";" }, d.offset, d.text, d.tokens)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(text: &str, back: &str) -> Fidelity {
        Fidelity::of(text.as_bytes(), back.as_bytes())
    }

    fn places(f: &Fidelity) -> Vec<(u64, &str, &str)> {
        f.first.iter().map(|d| (d.offset, &*d.text, &*d.tokens)).collect()
    }

    #[test]
    fn what_comes_back_is_exact() {
        for text in ["", "a", "The Union\n\n\u{1f917}", "e\u{301}"] {
            assert!(of(text, text).is_exact());
        }
    }

    #[test]
    fn composed_letters_and_added_spaces_are_no_loss() {
        let f = of("un caf\u{65}\u{301} noir", " un caf\u{e9} noir");
        assert_eq!((f.lost, f.normalised, f.added_spaces), (0, 1, 1));
        // The first byte of both forms is the same.
        let f = of("a \u{958} b and more", "a \u{915}\u{93c} b and more");
        assert_eq!((f.lost, f.normalised, f.added_spaces), (0, 1, 0));
        let f = of("one two<s>three four", "one two<s> three four");
        assert_eq!((f.lost, f.added_spaces), (0, 1));
        assert!(f.is_lossless() && !f.is_exact());
    }

    #[test]
    fn what_is_lost_is_named_with_its_place() {
        let f = of("Members \u{1f917} of Congress", "Members  of Congress");
        assert_eq!((f.lost, places(&f)), (1, vec![(8, "\u{1f917}", "")]));
        let f = of("The Union of States is strong.", "the union of states is strong.");
        assert_eq!((f.lost, places(&f)), (3, vec![(0, "T", "t"), (4, "U", "u"), (13, "S", "s")]));
        let f = of("keep  two  spaces and\ttabs here", "keep two spaces and tabs here");
        assert_eq!(f.lost, 3);
        // Another letter of the same first byte.
        let f = of("na\u{ef}ve answer", "na\u{ee}ve answer");
        assert_eq!(places(&f), [(2, "\u{ef}", "\u{ee}")]);
        // All of it, and the end of it.
        assert_eq!(places(&of("abc", "")), [(0, "abc", "")]);
        assert_eq!(places(&of("The end.", "The end")), [(7, ".", "")]);
        assert_eq!(places(&of("\u{f6}", "\u{f6}\u{f6}")), [(2, "", "\u{f6}")]);
    }

    #[test]
    fn what_follows_is_counted_on() {
        let mut f = of("abc", "abc");
        f.add(of("dEf", "def"));
        assert_eq!((f.bytes, f.lost, f.first[0].offset), (6, 1, 4));
        (0..9).for_each(|_| f.add(of("X", "x")));
        assert_eq!((f.lost, f.first.len()), (10, 5));
        assert!(f.to_string().contains("byte 4: \"E\" comes back as \"e\"; byte 6"), "{f}");
        // Lost throughout: the rest counts as one.
        let (text, back) = ("AbcdefG ".repeat(12_000), "abcdefg ".repeat(12_000));
        assert_eq!(of(&text, &back).lost, MOST + 1);
    }
}
