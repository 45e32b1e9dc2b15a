//! Pipelines, plans, action keys, scheduling and the plugin contract of `flow`.
//!
//! Data goes one way: a file is parsed ([`document`], [`vars`], [`pipeline`]), linked against the kinds of a
//! [`registry`] into a typed DAG ([`plan`]), keyed ([`key`]), compared with the cache ([`preview`],
//! [`explain`]), executed ([`run`], `schedule`, `execute`) and recorded ([`record`], [`publish`]). What happens is told
//! as a stream of typed [`events`]; failures in the file are [`problem`]s with a place in it. [`plugin`] is
//! the contract of a kind, [`schema`] what its parameters look like, [`worker`] a task in a child process.
pub mod document;
pub mod events;
mod execute;
pub mod explain;
pub mod graph;
pub mod key;
pub mod pipeline;
pub mod plan;
pub mod plugin;
pub mod preview;
pub mod problem;
pub mod publish;
pub mod record;
pub mod registry;
pub mod run;
mod schedule;
pub mod schema;
pub mod stop;
pub mod vars;
pub mod worker;

pub use registry::Registry;
