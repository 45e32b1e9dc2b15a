//! The content-addressed store, action index and locks of `flow`.
//!
//! Everything lives under one `.flow/` directory ([`Layout`]). Files enter by their blake3 digest
//! ([`Digest`]) and never change; what an action key produced is an [`ActionEntry`] file; an SQLite
//! index only makes both fast and can be rebuilt from them. Modules in reading order: [`digest`] names,
//! [`layout`] places, [`error`] failures, `files` atomic file work, [`manifest`] directory artifacts,
//! `index` SQLite, `object` the store itself, [`action`] entries, [`lock`] one process per key,
//! [`materialise`] artifacts in task directories, `export` artifacts outside, [`cache`] the whole.
pub mod action;
pub mod cache;
pub mod digest;
pub mod error;
mod export;
mod files;
mod index;
pub mod layout;
pub mod lock;
pub mod manifest;
pub mod materialise;
mod object;

pub use action::{ActionEntry, ActionProvenance, Lookup};
pub use cache::Cache;
pub use digest::{ActionKey, Artifact, Digest};
pub use error::CacheError;
pub use layout::Layout;
pub use lock::KeyLock;
pub use materialise::Materialised;
