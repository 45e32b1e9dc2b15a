//! Tokenizers by the `tokenizers` crate, with what it leaves open: exact bytes per token, encoding of bytes that are no
//! complete UTF-8, and a digest of the content.
//!
//! `bytes`: how names stand for bytes; `chunks`: long texts in pieces; [`Fidelity`]: whether a text comes back; [`train()`]:
//! learning one.

mod bytes;
mod chunks;
mod fidelity;
mod train;

use std::collections::HashMap;
use std::path::Path;

use rayon::prelude::*;
use serde::{Deserialize, Serialize};

pub use crate::token::TokenId;
pub use bytes::byte_chars;
use bytes::{adds_prefix_space, byte_of_char, is_byte_level, push_sentencepiece};
use chunks::{CHUNK, safe_pieces};
pub use fidelity::{Difference, Fidelity};
pub use train::train;

use crate::error::{Error, Result, TokenizerError};

/// Which tokens begin and end what a model reads, where another file than `tokenizer.json` says so.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Roles {
    /// Begins a text.
    pub bos: Option<TokenId>,
    /// Ends a text.
    pub eos: Option<TokenId>,
    /// End an answer: EOS and, in chat models, the end of a turn.
    pub ends: Vec<TokenId>,
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
    byte_ids: [Option<TokenId>; 256],
    bos: TokenId,
    eos: TokenId,
    ends: Vec<TokenId>,
    add_bos: bool,
    chunkable: bool,
    digest: String,
}

/// What is looked at before the library reads a file.
#[derive(serde::Deserialize)]
struct Parts {
    #[serde(default, rename = "decoder")]
    _decoder: serde_json::Value,
}

impl Tokenizer {
    /// Reads a `tokenizer.json`.
    pub fn load(path: &Path) -> Result<Self> {
        let raw = std::fs::read(path).map_err(|e| Error::io("cannot read the tokenizer", path, e))?;
        Self::from_bytes(&raw).map_err(|why| {
            Error::from(TokenizerError::Unreadable { file: path.to_owned(), why })
                .help("give a Hugging Face `tokenizer.json` with a byte-level BPE model")
        })
    }

    /// Parses the content of a `tokenizer.json`.
    pub fn from_bytes(raw: &[u8]) -> Result<Self, String> {
        // The library panics where a decoder is no JSON.
        serde_json::from_slice::<Parts>(raw).map_err(|e| format!("it is no JSON: {e}"))?;
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
        // There may be holes, as many as models are padded with; a table is made of all.
        if size > 16 * vocab.len() + (1 << 16) {
            return Err(format!("its {} tokens have ids up to {}", vocab.len(), size - 1));
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
                    byte_ids[bytes[start] as usize].get_or_insert(TokenId(id as u32));
                }
            }
            limits.push(u32::try_from(bytes.len()).map_err(|_| "its vocabulary holds more than 4 GiB of text".to_owned())?);
        }
        let find = |candidates: &[&str]| candidates.iter().find_map(|c| vocab.get(*c).map(|id| TokenId(*id)));
        let first_special = special.iter().position(|s| *s).map(|i| TokenId(i as u32));
        let eos = find(&["<|eos|>", "</s>", "<|im_end|>", "<|eot_id|>", "<|end_of_text|>", "<|endoftext|>"])
            .or(first_special)
            .unwrap_or_default();
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
        let size = self.vocab_size();
        let known = |id: &TokenId| id.index() < size;
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
    pub fn encode(&self, text: &str) -> Vec<TokenId> {
        if !self.chunkable || text.len() <= CHUNK {
            return self.encode_piece(text);
        }
        let pieces = safe_pieces(text, CHUNK);
        let parts: Vec<Vec<TokenId>> = pieces.par_iter().map(|p| self.encode_piece(p)).collect();
        parts.concat()
    }

    #[cfg(test)]
    pub(crate) fn is_chunkable(&self) -> bool {
        self.chunkable
    }

    /// Token ids of a text, and how it comes back from them.
    pub fn encode_faithfully(&self, text: &str) -> (Vec<TokenId>, Fidelity) {
        let ids = self.encode(text);
        let fidelity = Fidelity::of(text.as_bytes(), &self.decode_bytes(&ids));
        (ids, fidelity)
    }

    pub(crate) fn encode_piece(&self, text: &str) -> Vec<TokenId> {
        self.encode_whole(text).unwrap_or_else(|| self.encode_around(text))
    }

    fn encode_whole(&self, text: &str) -> Option<Vec<TokenId>> {
        // The crate's errors come from truncation, padding and unknown tokens without `unk`; the first two are off.
        self.inner.encode_fast(text, false).ok().map(|e| e.get_ids().iter().map(|id| TokenId(*id)).collect())
    }

    /// What stands between the characters that have no token and no `unk`.
    fn encode_around(&self, text: &str) -> Vec<TokenId> {
        let mut known = HashMap::new();
        let unknown = |c: char| !*known.entry(c).or_insert_with(|| self.encode_whole(c.encode_utf8(&mut [0; 4])).is_some());
        text.split(unknown).filter(|part| !part.is_empty()).flat_map(|part| self.encode_whole(part).unwrap_or_default()).collect()
    }

    /// Token ids of bytes: valid UTF-8 is encoded as text, any other byte becomes the token of that byte, where there is one.
    pub fn encode_bytes(&self, bytes: &[u8]) -> Vec<TokenId> {
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
    pub fn token_bytes(&self, id: TokenId) -> &[u8] {
        let id = id.index();
        let Some(end) = self.limits.get(id) else { return &[] };
        let start = if id == 0 { 0 } else { self.limits[id - 1] };
        &self.bytes[start as usize..*end as usize]
    }

    /// Bytes of a sequence.
    pub fn decode_bytes(&self, ids: &[TokenId]) -> Vec<u8> {
        let mut out = Vec::with_capacity(ids.len() * 4);
        for id in ids {
            out.extend_from_slice(self.token_bytes(*id));
        }
        out
    }

    /// Text of a sequence, bytes that are no UTF-8 replaced.
    pub fn decode_lossy(&self, ids: &[TokenId]) -> String {
        String::from_utf8_lossy(&self.decode_bytes(ids)).into_owned()
    }

    /// Token ids of a prompt as the model reads it, BOS included where it has one; never empty.
    pub fn context(&self, text: &str) -> Vec<TokenId> {
        self.with_bos(self.encode(text))
    }

    /// Tokens of a prompt with BOS before them, where the model reads one; never empty.
    pub fn with_bos(&self, ids: Vec<TokenId>) -> Vec<TokenId> {
        // A chat template writes BOS itself.
        let bos = ids.is_empty() || self.add_bos && ids[0] != self.bos;
        bos.then_some(self.bos).into_iter().chain(ids).collect()
    }

    /// Whether a token ends an answer.
    pub fn is_end(&self, id: TokenId) -> bool {
        self.ends.contains(&id)
    }

    /// Tokens that end an answer.
    pub fn ends(&self) -> &[TokenId] {
        &self.ends
    }

    /// Token that begins a text.
    pub fn bos(&self) -> TokenId {
        self.bos
    }

    /// Token that ends a text.
    pub fn eos(&self) -> TokenId {
        self.eos
    }

    /// Whether a token is a control token.
    pub fn is_special(&self, id: TokenId) -> bool {
        self.special.get(id.index()).copied().unwrap_or(false)
    }

    /// Id of a token by its name in the file (byte-level alphabet for ordinary tokens).
    pub fn id_of(&self, name: &str) -> Option<TokenId> {
        self.inner.token_to_id(name).map(TokenId)
    }

    /// Name of a token in the file.
    pub fn name_of(&self, id: TokenId) -> Option<String> {
        self.inner.id_to_token(id.0)
    }

    /// The content of a `tokenizer.json`, without the roles of tokens.
    pub fn to_json(&self) -> Result<String, String> {
        self.inner.to_string(false).map_err(|e| e.to_string())
    }

    /// Which tokens have which role.
    pub fn roles(&self) -> Roles {
        Roles { bos: Some(self.bos), eos: Some(self.eos), ends: self.ends.clone(), add_bos: self.add_bos }
    }

    /// blake3 of the canonical content, hex: equal digests mean equal tokenizers.
    pub fn digest(&self) -> String {
        self.digest.clone()
    }
}
