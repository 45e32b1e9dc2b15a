//! Running a model.
//!
//! - [`program`]: what a session is built for; [`session`]: weights once, many uses;
//! - [`scoring`]: windows of text; [`sampling`]: how a token is chosen; [`generator`]: sequences that come and go;
//! - [`constrain`]: answers that a grammar allows, [`gbnf`]: how llama.cpp writes one; [`text`]: tokens as they are read;
//! - [`squares`](mod@squares): how much flows into `o` and `down`; [`takes`]: what linears take; [`kv`]: how a cache is held; [`plan`]: how much is done together.

pub mod constrain;
pub mod gbnf;
pub mod generator;
pub mod kv;
pub mod plan;
pub mod program;
pub mod sampling;
pub mod scoring;
pub mod session;
pub mod squares;
pub mod takes;
pub mod text;

pub use constrain::{Constraint, Grammar, Vocabulary};
pub use generator::{Continuation, Event, Finish, Generator, Logprobs, Request, generate};
pub use kv::KvCache;
pub use plan::{CHUNK, Decoding, windows_together};
pub use program::Uses;
pub use sampling::Sampling;
pub use scoring::{ScoreBatch, Window, score_batch};
pub use session::{Choice, Next, Session, TopK};
pub use squares::{LayerSquares, Squares, squares};
pub use takes::Takes;
pub use text::{Said, TextStream};
