//! What is asked of the model, and what is told of it.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use flow_lm::infer::{Finish, Logprobs, Request, TopK};
use flow_lm::token::TokenId;
use tokio::sync::mpsc::UnboundedSender;

/// One thing that the model does for a request.
pub enum Task {
    /// Continues a prompt: the choice, and what is asked.
    Sequence(usize, Box<Request>),
    /// Scores given tokens.
    Score(Given),
}

/// What is said for a request.
pub enum Told {
    /// A choice has a slot, which held so many tokens of its prompt already.
    Begun {
        /// Which of the request's choices.
        choice: usize,
        /// These tokens.
        reused: usize,
    },
    /// A token.
    Token {
        /// Which of the request's choices.
        choice: usize,
        /// The token.
        token: TokenId,
        /// Where they were asked for.
        logprobs: Option<Logprobs>,
    },
    /// The end of a choice.
    End {
        /// Which of the request's choices.
        choice: usize,
        /// Why it ended.
        finish: Finish,
    },
    /// Given tokens were scored; they come in the order in which they were given, before any choice.
    Scored(Box<Scored>),
    /// The request cannot be answered.
    Failed(String),
}

/// Given tokens to score.
pub struct Given {
    /// One that is only read, then those that are scored; at most one more than a window.
    pub tokens: Vec<TokenId>,
    /// Candidates of a row.
    pub top_k: usize,
    /// Temperatures of the tail.
    pub taus: Vec<f32>,
    /// Whether each token's own logprob is wanted too.
    pub own: bool,
}

/// Scores of given tokens; a row for every one but the first.
pub struct Scored {
    /// Candidates and the rest; more rows than tokens.
    pub top: TopK,
    /// Logprobs of the tokens themselves (nats), where they were wanted.
    pub own: Vec<f32>,
}

/// A request.
pub struct Work {
    /// What is done for it, in this order; a bounded number.
    pub tasks: Vec<Task>,
    /// Where the answers go. When nobody listens any more, the choices end.
    pub told: UnboundedSender<Told>,
    /// Set for a choice of which nothing more is wanted (a stop text came).
    pub enough: Arc<[AtomicBool]>,
}
