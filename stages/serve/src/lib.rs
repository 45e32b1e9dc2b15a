//! A language model behind the OpenAI API.
//!
//! - [`server`]: listening; [`routes`]: what is served; [`chat`]: conversations; [`completions`]: texts; `page`: the page;
//! - [`worker`]: the thread that owns the session; [`work`]: what is asked of it and told; [`queue`]: requests that wait for it;
//! - [`shared`]: what every request needs; [`ask`]: what a client asks; [`tools`]: calls; [`compiled`]: grammars;
//! - [`speak`]: answers as they come; [`answer`]: one of them; [`events`]: as a stream;
//! - [`doors`]: who may ask; [`error`]: refusals as clients read them; [`stats`]: what is counted.

pub mod answer;
mod aside;
pub mod ask;
pub mod chat;
pub mod compiled;
pub mod completions;
pub mod doors;
pub mod error;
pub mod events;
mod id;
mod page;
pub mod queue;
pub mod routes;
pub mod server;
pub mod shared;
pub mod speak;
pub mod stats;
pub mod tools;
pub mod work;
pub mod worker;
