//! Tokens by those of another vocabulary.

use std::collections::HashMap;

use crate::tokenizer::{TokenId, Tokenizer};

/// Of each token its tokens in another vocabulary; nothing for a special one that has no counterpart.
pub(super) struct Pieces(pub Vec<Vec<TokenId>>);

impl Pieces {
    pub fn of(theirs: &Tokenizer, ours: &Tokenizer, same: bool, vocab: usize) -> Self {
        let ordinary = (0..theirs.vocab_size() as u32).map(TokenId).filter(|id| !theirs.is_special(*id));
        let whole: HashMap<&[u8], TokenId> = ordinary.map(|id| (theirs.token_bytes(id), id)).collect();
        let of = |id: TokenId| {
            if same {
                return if id.index() < theirs.vocab_size() { vec![id] } else { Vec::new() };
            }
            if id == ours.bos() {
                return vec![theirs.bos()];
            }
            if id == ours.eos() {
                return vec![theirs.eos()];
            }
            if ours.is_special(id) {
                return ours.name_of(id).and_then(|name| theirs.id_of(&name)).into_iter().collect();
            }
            // A token of the same bytes before what a tokenizer would make of them, which may prepend a space.
            let bytes = ours.token_bytes(id);
            whole.get(bytes).map_or_else(|| theirs.encode_bytes(bytes), |id| vec![*id])
        };
        Self((0..vocab as u32).map(TokenId).map(of).collect())
    }
}
