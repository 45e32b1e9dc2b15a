//! Texts as tokens that give them back: what a tokenizer loses was never read, and bits per byte of it mean nothing.

use flow_engine::plugin::{StageError, TaskContext};
use flow_lm::tokenizer::{Fidelity, TokenId, Tokenizer};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What happens where a tokenizer does not give a text back.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Lossy {
    /// The stage fails, and names the places.
    #[default]
    Refuse,
    /// It goes on, and its figures say that they are not comparable.
    Accept,
}

/// Tokens of a text by a tokenizer that belongs to `whose`, and how the text comes back from them.
pub fn encode(
    (tokenizer, whose): (&Tokenizer, &str),
    text: &str,
    lossy: Lossy,
    ctx: &TaskContext,
) -> Result<(Vec<TokenId>, Fidelity), StageError> {
    let (tokens, found) = tokenizer.encode_faithfully(text);
    judge(&found, whose, lossy, ctx)?;
    Ok((tokens, found))
}

/// The same of many texts, whose losses are counted together.
pub fn encode_all(
    (tokenizer, whose): (&Tokenizer, &str),
    texts: &[String],
    lossy: Lossy,
    ctx: &TaskContext,
) -> Result<Vec<Vec<TokenId>>, StageError> {
    let mut all = Fidelity::default();
    let mut one = |text: &String| {
        let (tokens, found) = tokenizer.encode_faithfully(text);
        all.add(found);
        tokens
    };
    let tokens = texts.iter().map(&mut one).collect();
    judge(&all, whose, lossy, ctx)?;
    Ok(tokens)
}

/// Says what of a text does not come back, and refuses what is lost.
pub fn judge(found: &Fidelity, whose: &str, lossy: Lossy, ctx: &TaskContext) -> Result<(), StageError> {
    if found.is_exact() {
        return Ok(());
    }
    match (found.is_lossless(), lossy) {
        (true, _) => ctx.log(format!("{whose} tokenizer: {found}")),
        (false, Lossy::Accept) => ctx.warn(format!("{whose} tokenizer: {found}; bits per byte of this text are not comparable")),
        (false, Lossy::Refuse) => return Err(refused(found, whose)),
    }
    Ok(())
}

fn refused(found: &Fidelity, whose: &str) -> StageError {
    StageError::new(format!("{whose} tokenizer does not give the text back: {found}")).help(
        "take a tokenizer that has a token for every byte (byte-level BPE, or SentencePiece with byte fallback), leave these \
         characters out of the text, or go on with `lossy: accept`: figures then say that they are not comparable",
    )
}
