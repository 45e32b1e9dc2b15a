//! Tokens as they came, and what may be their bytes.

use std::sync::LazyLock;

use serde_json::Value;

/// Some servers write -9999 where they have no value.
const NO_VALUE: f64 = -9000.0;
/// A logprob above this is none; what is between 0 and this is rounding.
const ROUNDING: f64 = 1e-3;

/// How a server writes the text of a token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Spelling {
    /// As it reads.
    Plain,
    /// One character a byte, as in the vocabulary of a byte-level BPE: `Ġthere`, `Ċ`.
    ByteLevel,
    /// As in the vocabulary of SentencePiece: `▁there`, `<0x0A>`.
    Pieces,
}

impl Spelling {
    /// All of them, the usual one first.
    pub const ALL: [Spelling; 3] = [Spelling::Plain, Spelling::ByteLevel, Spelling::Pieces];
}

/// A token as it came.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Token {
    /// Its text, if the server tells it.
    pub text: Option<String>,
    /// Its bytes, if the server tells them.
    pub bytes: Option<Vec<u8>>,
    /// Its id, if the server tells it.
    pub id: Option<i32>,
    /// Its logprob; none where what came is no number.
    pub logprob: Option<f64>,
}

/// A token of an answer with the alternatives to it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Drawn {
    /// What was drawn.
    pub token: Token,
    /// What could have been.
    pub top: Vec<Token>,
}

/// What a token's bytes may be.
#[derive(Clone, Debug, PartialEq)]
pub enum Reading {
    /// These.
    Bytes(Vec<u8>),
    /// Whatever reads like the token's text, in which U+FFFD stands for parts of characters.
    Lossy,
    /// Anything that is not empty.
    Any,
}

/// A logprob that is one.
pub fn logprob(value: &Value) -> Option<f64> {
    value.as_f64().filter(|l| l.is_finite() && *l > NO_VALUE && *l <= ROUNDING).map(|l| l.min(0.0))
}

/// An id that is one.
pub fn id(value: &Value) -> Option<i32> {
    value.as_i64().and_then(|i| i32::try_from(i).ok()).filter(|i| *i >= 0)
}

/// A list of bytes, all of it or nothing.
pub fn bytes(value: &Value) -> Option<Vec<u8>> {
    let list = value.as_array()?;
    list.iter().map(|b| b.as_u64().and_then(|b| u8::try_from(b).ok())).collect()
}

impl Token {
    /// With a text alone.
    pub fn text(text: Option<&str>, logprob: Option<f64>) -> Self {
        Self { text: text.map(str::to_owned), logprob, ..Self::default() }
    }

    /// Its bytes where the server says more than the text does: some fill `bytes` from the text, whatever that holds.
    pub fn told(&self) -> Option<&[u8]> {
        let bytes = self.bytes.as_deref()?;
        match &self.text {
            Some(text) if text.as_bytes() == bytes || (bytes.is_empty() && !text.is_empty()) => None,
            _ => Some(bytes),
        }
    }

    /// The id in a text such as `token_id:17`.
    fn id_in_text(&self) -> Option<i32> {
        self.text.as_deref()?.strip_prefix("token_id:")?.parse().ok()
    }

    /// Its id, or the one that its text tells.
    pub fn any_id(&self) -> Option<i32> {
        self.id.or_else(|| self.id_in_text())
    }

    /// Whether it is written like a mark that is no text: `<|im_end|>`, `</s>`, `<think>`, or nothing at all.
    pub fn is_mark(&self) -> bool {
        let text = self.text.as_deref().unwrap_or_default();
        let inner = text.strip_prefix('<').and_then(|t| t.strip_suffix('>')).filter(|_| byte_piece(text).is_none());
        (self.text.is_some() && text.is_empty() && self.told().is_none_or(<[u8]>::is_empty))
            || inner.is_some_and(|t| !t.is_empty() && !t.contains(char::is_whitespace) && !t.contains(['<', '>']))
    }

    /// Whether only parts of characters can be seen of it.
    pub fn is_part(&self) -> bool {
        self.told().is_none() && self.text.as_deref().is_some_and(|t| !t.is_empty() && t.chars().all(|c| c == '\u{fffd}'))
    }

    /// Its bytes in a spelling, where they can be read at all.
    pub fn spelled(&self, spelling: Spelling) -> Option<Vec<u8>> {
        if let Some(told) = self.told() {
            return Some(told.to_vec());
        }
        let text = self.text.as_deref()?;
        if text.contains('\u{fffd}') || self.id_in_text().is_some() {
            return None;
        }
        match spelling {
            Spelling::Plain => Some(escaped(text).unwrap_or_else(|| text.as_bytes().to_vec())),
            Spelling::ByteLevel => byte_level(text),
            Spelling::Pieces => pieces(text),
        }
    }

    /// Whether it reads the same in every spelling: letters and signs of ASCII.
    pub fn is_simple(&self) -> bool {
        let text = self.text.as_deref().unwrap_or_default();
        text.bytes().all(|b| b.is_ascii_graphic()) && !["<", "token_id:", "bytes:"].iter().any(|p| text.starts_with(p))
    }

    /// Whether it reads differently in one spelling and in another.
    pub fn is_doubtful(&self) -> bool {
        // A space stands as it is in no vocabulary.
        if self.is_simple() || self.told().is_some() || self.text.as_deref().is_some_and(|t| t.contains(' ')) {
            return false;
        }
        let plain = self.spelled(Spelling::Plain);
        [Spelling::ByteLevel, Spelling::Pieces].into_iter().filter_map(|s| self.spelled(s)).any(|other| Some(&other) != plain.as_ref())
    }

    /// All that its bytes may be, each once.
    pub fn readings(&self) -> Vec<Reading> {
        let mut all: Vec<Reading> = Vec::with_capacity(2);
        let mut add = |reading: Reading| {
            if !all.contains(&reading) {
                all.push(reading);
            }
        };
        if let Some(told) = self.told() {
            return vec![Reading::Bytes(told.to_vec())];
        }
        Spelling::ALL.into_iter().filter_map(|s| self.spelled(s)).for_each(|b| add(Reading::Bytes(b)));
        match self.text.as_deref() {
            None => add(Reading::Any),
            Some(text) if self.id_in_text().is_some() => {
                add(Reading::Bytes(text.as_bytes().to_vec()));
                add(Reading::Any);
            }
            Some(text) if text.contains('\u{fffd}') => {
                add(Reading::Bytes(text.as_bytes().to_vec()));
                add(Reading::Lossy);
            }
            Some(_) => {}
        }
        if self.is_mark() {
            add(Reading::Bytes(Vec::new()));
        }
        all
    }
}

/// `bytes:\xe2\x80`, as some write parts of characters.
fn escaped(text: &str) -> Option<Vec<u8>> {
    let mut rest = text.strip_prefix("bytes:").filter(|e| e.contains("\\x"))?;
    let mut out = Vec::new();
    while let Some(c) = rest.chars().next() {
        let hex = rest.strip_prefix("\\x").and_then(|hex| hex.get(..2)).and_then(|hex| u8::from_str_radix(hex, 16).ok());
        let taken = match hex {
            Some(byte) => {
                out.push(byte);
                4
            }
            None => {
                out.extend_from_slice(&rest.as_bytes()[..c.len_utf8()]);
                c.len_utf8()
            }
        };
        rest = &rest[taken..];
    }
    Some(out)
}

/// Characters of a byte-level vocabulary, by code point: GPT-2's `bytes_to_unicode` backwards.
static BYTES: LazyLock<[Option<u8>; 0x144]> = LazyLock::new(|| {
    let mut table = [None; 0x144];
    let mut beyond = 0x100;
    for byte in 0..=255u8 {
        let shown = matches!(byte, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff);
        let at = if shown { usize::from(byte) } else { beyond };
        beyond += usize::from(!shown);
        table[at] = Some(byte);
    }
    table
});

/// `None` where a character is in no such vocabulary.
fn byte_level(text: &str) -> Option<Vec<u8>> {
    text.chars().map(|c| BYTES.get(c as usize).copied().flatten()).collect()
}

/// `None` where a space stands as it is, which no such vocabulary has.
fn pieces(text: &str) -> Option<Vec<u8>> {
    match byte_piece(text) {
        Some(byte) => Some(vec![byte]),
        None => Some(text).filter(|t| !t.contains(' ')).map(|t| t.replace('\u{2581}', " ").into_bytes()),
    }
}

/// `<0x0A>`.
fn byte_piece(text: &str) -> Option<u8> {
    let hex = text.strip_prefix("<0x").and_then(|t| t.strip_suffix('>')).filter(|t| t.len() == 2)?;
    u8::from_str_radix(hex, 16).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn spelled(text: &str, spelling: Spelling) -> Option<Vec<u8>> {
        Token::text(Some(text), None).spelled(spelling)
    }

    #[test]
    fn every_spelling_is_read() {
        assert_eq!(spelled("\u{120}there\u{10a}", Spelling::ByteLevel), Some(b" there\n".to_vec()));
        assert_eq!(spelled("\u{e2}\u{122}\u{ac}", Spelling::ByteLevel), Some(vec![0xe2, 0x80, 0xac]));
        assert_eq!(spelled(" there", Spelling::ByteLevel), None, "a space stands in no such vocabulary");
        assert_eq!(spelled("\u{2581}there", Spelling::Pieces), Some(b" there".to_vec()));
        assert_eq!(spelled("<0x0A>", Spelling::Pieces), Some(vec![10]));
        assert_eq!(spelled("bytes:\\xe2\\x80a", Spelling::Plain), Some(vec![0xe2, 0x80, b'a']));
        assert_eq!(spelled("token_id:17", Spelling::Plain), None);
        // Every byte has a character of its own.
        let all: Vec<u8> = BYTES.iter().flatten().copied().collect();
        assert_eq!((all.len(), all.iter().collect::<std::collections::BTreeSet<_>>().len()), (256, 256));
    }

    #[test]
    fn values_that_are_none_are_none() {
        for none in [json!(null), json!("-1"), json!(-9999.0), json!(0.5)] {
            assert_eq!(logprob(&none), None, "{none}");
        }
        assert_eq!((logprob(&json!(1e-7)), logprob(&json!(-150))), (Some(0.0), Some(-150.0)));
        assert_eq!((bytes(&json!([104, 300])), bytes(&json!([-61])), bytes(&json!(null))), (None, None, None));
        assert_eq!((id(&json!(-1)), id(&json!(7))), (None, Some(7)));
    }

    #[test]
    fn bytes_that_only_repeat_the_text_are_doubted() {
        let token = |text: &str, bytes: &[u8]| Token { text: Some(text.into()), bytes: Some(bytes.into()), ..Token::default() };
        assert_eq!(token("\u{120}a", " a".as_bytes()).told(), Some(&b" a"[..]));
        assert_eq!(token("\u{120}a", "\u{120}a".as_bytes()).told(), None);
        assert_eq!(token("\u{fffd}", &[0xc3]).readings(), [Reading::Bytes(vec![0xc3])]);
        assert_eq!(token("\u{fffd}", "\u{fffd}".as_bytes()).readings(), [Reading::Bytes("\u{fffd}".into()), Reading::Lossy]);
        assert!(token("", &[]).is_mark() && token("</s>", &[]).is_mark() && !token("<0 a>", &[]).is_mark() && !token("a", &[]).is_mark());
    }
}
