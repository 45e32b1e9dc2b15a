//! A language model behind the OpenAI API. Being built: what stands here is used by nobody yet.
//!
//! - [`server`]: listening; [`routes`]: what is served; [`chat`]: conversations;
//! - [`worker`]: the thread that owns the session; [`queue`]: requests that wait;
//! - [`shared`]: what every request needs; [`ask`]: what a client asks; [`answer`]: what it is told; [`tools`]: calls; [`speak`]: answers as they come;
//! - [`doors`]: who may ask; [`error`]: refusals as clients read them; [`stats`]: what is counted.

pub mod answer;
pub mod ask;
pub mod chat;
pub mod doors;
pub mod error;
mod id;
pub mod queue;
pub mod routes;
pub mod server;
pub mod shared;
pub mod speak;
pub mod stats;
pub mod tools;
pub mod worker;
