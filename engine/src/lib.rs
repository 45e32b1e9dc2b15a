//! Pipelines, plans, action keys, scheduling and the plugin contract of `flow`.
//!
//! Data goes one way: a file is parsed ([`text`], [`document`] of [`node`]s, [`vars`], [`pipeline`]), linked against the kinds of a
//! [`registry`] into a typed DAG ([`plan`]), keyed ([`key`]), compared with the cache ([`preview`],
//! [`explain`]), executed ([`run`], `schedule`, `execute`, `commit`; [`check`] compares) and recorded ([`record`], [`publish`]; [`memo`] remembers a run with
//! nothing to do). What happens is told
//! as a stream of typed [`events`]; failures in the file are [`problem`]s with a place in it. [`plugin`] is
//! the contract of a kind, [`schema`] what its parameters look like, [`worker`] a task in a child process, [`command`] the kinds that run a command.
pub mod check;
pub mod clock;
pub mod command;
mod commit;
pub mod document;
pub mod events;
mod execute;
pub mod explain;
pub mod file_schema;
pub mod graph;
pub mod key;
pub mod kind;
pub mod memo;
pub mod node;
mod outputs;
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
pub mod sources;
pub mod stop;
pub mod text;
pub mod typed;
pub mod units;
pub mod vars;
mod walk;
pub mod worker;

pub use registry::Registry;
