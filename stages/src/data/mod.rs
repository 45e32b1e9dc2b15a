//! What a pipeline starts from: a text and prompts.

mod prompts;
pub mod spread;
mod text;

pub use prompts::{Prompt, PromptsStage, read_prompts};
pub use text::{TextStage, read_text};
