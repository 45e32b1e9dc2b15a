//! Pipelines, plans, action keys, scheduling and the plugin contract of `flow`.
//!
//! Data goes one way, and each module takes from those before it. A file is parsed ([`text`], `walk`, [`document`] of [`node`]s with
//! [`units`], [`vars`], [`pipeline`]) and linked against the kinds of a [`registry`] into a typed DAG ([`plan`], whose parameters
//! [`typed`] reads). Its stages are keyed ([`key`], [`sources`]) and compared with the cache ([`explain`], [`preview`]). A [`run`] that
//! may go on until it is asked to [`stop`] executes them (`execute`, `commit`, `schedule`; [`check`] compares), reads what is for
//! itself (`outputs`), [`publish`]es and keeps a [`record`]; [`memo`] remembers a run with nothing to do. What happens is told as a
//! stream of typed [`events`]; failures in the file are [`problem`]s with a place in it. [`plugin`] is the contract of a kind,
//! [`estimate`] what it says of an execution beforehand, [`kind`] what the rest knows of one, [`schema`] what its parameters look like
//! and [`file_schema`] a whole file, [`worker`] a task in a child process, [`command`] the kinds that run a command, [`graph`] the DAG
//! for other tools, [`clock`] how moments are written.
pub mod check;
pub mod clock;
pub mod command;
mod commit;
pub mod document;
pub mod estimate;
pub mod events;
mod execute;
pub mod explain;
pub mod file_schema;
pub mod graph;
pub mod key;
pub mod kind;
pub mod memo;
pub mod memory;
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
