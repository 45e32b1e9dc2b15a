//! Learning a byte-level BPE from a text.

use tokenizers::models::bpe::{BPE, BpeTrainerBuilder};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::{AddedToken, DecoderWrapper, PostProcessorWrapper, PreTokenizerWrapper};

use super::chunks::{CHUNK, safe_pieces};
use crate::error::TokenizerError;

/// Learns a byte-level BPE of `vocab_size` tokens, the 256 bytes and `specials` (in id order) among them, from pairs that are
/// seen `min_frequency` times or more. Gives the content of a `tokenizer.json`, the same for the same text everywhere.
pub fn train(text: &str, vocab_size: usize, specials: &[String], min_frequency: u64) -> Result<String, TokenizerError> {
    let other = |e: tokenizers::Error| TokenizerError::Training(e.to_string());
    let mut inner = tokenizers::Tokenizer::new(BPE::default());
    inner.with_pre_tokenizer(Some(PreTokenizerWrapper::ByteLevel(ByteLevel::new(false, true, true))));
    inner.with_decoder(Some(DecoderWrapper::ByteLevel(ByteLevel::default())));
    inner.with_post_processor(None::<PostProcessorWrapper>);
    let mut trainer: tokenizers::models::TrainerWrapper = BpeTrainerBuilder::new()
        .show_progress(false)
        .vocab_size(vocab_size)
        .min_frequency(min_frequency)
        .initial_alphabet(ByteLevel::alphabet().into_iter().collect())
        .special_tokens(specials.iter().map(|s| AddedToken::from(s.clone(), true)).collect())
        .build()
        .into();
    inner.train(&mut trainer, safe_pieces(text, CHUNK).into_iter()).map_err(other)?;
    let reachable = inner.get_vocab_size(true);
    if reachable < vocab_size {
        return Err(TokenizerError::TooFewPairs { wanted: vocab_size, reachable });
    }
    inner.to_string(true).map_err(other)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tokenizer::{TokenId, Tokenizer};

    const TEXT: &str = include_str!("../../../../pipelines/data/corpus.txt");

    #[test]
    fn training_gives_the_same_bytes_every_time_and_chunks_encode_as_the_whole() {
        let text = &TEXT[..400_000];
        let specials = ["<|endoftext|>".to_owned(), "<|pad|>".to_owned()];
        let first = train(text, 2048, &specials, 2).expect("trains");
        for _ in 0..2 {
            assert!(train(text, 2048, &specials, 2).ok() == Some(first.clone()));
        }
        let tokenizer = Tokenizer::from_bytes(first.as_bytes()).expect("loads");
        assert_eq!(tokenizer.vocab_size(), 2048);
        assert!(tokenizer.is_chunkable());
        let whole = tokenizer.encode_piece(text);
        assert!(tokenizer.encode(text) == whole);
        assert_eq!(tokenizer.decode_bytes(&whole), text.as_bytes());
        let first = TokenId(0);
        assert_eq!((tokenizer.bos(), tokenizer.eos()), (first, first));
        assert!(tokenizer.is_special(first) && tokenizer.token_bytes(first) == b"<|endoftext|>");
    }

    #[test]
    fn a_vocabulary_beyond_the_text_names_the_reachable_size() {
        match train("to be or not to be, to be", 4000, &["<|endoftext|>".to_owned()], 2) {
            Err(TokenizerError::TooFewPairs { reachable, .. }) => assert!((260..300).contains(&reachable), "{reachable}"),
            _ => panic!("must refuse"),
        }
    }

    #[test]
    fn bytes_that_are_no_text_survive() {
        let json = train(&TEXT[..20_000], 300, &["<|endoftext|>".to_owned()], 2).expect("trains");
        let tokenizer = Tokenizer::from_bytes(json.as_bytes()).expect("loads");
        let bytes = b"caf\xc3 and \xff\xfe\xe2\x82 \xe2\x82\xac";
        assert_eq!(tokenizer.decode_bytes(&tokenizer.encode_bytes(bytes)), bytes);
    }
}
