//! A language model behind the OpenAI API. Being built: what stands here is used by nobody yet.
//!
//! - [`worker`]: the thread that owns the session; [`queue`]: requests that wait;
//! - [`shared`]: what every request needs; [`ask`]: what a client asks; [`answer`]: what it is told; [`tools`]: calls;
//! - [`doors`]: who may ask; [`error`]: refusals as clients read them; [`stats`]: what is counted.

pub mod answer;
pub mod ask;
pub mod doors;
pub mod error;
pub mod queue;
pub mod shared;
pub mod stats;
pub mod tools;
pub mod worker;
