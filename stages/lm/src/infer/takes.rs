//! What linears take while a model runs.

use crate::config::{Bits, ModelConfig, Refused};

/// What linears take while a model runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Takes {
    /// Codes with a step for each token: models that were trained so.
    Codes(Bits),
    /// Floats.
    Floats,
    /// int8 in blocks of 64 with a step each: what models with float activations can take at inference.
    Block8,
}

impl Takes {
    /// The names of all of them, for messages.
    pub const NAMES: &'static str = "8, 4, float or block8";

    /// By its name.
    pub fn of(name: &str) -> Option<Self> {
        match name {
            "float" => Some(Takes::Floats),
            "block8" => Some(Takes::Block8),
            bits => bits.parse().ok().and_then(Bits::of).map(Takes::Codes),
        }
    }

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Takes::Codes(Bits::Eight) => "8",
            Takes::Codes(Bits::Four) => "4",
            Takes::Floats => "float",
            Takes::Block8 => "block8",
        }
    }

    /// What a model takes without a word: 8 bits, or floats.
    pub fn usual(config: &ModelConfig) -> Self {
        if config.quantises() { Takes::Codes(Bits::Eight) } else { Takes::Floats }
    }

    /// What was asked for, if the model can take it.
    pub fn fitting(asked: Option<Self>, config: &ModelConfig) -> Result<Self, Refused> {
        let usual = Self::usual(config);
        let asked = asked.unwrap_or(usual);
        if matches!(asked, Takes::Codes(_)) == matches!(usual, Takes::Codes(_)) {
            return Ok(asked);
        }
        let why = if config.quantises() {
            format!("{}: the model's linears were trained to take codes: 8 or 4", asked.name())
        } else {
            format!("{}: the model's linears were trained to take floats: float, or block8 for int8 in blocks", asked.name())
        };
        Err(Refused { field: "activations".into(), why })
    }

    /// The bits of codes; 8 where there are none.
    pub fn bits(self) -> Bits {
        if let Takes::Codes(bits) = self { bits } else { Bits::Eight }
    }
}
