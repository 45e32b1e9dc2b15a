//! A tokenizer as it goes into the files of a model that is written: its content, and which tokens have which role.

use std::path::{Path, PathBuf};

use serde_json::{Value as Json, json};

use super::checkpoint::Checkpoint;
use super::directory::first_special;
use super::gguf::{self, GgufFile};
use super::load::{roles_of, tokenizer_of};
use crate::error::{Error, FormatError, Result};
use crate::tokenizer::{Roles, TokenId, Tokenizer};

/// A tokenizer with the content of its `tokenizer.json`.
pub struct TokenizerFile {
    /// The tokenizer, with its roles.
    pub tokenizer: Tokenizer,
    /// Content of `tokenizer.json`.
    pub json: Json,
    /// Where it was read.
    pub place: PathBuf,
    /// Roles of tokens, where another file says them.
    roles: Option<Roles>,
}

impl TokenizerFile {
    /// A `tokenizer.json` on its own.
    pub fn read(path: &Path) -> Result<Self> {
        Ok(Self { tokenizer: Tokenizer::load(path)?, json: content(path)?, place: path.to_owned(), roles: None })
    }

    /// A `tokenizer.json` whose tokens have the roles that the files of the model at `at` say.
    pub fn with_roles_of(path: &Path, at: &Path, model: &Checkpoint) -> Result<Self> {
        let Self { tokenizer, json, place, .. } = Self::read(path)?;
        let roles = roles_of(at, model, &tokenizer)?;
        Ok(Self { tokenizer: roles.iter().fold(tokenizer, Tokenizer::with_roles), json, place, roles })
    }

    /// A tokenizer that a model was trained with, or the one that it came with.
    pub fn given_or_own(given: Option<&Path>, at: &Path, model: &Checkpoint) -> Result<Self> {
        given.map_or_else(|| Self::of_model(at, model), |path| Self::with_roles_of(path, at, model))
    }

    /// The tokenizer that a model came with.
    pub fn of_model(at: &Path, model: &Checkpoint) -> Result<Self> {
        let tokenizer = tokenizer_of(at, model)?;
        let json = match &model.tokenizer {
            Some(path) => content(path)?,
            None => gguf::tokenizer::json(&GgufFile::read(at)?)?,
        };
        let roles = roles_of(at, model, &tokenizer)?;
        Ok(Self { tokenizer, json, place: model.tokenizer.clone().unwrap_or_else(|| at.to_owned()), roles })
    }

    /// The token that begins a text: what the post-processor puts there, where nothing else says it.
    pub fn bos(&self) -> TokenId {
        let first = || first_special(&self.json["post_processor"]).and_then(|name| self.tokenizer.id_of(name));
        if self.roles.is_some() { self.tokenizer.bos() } else { first().unwrap_or(self.tokenizer.bos()) }
    }

    /// Whether a text is read with that token before it.
    pub fn adds_bos(&self) -> bool {
        self.roles.as_ref().map_or_else(|| first_special(&self.json["post_processor"]).is_some(), |roles| roles.add_bos)
    }

    /// The content, with a post-processor that puts BOS before a text where only the roles say that.
    pub fn content(&self) -> Json {
        let mut json = self.json.clone();
        let name = self.tokenizer.name_of(self.bos()).filter(|_| self.adds_bos() && json["post_processor"].is_null());
        if let Some(bos) = name {
            let special = json!({"SpecialToken": {"id": bos, "type_id": 0}});
            let (a, b) = (json!({"Sequence": {"id": "A", "type_id": 0}}), json!({"Sequence": {"id": "B", "type_id": 1}}));
            let id = self.bos().0;
            json["post_processor"] = json!({
                "type": "TemplateProcessing", "single": [special, a], "pair": [special, a, special, b],
                "special_tokens": {bos.as_str(): {"id": bos, "ids": [id], "tokens": [bos]}},
            });
        }
        json
    }
}

fn content(path: &Path) -> Result<Json> {
    let raw = std::fs::read(path).map_err(|e| Error::io("cannot read", path, e))?;
    serde_json::from_slice(&raw).map_err(|e| FormatError::not_json(path, &e))
}
