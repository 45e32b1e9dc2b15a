//! Pins: results that no collection takes.

use std::fs;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::cache::Cache;
use crate::digest::ActionKey;
use crate::error::CacheError;
use crate::files::{self, json_files};

/// `pins/<name>.json`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pin {
    /// Name of the pin.
    pub name: String,
    /// What is kept.
    pub key: ActionKey,
    /// The pipeline that made it.
    pub pipeline: String,
    /// Its stage.
    pub stage: String,
    /// Unix seconds when it was pinned.
    pub at: u64,
}

impl Cache {
    /// Keeps what an action produced until [`Self::unpin`].
    pub fn pin(&self, pin: &Pin) -> Result<(), CacheError> {
        let text = serde_json::to_string_pretty(pin).map_err(|e| CacheError::Format {
            what: "pin",
            name: pin.name.clone(),
            why: e.to_string(),
        })?;
        files::write_atomic(&self.layout().tmp(), &self.pin_path(&pin.name)?, text.as_bytes())
    }

    /// Removes a pin; says whether there was one.
    pub fn unpin(&self, name: &str) -> Result<bool, CacheError> {
        let path = self.pin_path(name)?;
        let there = path.exists();
        files::remove_all(&path)?;
        Ok(there)
    }

    /// All pins, by name.
    pub fn pins(&self) -> Result<Vec<Pin>, CacheError> {
        let dir = self.layout().root().join("pins");
        if !dir.exists() {
            return Ok(Vec::new());
        }
        let mut pins = Vec::new();
        for path in json_files(&dir, 1)? {
            let bytes = fs::read(&path).map_err(CacheError::io("read", &path))?;
            // A pin that cannot be read must not let its result go unseen.
            pins.push(serde_json::from_slice::<Pin>(&bytes).map_err(|e| CacheError::Format {
                what: "pin",
                name: path.display().to_string(),
                why: e.to_string(),
            })?);
        }
        pins.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(pins)
    }

    fn pin_path(&self, name: &str) -> Result<PathBuf, CacheError> {
        let plain = !name.is_empty() && !name.starts_with('.') && name.chars().all(|c| c.is_ascii_alphanumeric() || "._-".contains(c));
        if !plain {
            let why = "a pin's name holds letters, digits, `.`, `_` and `-`".into();
            return Err(CacheError::Format { what: "pin", name: name.into(), why });
        }
        Ok(self.layout().root().join("pins").join(format!("{name}.json")))
    }
}
