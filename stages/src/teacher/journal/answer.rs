//! An answer and its key.

/// Digest of what was asked.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct AnswerKey(pub [u8; 32]);

impl AnswerKey {
    fn derived(&self, what: &str) -> Self {
        let mut hash = blake3::Hasher::new();
        Self(*hash.update(format!("flow-answer {what}\n").as_bytes()).update(&self.0).finalize().as_bytes())
    }
    /// Under which the answer lies that was asked for in the place of a refused one.
    pub fn again(&self) -> Self {
        self.derived("again 1")
    }
    /// Under which it is written why an answer is refused.
    pub fn refusal(&self) -> Self {
        self.derived("refused 1")
    }
}

/// A kept answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeptAnswer {
    /// The body as the server sent it.
    pub body: Vec<u8>,
    /// How long the request took.
    pub millis: u32,
}
