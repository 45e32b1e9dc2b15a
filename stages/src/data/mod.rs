//! What a pipeline starts from: a text and prompts, and what a budget takes of them.

pub mod faithful;
pub mod prompts;
pub mod spread;
pub mod text;

pub use faithful::Lossy;
pub use prompts::{Prompt, read_prompts};
pub use text::read_text;
