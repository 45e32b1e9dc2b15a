//! The built-in kinds of `flow`: what a pipeline can do with a language model. The model itself is in [`flow_lm`]. In reading
//! order:
//!
//! - [`kinds`]: one thin file a kind, and the registry;
//! - [`data`]: texts and prompts; [`teacher`]: who answers, here (`local`) or behind an API (`hosted`, `http/` with what is known
//!   of providers in `preset` and their requests and answers in `shape/`); [`traces`]: what was answered, in Parquet;
//! - [`distil`]: a teacher's rows over the student's tokens, and as training windows;
//! - [`eval`] and [`report`]: measured figures, verdicts, the page; [`card`]: what goes out with a model; [`bench`]: speeds; [`estimate`]: what trainings will take;
//! - [`task`]: what kinds do with their task; `fingerprints`: which kernels enter their keys.

pub mod bench;
pub mod card;
pub mod data;
pub mod distil;
pub mod estimate;
pub mod eval;
mod fingerprints;
pub mod kinds;
pub mod measurements;
pub mod report;
pub mod task;
pub mod teacher;
pub mod traces;

pub use kinds::registry;

/// Whether a pipeline left a choice open: such a parameter is not written into keys, which thus outlive its introduction.
fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

/// `FLOW_GOLDEN_DIR`, or the repository's own golden files.
#[cfg(test)]
fn golden_dir() -> std::path::PathBuf {
    let ours = || std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden");
    std::env::var_os("FLOW_GOLDEN_DIR").map_or_else(ours, Into::into)
}
