//! The content-addressed store, action index and locks of `flow`.
//!
//! Everything lives under one `.flow/` directory ([`Layout`]). Files enter by their blake3 digest
//! ([`Digest`]) and never change; what an action key produced is an [`ActionEntry`] file; an SQLite
//! index only makes both fast and can be rebuilt from them. Modules in reading order: [`digest`] names,
//! [`layout`] places, [`error`] failures, `files` atomic file work, [`tree`] folders of the user's, [`manifest`] directory artifacts,
//! `index` SQLite, [`action`] entries, [`lock`] one process per key, [`remote`] the same names elsewhere, [`cache`] the cache itself.
//! Above it, each with its part of `impl Cache`: [`object`] the store, [`lease`] what a running process relies on, `lookup` what is
//! done and where, [`commit`] what makes it durable, [`materialise`] artifacts as inputs of tasks, `export` artifacts outside, [`pin`]
//! what stays, [`gc`] what goes, [`verify`] what is whole, [`usage`] what takes room, `upload` what is sent elsewhere.
pub mod action;
pub mod cache;
pub mod commit;
pub mod digest;
pub mod error;
mod export;
mod files;
pub mod gc;
mod index;
pub mod layout;
pub mod lease;
pub mod lock;
mod lookup;
pub mod manifest;
pub mod materialise;
pub mod object;
pub mod pin;
pub mod remote;
pub mod tree;
mod upload;
pub mod usage;
pub mod verify;

pub use action::{ActionEntry, ActionFile, ActionProvenance, Lookup};
pub use cache::Cache;
pub use commit::Commit;
pub use digest::{ActionKey, Artifact, Digest};
pub use error::{CacheError, FetchError};
pub use files::Stat;
pub use gc::{GcOptions, GcReport};
pub use layout::Layout;
pub use lease::{Entering, Lease};
pub use lock::KeyLock;
pub use materialise::{Materialised, files_copy};
pub use object::Entered;
pub use pin::Pin;
pub use remote::Remote;
pub use upload::{UploadSummary, Uploader};
pub use usage::Usage;
pub use verify::VerifyReport;
