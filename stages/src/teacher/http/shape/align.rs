//! Which bytes each token stands for, by the text that all of them together are.
//!
//! Every token has one reading or several. A search from the end of the text backwards counts the ways in which the
//! tokens' readings join to the text; where there is exactly one, the text determines the bytes. What differs from the
//! text is told by stages: nothing; white space at either end; other tokens before it (reasoning); both.

use std::collections::BTreeMap;

use super::token::{Reading, Spelling, Token};

/// Bytes of the longest token that is looked for where nothing is known of it.
const LONGEST: usize = 256;
/// So many tokens of which nothing is known are no matter of reading.
const UNKNOWN: usize = 64;

/// What else than the text the tokens may hold.
#[derive(Clone, Copy, Debug, Default)]
pub struct Around {
    /// Tokens before it.
    pub before: bool,
    /// A first token of which nothing is known: such as the beginning of every text.
    pub begin: bool,
    /// A last token of which nothing is known, and that ended it.
    pub end: bool,
    /// Last tokens that are parts of a character which was not finished.
    pub cut: bool,
}

/// The tokens of a text.
#[derive(Clone, Debug, PartialEq)]
pub struct Aligned {
    /// The first token of the text.
    pub from: usize,
    /// Bytes of this and each later token; none where it is no part of the text.
    pub bytes: Vec<Vec<u8>>,
}

/// Why there are no bytes for each token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unaligned {
    /// However the tokens are read, they are not the text.
    Differs,
    /// They can be read in several ways.
    Ambiguous,
}

/// The bytes of each token, if the text determines them.
pub fn align(tokens: &[&Token], text: &[u8], around: Around) -> Result<Aligned, Unaligned> {
    if let Some(bytes) = as_they_read(tokens, text) {
        return Ok(Aligned { from: 0, bytes });
    }
    let mut search = Search { text, slack: false, blanks: false, readings: tokens.iter().map(|t| t.readings()).collect() };
    search.allow(tokens, around);
    if search.readings.iter().filter(|r| r.contains(&Reading::Any)).count() > UNKNOWN {
        return Err(Unaligned::Ambiguous);
    }
    // A token without a text may be a part of a character as well.
    let blank = tokens.iter().any(|t| t.told().is_none() && t.text.as_deref() == Some(""));
    for blanks in [false, true] {
        if blanks && !blank {
            break;
        }
        for (slack, before) in [(false, false), (true, false), (false, true), (true, true)] {
            search.text = if slack { trimmed(text) } else { text };
            (search.slack, search.blanks) = (slack, blanks);
            if before && (!around.before || search.text.is_empty()) {
                continue;
            }
            match search.run(tokens, before) {
                Err(Unaligned::Differs) => {}
                found => return found,
            }
        }
    }
    Err(Unaligned::Differs)
}

/// The bytes that the server itself tells, where they are the text: nearly always.
fn as_they_read(tokens: &[&Token], text: &[u8]) -> Option<Vec<Vec<u8>>> {
    let mut rest = text;
    let mut all = Vec::with_capacity(tokens.len());
    for token in tokens {
        let bytes = token.spelled(Spelling::Plain)?;
        rest = rest.strip_prefix(bytes.as_slice())?;
        all.push(bytes);
    }
    rest.is_empty().then_some(all)
}

/// Ways from a token and a place in the text to the end of both, by place; two stand for more.
type Ways = BTreeMap<usize, u8>;

struct Search<'a> {
    text: &'a [u8],
    /// White space at either end is no difference.
    slack: bool,
    /// Tokens with an empty text may be parts of characters.
    blanks: bool,
    readings: Vec<Vec<Reading>>,
}

impl Search<'_> {
    /// Lets tokens at either end be no part of the text.
    fn allow(&mut self, tokens: &[&Token], around: Around) {
        let none = Reading::Bytes(Vec::new());
        let unknown = |r: &&mut Vec<Reading>| r.contains(&Reading::Any) && !r.contains(&none);
        if around.begin {
            self.readings.first_mut().filter(unknown).into_iter().for_each(|r| r.push(none.clone()));
        }
        if around.end {
            self.readings.last_mut().filter(unknown).into_iter().for_each(|r| r.push(none.clone()));
        }
        let cut = tokens.iter().rev().take_while(|t| around.cut && t.is_part()).count();
        let whole = self.readings.len() - cut;
        self.readings[whole..].iter_mut().for_each(|r| r.push(none.clone()));
    }

    fn run(&self, tokens: &[&Token], before: bool) -> Result<Aligned, Unaligned> {
        let mut ways = vec![Ways::new(); tokens.len() + 1];
        ways[tokens.len()].insert(self.text.len(), 1);
        for i in (0..tokens.len()).rev() {
            let mut here = Ways::new();
            for (end, n) in &ways[i + 1] {
                for (start, _) in self.back(tokens[i], i, *end) {
                    let sum = here.entry(start).or_default();
                    *sum = (*sum + n).min(2);
                }
            }
            ways[i] = here;
        }
        let first = if before { 1..tokens.len() } else { 0..1.min(tokens.len()) };
        // A token of which nothing is known cannot be where the text begins after others: it would be whatever is missing.
        let begins = |i: &usize| ways[*i].contains_key(&0) && !(before && self.readings[*i].contains(&Reading::Any));
        let from = first.into_iter().find(begins).ok_or(Unaligned::Differs)?;
        if ways[from].get(&0) != Some(&1) {
            return Err(Unaligned::Ambiguous);
        }
        let mut bytes = self.path(tokens, from, &ways);
        // White space before a mark, such as the end of reasoning, is none of the text's.
        let first = bytes.iter().position(|b| !trim_start(b).is_empty()).unwrap_or(0);
        let mark = bytes[..first].iter().rposition(Vec::is_empty).filter(|_| before).map_or(0, |n| n + 1);
        bytes.drain(..mark);
        Ok(Aligned { from: from + mark, bytes })
    }

    /// The one way.
    fn path(&self, tokens: &[&Token], from: usize, ways: &[Ways]) -> Vec<Vec<u8>> {
        let mut at = 0;
        let mut all = Vec::with_capacity(tokens.len() - from);
        for i in from..tokens.len() {
            let step = ways[i + 1].keys().find_map(|end| {
                let bytes = self.back(tokens[i], i, *end).into_iter().find(|b| b.0 == at)?.1;
                Some((*end, bytes))
            });
            // There is a way from here, or this place would not have been reached.
            let Some((end, bytes)) = step else { break };
            at = end;
            all.push(bytes);
        }
        all
    }

    /// Where a token may begin that ends here, and its bytes then.
    fn back(&self, token: &Token, i: usize, end: usize) -> Vec<(usize, Vec<u8>)> {
        let mut all: Vec<(usize, Vec<u8>)> = Vec::new();
        let mut add = |start: usize, bytes: &[u8]| {
            if !all.iter().any(|a| a.0 == start && a.1 == bytes) {
                all.push((start, bytes.to_vec()));
            }
        };
        let before = &self.text[..end];
        let text = token.text.as_deref().unwrap_or_default();
        for reading in &self.readings[i] {
            match reading {
                Reading::Bytes(bytes) => {
                    if before.ends_with(bytes) {
                        add(end - bytes.len(), bytes);
                    } else if let Some(start) = self.overhanging(bytes, end) {
                        add(start, bytes);
                    }
                }
                Reading::Lossy => {
                    let parts = text.matches('\u{fffd}').count();
                    let rest = text.len() - 3 * parts;
                    let lengths = (rest + parts)..=(rest + 3 * parts).min(end);
                    lengths.map(|n| end - n).filter(|s| String::from_utf8_lossy(&before[*s..]) == text).for_each(|s| add(s, &before[s..]));
                }
                Reading::Any => (1..=LONGEST.min(end)).for_each(|n| add(end - n, &before[end - n..])),
            }
        }
        if self.blanks && token.told().is_none() && token.text.as_deref() == Some("") {
            let parts = (1..=3.min(end)).map(|n| end - n).filter(|s| std::str::from_utf8(&before[*s..]).is_err());
            parts.for_each(|s| add(s, &before[s..]));
        }
        all
    }

    /// Where a token begins whose white space reaches beyond the text.
    fn overhanging(&self, bytes: &[u8], end: usize) -> Option<usize> {
        if !self.slack {
            return None;
        }
        let core = if end == self.text.len() { trim_end(bytes) } else { bytes };
        let before = &self.text[..end];
        if core.len() < bytes.len() && before.ends_with(core) {
            return Some(end - core.len());
        }
        (trim_start(core) == before).then_some(0)
    }
}

fn trimmed(bytes: &[u8]) -> &[u8] {
    trim_end(trim_start(bytes))
}

fn trim_start(bytes: &[u8]) -> &[u8] {
    let valid = bytes.utf8_chunks().next().map_or("", |c| c.valid());
    &bytes[valid.len() - valid.trim_start().len()..]
}

fn trim_end(bytes: &[u8]) -> &[u8] {
    match bytes.utf8_chunks().last() {
        Some(chunk) if chunk.invalid().is_empty() => &bytes[..bytes.len() - (chunk.valid().len() - chunk.valid().trim_end().len())],
        _ => bytes,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn aligned(texts: &[&str], text: &str, around: Around) -> Result<(usize, Vec<String>), Unaligned> {
        let tokens: Vec<Token> = texts.iter().map(|t| Token::text(Some(t), None)).collect();
        let found = align(&tokens.iter().collect::<Vec<_>>(), text.as_bytes(), around)?;
        Ok((found.from, found.bytes.iter().map(|b| b.escape_ascii().to_string()).collect()))
    }
    fn whole(texts: &[&str], text: &str) -> Result<Vec<String>, Unaligned> {
        aligned(texts, text, Around { end: true, ..Around::default() }).map(|a| a.1)
    }

    #[test]
    fn spellings_are_read_where_the_text_says_so() {
        assert_eq!(whole(&["Hi", "\u{120}there", "\u{10a}", "you"], "Hi there\nyou").expect("read"), ["Hi", " there", "\\n", "you"]);
        assert_eq!(whole(&["Hi", "\u{2581}there", "<0x0A>"], "Hi there\n").expect("read"), ["Hi", " there", "\\n"]);
        assert_eq!(whole(&["\u{120}"], "\u{120}").expect("a letter of Maltese"), ["\\xc4\\xa0"]);
        assert_eq!(whole(&["Hi", "token_id:17", "you"], "Hi there you").expect("read"), ["Hi", " there ", "you"]);
        assert_eq!(whole(&["Hi", "token_id:17", "token_id:18"], "Hi there"), Err(Unaligned::Ambiguous));
        assert_eq!(whole(&["Hi", " you"], "Hi there"), Err(Unaligned::Differs));
        assert_eq!(whole(&["Hi", " you", " all"], "Hi you"), Err(Unaligned::Differs), "a token of text is no end");
        assert_eq!(whole(&["Hi", "<|im_end|>"], "Hi").expect("an end"), ["Hi", ""]);
        assert_eq!(whole(&["<b>", "Hi", "</b>"], "<b>Hi</b>").expect("text"), ["<b>", "Hi", "</b>"]);
        assert_eq!(whole(&["Hi", "token_id:2"], "Hi").expect("an end"), ["Hi", ""]);
    }

    #[test]
    fn parts_of_characters_are_found_in_the_whole_one() {
        let f = "\u{fffd}";
        assert_eq!(whole(&["a", f, f], "a\u{e9}").expect("read"), ["a", "\\xc3", "\\xa9"]);
        assert_eq!(whole(&[f, f], "\u{1f600}").expect("read"), ["\\xf0\\x9f\\x98", "\\x80"]);
        assert_eq!(whole(&[f, "\u{fffd}\u{fffd}"], "\u{1f600}").expect("read"), ["\\xf0\\x9f", "\\x98\\x80"]);
        assert_eq!(
            whole(&[f, "\u{fffd}\u{fffd}", f, f], "\u{20ac}\u{20ac}"),
            Err(Unaligned::Ambiguous),
            "the second may end in the next one"
        );
        assert_eq!(whole(&["", "", "!"], "\u{e9}!").expect("read"), ["\\xc3", "\\xa9", "!"]);
        assert_eq!(whole(&["", "\u{e9}", "!"], "\u{e9}!").expect("a blank is nothing first"), ["", "\\xc3\\xa9", "!"]);
        assert_eq!(whole(&[f], f).expect("the character itself"), ["\\xef\\xbf\\xbd"]);
        let cut = Around { cut: true, ..Around::default() };
        assert_eq!(aligned(&["Hi", f], "Hi", cut).expect("cut").1, ["Hi", ""]);
    }

    #[test]
    fn white_space_and_reasoning_around_the_text() {
        assert_eq!(whole(&["\n", " Hi", " there", " \n"], "Hi there").expect("trimmed"), ["\\n", " Hi", " there", " \\n"]);
        assert_eq!(whole(&["Hi"], " Hi\n").expect("added"), ["Hi"]);
        let before = Around { before: true, end: true, ..Around::default() };
        let think = ["<think>", "Hi", " plan", "</think>", "\n\n", "Hi", " there", ""];
        assert_eq!(aligned(&think, "Hi there", before).expect("cut off"), (5, vec!["Hi".into(), " there".into(), String::new()]));
        assert_eq!(aligned(&think, "\n\nHi there", before).expect("cut off").1.concat(), "\\n\\nHi there");
        assert_eq!(aligned(&["plan", "\n", "</think>", "\n", "Hi"], "Hi ", before).expect("cut off").1, ["\\n", "Hi"]);
        assert_eq!(aligned(&["plan", " Hi"], "Hi", before).expect("cut off"), (1, vec![" Hi".into()]));
        assert_eq!(aligned(&think, "Hi you", before), Err(Unaligned::Differs));
        assert_eq!(aligned(&["a", "a", "a"], "aa", before).expect("the longest end that equals it").0, 1);
    }
}
