//! What a continuation reads as: whole characters as they come, up to a text that ends it.

/// A part of a continuation.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Said {
    /// What can be shown.
    pub text: String,
    /// Whether one of the texts that end it came; it is not shown.
    pub stopped: bool,
}

/// Bytes of tokens as text. What may still become one character, or one of the texts that end it, is held back.
#[derive(Clone, Debug, Default)]
pub struct TextStream {
    stops: Vec<Vec<u8>>,
    held: Vec<u8>,
    over: bool,
}

impl TextStream {
    /// A continuation that ends before any of these texts; empty ones do not count.
    pub fn new(stops: &[String]) -> Self {
        Self { stops: stops.iter().filter(|s| !s.is_empty()).map(|s| s.clone().into_bytes()).collect(), ..Self::default() }
    }

    /// The bytes of a token; nothing comes after a text that ended it.
    pub fn push(&mut self, bytes: &[u8]) -> Said {
        if self.over {
            return Said { text: String::new(), stopped: true };
        }
        self.held.extend_from_slice(bytes);
        let found = self.stops.iter().filter_map(|s| find(&self.held, s)).min();
        if let Some(at) = found {
            self.over = true;
            self.held.truncate(at);
            return Said { text: lossy(&std::mem::take(&mut self.held)), stopped: true };
        }
        let keep = self.stops.iter().map(|s| begun(&self.held, s)).max().unwrap_or(0).max(unfinished(&self.held));
        let shown: Vec<u8> = self.held.drain(..self.held.len() - keep).collect();
        // What a stop text holds back may begin within a character.
        let whole = shown.len() - unfinished(&shown);
        self.held.splice(..0, shown[whole..].iter().copied());
        Said { text: lossy(&shown[..whole]), stopped: false }
    }

    /// The rest, where nothing more comes.
    pub fn end(&mut self) -> String {
        self.over = true;
        lossy(&std::mem::take(&mut self.held))
    }
}

fn lossy(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn find(text: &[u8], what: &[u8]) -> Option<usize> {
    text.windows(what.len()).position(|w| w == what)
}

/// Bytes at the end of `text` that `what` begins with.
fn begun(text: &[u8], what: &[u8]) -> usize {
    (1..what.len().min(text.len() + 1)).rev().find(|n| text.ends_with(&what[..*n])).unwrap_or(0)
}

/// Bytes at the end that may be the beginning of a character.
fn unfinished(text: &[u8]) -> usize {
    let Some(last) = text.utf8_chunks().last() else { return 0 };
    let rest = last.invalid();
    // A beginning that more bytes could complete; anything else is no UTF-8 and never becomes any.
    let wanted = match rest.first() {
        Some(0xc2..=0xdf) => 2,
        Some(0xe0..=0xef) => 3,
        Some(0xf0..=0xf4) => 4,
        _ => 0,
    };
    if rest.len() < wanted { rest.len() } else { 0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(stops: &[&str], parts: &[&[u8]]) -> (Vec<String>, bool) {
        let stops: Vec<String> = stops.iter().map(|s| (*s).to_owned()).collect();
        let mut stream = TextStream::new(&stops);
        let mut out: Vec<Said> = parts.iter().map(|p| stream.push(p)).collect();
        let stopped = out.last().is_some_and(|s| s.stopped);
        out.push(Said { text: stream.end(), stopped });
        (out.into_iter().map(|s| s.text).collect(), stopped)
    }

    #[test]
    fn characters_come_whole() {
        let euro = "€".as_bytes();
        assert_eq!(all(&[], &[b"a", &euro[..1], &euro[1..2], &euro[2..], b"b"]).0, ["a", "", "", "€", "b", ""]);
        assert_eq!(all(&[], &[b"a\xff", b"b"]).0, ["a\u{fffd}", "b", ""]);
        assert_eq!(all(&[], &[b"a", &euro[..2]]).0, ["a", "", "\u{fffd}"]);
        assert_eq!(all(&[], &[&euro[..2], b"b"]).0, ["", "\u{fffd}b", ""]);
    }

    #[test]
    fn a_text_that_ends_it_is_never_shown() {
        assert_eq!(
            all(&["\n\n"], &[b"one\n", b"two\n", b"\nthree"]),
            (vec!["one".into(), "\ntwo".into(), String::new(), String::new()], true)
        );
        assert_eq!(all(&["END", "EN"], &[b"xE", b"N", b"D"]).0, ["x", "", "", ""]);
        assert_eq!(all(&["stop"], &[b"st", b"ill"]), (vec![String::new(), "still".into(), String::new()], false));
        assert_eq!(all(&["aab"], &[b"aaa", b"ab"]).0, ["a", "a", ""]);
        assert_eq!(all(&[""], &[b"x"]), (vec!["x".into(), String::new()], false));
        // A stop text that begins with the last byte of a character never splits it.
        let e = "é".as_bytes();
        assert_eq!(all(&["éa"], &[&e[..1], &e[1..], b"b"]).0, ["", "", "éb", ""]);
    }
}
