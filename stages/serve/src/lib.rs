//! A language model behind the OpenAI API. Being built: what stands here is used by nobody yet.
//!
//! - [`worker`]: the thread that owns the session; [`queue`]: requests that wait;
//! - [`doors`]: who may ask; [`error`]: refusals as clients read them; [`stats`]: what is counted.

pub mod doors;
pub mod error;
pub mod queue;
pub mod stats;
pub mod worker;
