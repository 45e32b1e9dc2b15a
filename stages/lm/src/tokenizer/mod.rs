//! The tokenizer that every stage shares, and the kind `tokenizer.bpe` that trains one.
//!
//! Byte-level BPE by the `tokenizers` crate. [`Tokenizer`] adds what the crate leaves open: exact bytes per token,
//! encoding of bytes that are no complete UTF-8, and a digest of the content.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use flow_engine::plugin::{InputPort, OutputPort, ParamError, Stage, StageError, TaskContext};
use rayon::prelude::*;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tokenizers::models::bpe::{BPE, BpeTrainerBuilder};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::{AddedToken, DecoderWrapper, PostProcessorWrapper, PreTokenizerWrapper};

/// Text longer than this is cut at safe places and encoded in parallel.
const CHUNK: usize = 32 << 10;

/// Which tokens begin and end what a model reads, where another file than `tokenizer.json` says so.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Roles {
    /// Begins a text.
    pub bos: Option<u32>,
    /// Ends a text.
    pub eos: Option<u32>,
    /// End an answer: EOS and, in chat models, the end of a turn.
    pub ends: Vec<u32>,
    /// Whether a prompt is read with BOS before it.
    pub add_bos: bool,
}

impl Default for Roles {
    fn default() -> Self {
        Self { bos: None, eos: None, ends: Vec::new(), add_bos: true }
    }
}

/// A tokenizer with exact bytes per token.
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    /// Bytes of all tokens, one after the other.
    bytes: Vec<u8>,
    /// Where token `i` stops in `bytes`.
    limits: Vec<u32>,
    special: Vec<bool>,
    /// Token of each single byte, where there is one.
    byte_ids: [Option<u32>; 256],
    bos: u32,
    eos: u32,
    ends: Vec<u32>,
    add_bos: bool,
    chunkable: bool,
    digest: String,
}

impl Tokenizer {
    /// Reads a `tokenizer.json`.
    pub fn load(path: &Path) -> Result<Self, StageError> {
        let raw = std::fs::read(path).map_err(|e| StageError::io("cannot read the tokenizer", path, &e))?;
        Self::from_bytes(&raw).map_err(|message| {
            StageError::new(format!("{}: not a tokenizer: {message}", path.display()))
                .help("give a Hugging Face `tokenizer.json` with a byte-level BPE model")
        })
    }

    /// Parses the content of a `tokenizer.json`.
    pub fn from_bytes(raw: &[u8]) -> Result<Self, String> {
        let mut inner = tokenizers::Tokenizer::from_bytes(raw).map_err(|e| e.to_string())?;
        inner.with_truncation(None).map_err(|e| e.to_string())?;
        inner.with_padding(None);
        Self::wrap(inner)
    }

    fn wrap(inner: tokenizers::Tokenizer) -> Result<Self, String> {
        let vocab = inner.get_vocab(true);
        let size = vocab.values().max().map_or(0, |m| *m as usize + 1);
        if size == 0 {
            return Err("its vocabulary is empty".into());
        }
        let mut names: Vec<Option<&str>> = vec![None; size];
        for (name, id) in &vocab {
            names[*id as usize] = Some(name);
        }
        let added = inner.get_added_tokens_decoder();
        let mut special = vec![false; size];
        let mut literal = vec![false; size];
        for (id, token) in &added {
            literal[*id as usize] = true;
            special[*id as usize] = token.special;
        }
        let byte_of = byte_of_char();
        let byte_level = is_byte_level(&inner);
        let mut bytes = Vec::with_capacity(size * 6);
        let mut limits = Vec::with_capacity(size);
        let mut byte_ids = [None; 256];
        for (id, name) in names.iter().enumerate() {
            let start = bytes.len();
            if let Some(name) = name {
                if literal[id] {
                    bytes.extend_from_slice(name.as_bytes());
                } else if byte_level {
                    for c in name.chars() {
                        match byte_of.get(&c) {
                            Some(b) => bytes.push(*b),
                            None => return Err(format!("token {id} (`{name}`) is not written in the byte-level alphabet")),
                        }
                    }
                } else {
                    push_sentencepiece(name, &mut bytes);
                }
                if bytes.len() == start + 1 && !literal[id] {
                    byte_ids[bytes[start] as usize].get_or_insert(id as u32);
                }
            }
            limits.push(u32::try_from(bytes.len()).map_err(|_| "its vocabulary holds more than 4 GiB of text".to_owned())?);
        }
        let find = |candidates: &[&str]| candidates.iter().find_map(|c| vocab.get(*c).copied());
        let first_special = special.iter().position(|s| *s).map(|i| i as u32);
        let eos = find(&["<|eos|>", "</s>", "<|im_end|>", "<|eot_id|>", "<|end_of_text|>", "<|endoftext|>"]).or(first_special).unwrap_or(0);
        let bos = find(&["<|bos|>", "<s>", "<|im_start|>", "<|begin_of_text|>", "<|endoftext|>"]).unwrap_or(eos);
        let canonical = inner.to_string(false).map_err(|e| e.to_string())?;
        let digest = blake3::hash(canonical.as_bytes()).to_hex().to_string();
        let chunkable = byte_level
            && inner.get_normalizer().is_none()
            && !adds_prefix_space(&inner)
            && added.values().all(|t| !t.content.contains(' ') && !t.lstrip && !t.rstrip && !t.single_word);
        Ok(Self { inner, bytes, limits, special, byte_ids, bos, eos, ends: vec![eos], add_bos: true, chunkable, digest })
    }

    /// Gives tokens their roles; an id beyond the vocabulary is not taken.
    #[must_use]
    pub fn with_roles(mut self, roles: &Roles) -> Self {
        let size = self.vocab_size() as u32;
        let known = |id: &u32| *id < size;
        self.bos = roles.bos.filter(known).unwrap_or(self.bos);
        self.eos = roles.eos.filter(known).unwrap_or(self.eos);
        self.ends = roles.ends.iter().copied().filter(known).chain([self.eos]).collect();
        self.ends.sort_unstable();
        self.ends.dedup();
        self.add_bos = roles.add_bos;
        self
    }

    /// Number of ids, special tokens included (the largest id plus one).
    pub fn vocab_size(&self) -> usize {
        self.limits.len()
    }

    /// Token ids of a text. Adds no special token; the literal text of one becomes that token, as in Hugging Face.
    pub fn encode(&self, text: &str) -> Vec<u32> {
        if !self.chunkable || text.len() <= CHUNK {
            return self.encode_piece(text);
        }
        let pieces = safe_pieces(text, CHUNK);
        let parts: Vec<Vec<u32>> = pieces.par_iter().map(|p| self.encode_piece(p)).collect();
        parts.concat()
    }

    fn encode_piece(&self, text: &str) -> Vec<u32> {
        // The crate's errors come from truncation, padding and unknown tokens without `unk`; the first two are off.
        self.inner.encode_fast(text, false).map(|e| e.get_ids().to_vec()).unwrap_or_default()
    }

    /// Token ids of bytes: valid UTF-8 is encoded as text, any other byte becomes the token of that byte.
    pub fn encode_bytes(&self, bytes: &[u8]) -> Vec<u32> {
        if let Ok(text) = std::str::from_utf8(bytes) {
            return self.encode(text);
        }
        let mut ids = Vec::new();
        for chunk in bytes.utf8_chunks() {
            if !chunk.valid().is_empty() {
                ids.extend(self.encode(chunk.valid()));
            }
            ids.extend(chunk.invalid().iter().filter_map(|b| self.byte_ids[*b as usize]));
        }
        ids
    }

    /// Bytes of a token; a special token gives its literal text, an id out of range nothing.
    pub fn token_bytes(&self, id: u32) -> &[u8] {
        let id = id as usize;
        let Some(end) = self.limits.get(id) else { return &[] };
        let start = if id == 0 { 0 } else { self.limits[id - 1] };
        &self.bytes[start as usize..*end as usize]
    }

    /// Bytes of a sequence.
    pub fn decode_bytes(&self, ids: &[u32]) -> Vec<u8> {
        let mut out = Vec::with_capacity(ids.len() * 4);
        for id in ids {
            out.extend_from_slice(self.token_bytes(*id));
        }
        out
    }

    /// Text of a sequence, bytes that are no UTF-8 replaced.
    pub fn decode_lossy(&self, ids: &[u32]) -> String {
        String::from_utf8_lossy(&self.decode_bytes(ids)).into_owned()
    }

    /// Token ids of a prompt as the model reads it, BOS included where it has one; never empty.
    pub fn context(&self, text: &str) -> Vec<u32> {
        let ids = self.encode(text);
        // A chat template writes BOS itself.
        let bos = ids.is_empty() || self.add_bos && ids[0] != self.bos;
        bos.then_some(self.bos).into_iter().chain(ids).collect()
    }

    /// Whether a token ends an answer.
    pub fn is_end(&self, id: u32) -> bool {
        self.ends.contains(&id)
    }

    /// Token that begins a text.
    pub fn bos(&self) -> u32 {
        self.bos
    }

    /// Token that ends a text.
    pub fn eos(&self) -> u32 {
        self.eos
    }

    /// Whether a token is a control token.
    pub fn is_special(&self, id: u32) -> bool {
        self.special.get(id as usize).copied().unwrap_or(false)
    }

    /// Id of a token by its name in the file (byte-level alphabet for ordinary tokens).
    pub fn id_of(&self, name: &str) -> Option<u32> {
        self.inner.token_to_id(name)
    }

    /// Name of a token in the file.
    pub fn name_of(&self, id: u32) -> Option<String> {
        self.inner.id_to_token(id)
    }

    /// blake3 of the canonical content, hex: equal digests mean equal tokenizers.
    pub fn digest(&self) -> String {
        self.digest.clone()
    }
}

fn is_byte_level(inner: &tokenizers::Tokenizer) -> bool {
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

fn adds_prefix_space(inner: &tokenizers::Tokenizer) -> bool {
    byte_level_of(inner).is_none_or(|b| b.add_prefix_space)
}

fn push_sentencepiece(name: &str, out: &mut Vec<u8>) {
    let byte = name.strip_prefix("<0x").and_then(|n| n.strip_suffix('>')).and_then(|n| u8::from_str_radix(n, 16).ok());
    match byte {
        Some(b) => out.push(b),
        None => out.extend_from_slice(name.replace('\u{2581}', " ").as_bytes()),
    }
}

/// Cuts before a single space between two ASCII letters: every pre-tokenizer of the GPT-2 and Llama families starts a
/// piece there whatever stands around it, so the parts encode as the whole does.
fn safe_pieces(text: &str, target: usize) -> Vec<&str> {
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

fn byte_of_char() -> HashMap<char, u8> {
    byte_chars().iter().enumerate().map(|(b, c)| (*c, b as u8)).collect()
}

/// Parameters of `tokenizer.bpe`.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct BpeParams {
    /// Number of tokens, special tokens and the 256 bytes included; the text must allow as many.
    pub vocab_size: usize,
    /// Special tokens, in id order. The first begins and ends a text unless `<|bos|>` and `<|eos|>` are among them.
    pub specials: Vec<String>,
    /// Pairs seen less often than this are not merged.
    pub min_frequency: u64,
}

impl Default for BpeParams {
    fn default() -> Self {
        Self { vocab_size: 4096, specials: vec!["<|endoftext|>".into(), "<|pad|>".into()], min_frequency: 2 }
    }
}

/// `tokenizer.bpe`.
pub struct BpeStage;

impl Stage for BpeStage {
    type Params = BpeParams;
    const KIND: &'static str = "tokenizer.bpe";
    const REVISION: u32 = 1;
    const SUMMARY: &'static str = "Trains a byte-level BPE tokenizer on a text.";

    fn inputs(&self) -> Vec<InputPort> {
        vec![InputPort::required("text", &["Text"], "The text to learn merges from.")]
    }
    fn outputs(&self) -> Vec<OutputPort> {
        vec![OutputPort::pure("tokenizer", "Tokenizer", "A `tokenizer.json`.")]
    }
    fn check(&self, p: &BpeParams) -> Result<Vec<String>, ParamError> {
        let wrong = |path: &str, message: String, help: &str| Err(ParamError { path: path.into(), message, help: Some(help.into()) });
        if p.specials.is_empty() {
            return wrong("specials", "needs at least one special token to begin and end a text".into(), "leave it out for the default");
        }
        if let Some(bad) = p.specials.iter().enumerate().find(|(i, s)| s.is_empty() || p.specials[..*i].contains(s)) {
            return wrong("specials", format!("`{}` is empty or given twice", bad.1), "name each special token once");
        }
        let least = 256 + p.specials.len();
        if p.vocab_size < least {
            return wrong("vocab_size", format!("{} is below {least}, the bytes and the special tokens", p.vocab_size), "raise it");
        }
        Ok(Vec::new())
    }
    fn run(&self, p: BpeParams, ctx: &TaskContext) -> Result<(), StageError> {
        let path = ctx.input("text")?;
        let text = crate::data::read_text(path)?;
        let json = train(&text, &p).map_err(|e| match e {
            TrainError::TooLarge { reachable } => StageError::new(format!(
                "vocab_size: {} tokens were asked for, but {} allows at most {reachable} (pairs seen {} times or more)",
                p.vocab_size,
                path.display(),
                p.min_frequency
            ))
            .help(format!("set `vocab_size: {reachable}` or less, or give more text")),
            TrainError::Other(m) => StageError::new(format!("the tokenizer could not be trained: {m}")),
        })?;
        let out = ctx.output("tokenizer")?;
        std::fs::write(out, json).map_err(|e| StageError::io("cannot write", out, &e))
    }
}

enum TrainError {
    TooLarge { reachable: usize },
    Other(String),
}

fn train(text: &str, p: &BpeParams) -> Result<String, TrainError> {
    let other = |e: tokenizers::Error| TrainError::Other(e.to_string());
    let mut inner = tokenizers::Tokenizer::new(BPE::default());
    inner.with_pre_tokenizer(Some(PreTokenizerWrapper::ByteLevel(ByteLevel::new(false, true, true))));
    inner.with_decoder(Some(DecoderWrapper::ByteLevel(ByteLevel::default())));
    inner.with_post_processor(None::<PostProcessorWrapper>);
    let mut trainer: tokenizers::models::TrainerWrapper = BpeTrainerBuilder::new()
        .show_progress(false)
        .vocab_size(p.vocab_size)
        .min_frequency(p.min_frequency)
        .initial_alphabet(ByteLevel::alphabet().into_iter().collect())
        .special_tokens(p.specials.iter().map(|s| AddedToken::from(s.clone(), true)).collect())
        .build()
        .into();
    inner.train(&mut trainer, safe_pieces(text, CHUNK).into_iter()).map_err(other)?;
    let reachable = inner.get_vocab_size(true);
    if reachable < p.vocab_size {
        return Err(TrainError::TooLarge { reachable });
    }
    inner.to_string(true).map_err(other)
}

/// Where golden files are, for the tests of this crate: `FLOW_GOLDEN_DIR` or the repository's own.
#[doc(hidden)]
pub fn golden_dir() -> PathBuf {
    std::env::var_os("FLOW_GOLDEN_DIR").map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden"), PathBuf::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = include_str!("../../pipelines/data/corpus.txt");

    #[test]
    fn training_gives_the_same_bytes_every_time_and_chunks_encode_as_the_whole() {
        let text = &TEXT[..400_000];
        let p = BpeParams { vocab_size: 2048, ..BpeParams::default() };
        let first = train(text, &p).ok().expect("trains");
        for _ in 0..2 {
            assert!(train(text, &p).ok() == Some(first.clone()));
        }
        let tokenizer = Tokenizer::from_bytes(first.as_bytes()).expect("loads");
        assert_eq!(tokenizer.vocab_size(), 2048);
        assert!(tokenizer.chunkable);
        let whole = tokenizer.encode_piece(text);
        assert!(tokenizer.encode(text) == whole);
        assert_eq!(tokenizer.decode_bytes(&whole), text.as_bytes());
        assert_eq!((tokenizer.bos(), tokenizer.eos()), (0, 0));
        assert!(tokenizer.is_special(0) && tokenizer.token_bytes(0) == b"<|endoftext|>");
    }

    #[test]
    fn a_vocabulary_beyond_the_text_names_the_reachable_size() {
        let p = BpeParams { vocab_size: 4000, ..BpeParams::default() };
        match train("to be or not to be, to be", &p) {
            Err(TrainError::TooLarge { reachable }) => assert!((260..300).contains(&reachable), "{reachable}"),
            _ => panic!("must refuse"),
        }
    }

    #[test]
    fn bytes_that_are_no_text_survive() {
        let p = BpeParams { vocab_size: 300, ..BpeParams::default() };
        let json = train(&TEXT[..20_000], &p).ok().expect("trains");
        let tokenizer = Tokenizer::from_bytes(json.as_bytes()).expect("loads");
        let bytes = b"caf\xc3 and \xff\xfe\xe2\x82 \xe2\x82\xac";
        assert_eq!(tokenizer.decode_bytes(&tokenizer.encode_bytes(bytes)), bytes);
    }

    #[test]
    fn golden_tokenizers_load_and_round_trip() {
        let dir = golden_dir().join("models");
        let json = std::fs::read_to_string(dir.join("projection.json")).expect("golden file");
        let golden: serde_json::Value = serde_json::from_str(&json).expect("JSON");
        for field in ["student_tokenizer", "teacher_tokenizer"] {
            let tokenizer = Tokenizer::load(&dir.join(golden[field].as_str().expect("name"))).expect("loads");
            let text = "Let's test 1234, naïve café — \"{json: [1, 2]}\"\n\n\tdone 🙂";
            assert_eq!(tokenizer.decode_bytes(&tokenizer.encode(text)), text.as_bytes());
            assert!(tokenizer.byte_ids.iter().all(Option::is_some) || field == "teacher_tokenizer");
        }
    }
}
