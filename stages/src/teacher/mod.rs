//! Teachers: what a teacher answers, its locked baseline, and the collection of its distributions.

pub mod collection;
pub mod continuations;
mod directory;
mod files;
mod gather;
pub mod hosted;
pub mod http;
pub mod import;
pub mod journal;
pub mod json;
pub mod local;
pub mod method;
mod parts;
pub mod scoring;
pub mod served;
pub mod template;

pub(crate) use files::WINDOW;

use flow_engine::plugin::ParamError;

/// Share of a hosted teacher's answers that may be refused, unless a pipeline says otherwise.
pub(crate) const MAX_REFUSED: f64 = 0.05;

/// Refuses a parameter that is no share.
pub(crate) fn check_share(path: &str, share: f64) -> Result<(), ParamError> {
    if (0.0..=1.0).contains(&share) {
        return Ok(());
    }
    Err(ParamError { path: path.into(), message: format!("{share} is not a share between 0 and 1"), help: None })
}

/// The template of the PoC.
pub const POC_TEMPLATE: &str = "<|user|>\n{prompt}\n\n<|assistant|>\n";

/// The prompt as the teacher reads it.
pub fn render(template: &str, prompt: &str) -> String {
    template.replace("{prompt}", prompt)
}
