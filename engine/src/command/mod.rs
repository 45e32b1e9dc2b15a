//! Kinds that run a command: `shell` stages and external plugins.
//!
//! `run` starts a command in a private working directory and in its own process group, takes in what it prints,
//! and ends it, with everything that it started, on a timeout, an interruption or a flood. [`sandbox`] refuses
//! writes elsewhere, `workdir` puts the declared files in place, [`shell`] and [`external`] are the kinds.
pub mod external;
mod run;
pub mod sandbox;
pub mod shell;
mod workdir;

pub(crate) use run::end_marked;
