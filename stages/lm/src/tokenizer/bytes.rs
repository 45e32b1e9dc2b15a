//! How names of tokens stand for bytes.

use std::collections::HashMap;

use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::{DecoderWrapper, PreTokenizerWrapper};

/// Whether names are written in the byte-level alphabet.
pub(super) fn is_byte_level(inner: &tokenizers::Tokenizer) -> bool {
    fn in_decoder(d: &DecoderWrapper) -> bool {
        match d {
            DecoderWrapper::ByteLevel(_) => true,
            DecoderWrapper::Sequence(s) => s.get_decoders().iter().any(in_decoder),
            _ => false,
        }
    }
    inner.get_decoder().is_some_and(in_decoder) || byte_level_of(inner).is_some()
}

fn byte_level_of(inner: &tokenizers::Tokenizer) -> Option<ByteLevel> {
    fn find(p: &PreTokenizerWrapper) -> Option<ByteLevel> {
        match p {
            PreTokenizerWrapper::ByteLevel(b) => Some(*b),
            PreTokenizerWrapper::Sequence(s) => s.as_ref().iter().find_map(find),
            _ => None,
        }
    }
    inner.get_pre_tokenizer().and_then(find)
}

/// Whether a text is read with a space before it.
pub(super) fn adds_prefix_space(inner: &tokenizers::Tokenizer) -> bool {
    byte_level_of(inner).is_none_or(|b| b.add_prefix_space)
}

/// The bytes of a SentencePiece name: `▁` is a space, `<0x..>` a byte.
pub(super) fn push_sentencepiece(name: &str, out: &mut Vec<u8>) {
    let byte = name.strip_prefix("<0x").and_then(|n| n.strip_suffix('>')).and_then(|n| u8::from_str_radix(n, 16).ok());
    match byte {
        Some(b) => out.push(b),
        None => out.extend_from_slice(name.replace('\u{2581}', " ").as_bytes()),
    }
}

/// The character that stands for each byte in a byte-level vocabulary (GPT-2's table).
pub fn byte_chars() -> [char; 256] {
    let mut table = ['\0'; 256];
    let mut next = 256u32;
    for b in 0..=255u8 {
        let printable = matches!(b, b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF);
        let code = if printable {
            u32::from(b)
        } else {
            next += 1;
            next - 1
        };
        table[b as usize] = char::from_u32(code).unwrap_or('\u{fffd}');
    }
    table
}

/// The table the other way round.
pub(super) fn byte_of_char() -> HashMap<char, u8> {
    byte_chars().iter().enumerate().map(|(b, c)| (*c, b as u8)).collect()
}
