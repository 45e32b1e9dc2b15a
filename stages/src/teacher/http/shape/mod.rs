//! Requests and answers in the shapes of the providers.
//!
//! [`Call`] is a request, `request` makes one in a provider's shape; [`Answer`] is what comes back.
//! Reading order of what comes back: `json` and `stream` make an object of a body, `failure` finds the errors among
//! them, `openai`, `anthropic`, `gemini`, `scoring` and `served` read tokens out of it, `token` knows what a token's bytes may be,
//! `align` which of them the text allows, `decode` makes steps of that, and `reply` is the door: what passes it is true.

mod align;
mod answer;
mod anthropic;
mod call;
mod decode;
mod failure;
mod gemini;
mod json;
mod openai;
mod reply;
mod request;
mod scoring;
pub mod served;
mod stream;
mod token;

pub use answer::{Answer, Failed, Failure, Finish, NO_LOGPROBS, Refusal, Refused, Reply};
pub use call::{Call, Draw, Expect, Step};
pub use decode::Manner;
pub use reply::read;
pub use request::{call, error_message};
pub use scoring::{Pieces, score_call};
