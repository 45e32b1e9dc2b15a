//! The tokens of a GGUF file.

use serde_json::{Value as Json, json};

use super::read::GgufFile;
use super::write::Value;
use crate::error::Result;

/// `tokenizer.ggml.token_type`.
pub(super) const NORMAL: i32 = 1;
pub(super) const UNKNOWN: i32 = 2;
pub(super) const CONTROL: i32 = 3;
pub(super) const USER_DEFINED: i32 = 4;
pub(super) const UNUSED: i32 = 5;
pub(super) const BYTE: i32 = 6;

/// Tokens and their types, in id order.
pub(super) struct Vocabulary<'a> {
    pub tokens: &'a [String],
    types: &'a [i32],
}

impl<'a> Vocabulary<'a> {
    /// The vocabulary of a file.
    pub fn read(file: &'a GgufFile) -> Result<Self> {
        let field = "tokenizer.ggml.tokens";
        let Some(Value::Texts(tokens)) = file.keys.get(field) else {
            return Err(file.missing_field(field).help("the file holds no tokenizer"));
        };
        let field = "tokenizer.ggml.token_type";
        let types: &[i32] = match file.keys.get(field) {
            Some(Value::I32s(types)) => types,
            _ => &[],
        };
        if !types.is_empty() && types.len() != tokens.len() {
            return Err(file.wrong_field(field, format!("{} types of {} tokens", types.len(), tokens.len())));
        }
        Ok(Self { tokens, types })
    }

    fn ty(&self, id: usize) -> i32 {
        self.types.get(id).copied().unwrap_or(NORMAL)
    }

    /// Tokens that are matched in a text before it is cut into pieces.
    pub fn added(&self) -> Vec<Json> {
        let of = |(id, token): (usize, &String)| {
            let ty = self.ty(id);
            [UNKNOWN, CONTROL, USER_DEFINED].contains(&ty).then(|| {
                json!({"id": id, "content": token, "single_word": false, "lstrip": false, "rstrip": false, "normalized": false,
                       "special": ty != USER_DEFINED})
            })
        };
        self.tokens.iter().enumerate().filter_map(of).collect()
    }

    /// Token → id. Unused ids stay in it: a model may have more ids than its text reaches. Of two equal tokens the
    /// first counts.
    pub fn ids(&self) -> serde_json::Map<String, Json> {
        let mut ids = serde_json::Map::new();
        for (id, token) in self.tokens.iter().enumerate() {
            let name = if self.ty(id) == UNUSED && ids.contains_key(token) { format!("{token}#{id}") } else { token.clone() };
            ids.entry(name).or_insert_with(|| id.into());
        }
        ids
    }
}
