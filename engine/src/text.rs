//! Bytes of a file as text: UTF-8 with or without a byte-order mark; anything else is named.

use std::fmt;

/// Why bytes are no text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NotText {
    /// UTF-16, by its byte-order mark or by its zeros.
    Utf16,
    /// Compressed, packed or binary: what it is, and the command that reads it, where there is one.
    Packed(&'static str, Option<&'static str>),
    /// Not UTF-8 from this byte on, in this line.
    Invalid {
        /// Offset of the first byte that does not fit.
        byte: usize,
        /// Its line, counted from 1.
        line: usize,
    },
}

impl fmt::Display for NotText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Utf16 => f.write_str("is UTF-16, not UTF-8"),
            Self::Packed(what, _) => write!(f, "is {what}, not a text"),
            Self::Invalid { byte, line } => write!(f, "is not UTF-8 at byte {byte} (line {line})"),
        }
    }
}

impl NotText {
    /// What to do next.
    pub fn help(&self) -> String {
        match self {
            Self::Utf16 => "save the file as UTF-8, for example with `iconv -f utf-16 -t utf-8`".into(),
            Self::Packed(_, Some(command)) => format!("unpack it first, for example with `{command}`"),
            Self::Packed(_, None) => "give a text file, saved as UTF-8".into(),
            Self::Invalid { .. } => "save the file as UTF-8, for example with `iconv -f latin1 -t utf-8`".into(),
        }
    }
}

/// First bytes of files that people give by mistake.
const MAGIC: [(&[u8], &str, Option<&str>); 10] = [
    (&[0x1f, 0x8b], "compressed with gzip", Some("gunzip")),
    (&[0x28, 0xb5, 0x2f, 0xfd], "compressed with zstd", Some("unzstd")),
    (&[0xfd, b'7', b'z', b'X', b'Z', 0], "compressed with xz", Some("unxz")),
    (b"BZh", "compressed with bzip2", Some("bunzip2")),
    (&[0x04, 0x22, 0x4d, 0x18], "compressed with lz4", Some("unlz4")),
    (b"PK\x03\x04", "a zip archive", Some("unzip")),
    (b"PAR1", "a Parquet file", None),
    (b"GGUF", "a GGUF file", None),
    (b"%PDF-", "a PDF file", Some("pdftotext")),
    (b"SQLite format 3\0", "an SQLite database", None),
];

/// The text that these bytes are, a byte-order mark left out.
pub fn utf8(mut bytes: Vec<u8>) -> Result<String, NotText> {
    if bytes.starts_with(&[0xef, 0xbb, 0xbf]) {
        bytes.drain(..3);
    }
    match String::from_utf8(bytes) {
        // UTF-16 of ASCII letters is UTF-8 too, with a zero after each letter.
        Ok(text) if text.contains('\0') => guess(text.as_bytes()).map_or(Ok(text), Err),
        Ok(text) => Ok(text),
        Err(e) => Err(guess(e.as_bytes()).unwrap_or_else(|| {
            let byte = e.utf8_error().valid_up_to();
            NotText::Invalid { byte, line: 1 + e.as_bytes()[..byte].iter().filter(|b| **b == b'\n').count() }
        })),
    }
}

/// What bytes that are no text are.
fn guess(bytes: &[u8]) -> Option<NotText> {
    if let Some((_, what, command)) = MAGIC.iter().find(|(magic, ..)| bytes.starts_with(magic)) {
        return Some(NotText::Packed(what, *command));
    }
    // Without a mark, letters of most languages in UTF-16 have a zero in every other byte.
    let start = &bytes[..bytes.len().min(64)];
    let zeros = |from: usize| start.iter().skip(from).step_by(2).filter(|b| **b == 0).count();
    let many = start.len() / 3;
    let wide = start.len() >= 4 && (zeros(0) >= many) != (zeros(1) >= many);
    (wide || bytes.starts_with(&[0xff, 0xfe]) || bytes.starts_with(&[0xfe, 0xff])).then_some(NotText::Utf16)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn utf16(text: &str, little: bool) -> Vec<u8> {
        text.encode_utf16().flat_map(|u| if little { u.to_le_bytes() } else { u.to_be_bytes() }).collect()
    }

    #[test]
    fn a_mark_is_left_out_once() {
        assert_eq!(utf8("\u{feff}a: 1".into()).as_deref(), Ok("a: 1"));
        assert_eq!(utf8("\u{feff}\u{feff}x".into()).as_deref(), Ok("\u{feff}x"));
        assert_eq!(utf8(Vec::new()).as_deref(), Ok(""));
        assert_eq!(utf8("PK or GGUF begin a sentence".into()).as_deref(), Ok("PK or GGUF begin a sentence"));
    }

    #[test]
    fn what_is_no_text_is_named() {
        for little in [true, false] {
            assert_eq!(utf8(utf16("\u{feff}flow: 1", little)), Err(NotText::Utf16));
            assert_eq!(utf8(utf16("flow: 1\n", little)), Err(NotText::Utf16));
        }
        assert_eq!(utf8(vec![0x1f, 0x8b, 8, 0, 0]), Err(NotText::Packed("compressed with gzip", Some("gunzip"))));
        assert_eq!(utf8(b"PAR1\x15\x04\x15\xff".to_vec()), Err(NotText::Packed("a Parquet file", None)));
        assert_eq!(utf8(b"good\nbad \xff here".to_vec()), Err(NotText::Invalid { byte: 9, line: 2 }));
        assert!(utf8(b"a text\nwith a zero \0 in it, and more than that".to_vec()).is_ok());
    }
}
