//! What the property tests and the coverage-guided targets share.

pub mod bodies;
pub mod seeds;

use bodies::Came;

/// A kind of file: its name, its valid inputs, and what is done with one.
pub type Target = (&'static str, fn() -> Vec<Vec<u8>>, fn(&[u8]) -> Came);

/// All of them.
pub const TARGETS: [Target; 6] = [
    ("gguf", seeds::gguf, bodies::gguf),
    ("safetensors", seeds::safetensors, bodies::safetensors),
    ("tokenizer", seeds::tokenizer, bodies::tokenizer),
    ("answers", seeds::answers, bodies::answers),
    ("yaml", seeds::yaml, bodies::yaml),
    ("task_results", seeds::task_results, bodies::task_results),
];
