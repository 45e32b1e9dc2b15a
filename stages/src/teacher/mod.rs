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
pub mod local;
pub mod method;
mod parts;
pub mod scoring;
pub mod served;
pub mod template;

use flow_engine::plugin::ParamError;

use crate::data::Prompt;

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

/// Whether the answer to a JSON prompt is valid: the first line of prompt and answer parses as a JSON value.
pub fn json_valid(prompt: &str, answer: &str) -> bool {
    let whole = format!("{prompt}{answer}");
    whole.lines().next().is_some_and(|line| serde_json::from_str::<serde_json::Value>(line.trim()).is_ok())
}

/// Share of valid answers among the JSON prompts; none where there are no such prompts.
pub fn json_validity<'a>(answers: impl Iterator<Item = (&'a Prompt, &'a str)>) -> Option<f64> {
    let (mut n, mut valid) = (0u32, 0u32);
    for (prompt, answer) in answers.filter(|(p, _)| p.kind == "json") {
        n += 1;
        valid += u32::from(json_valid(&prompt.prompt, answer));
    }
    (n > 0).then(|| f64::from(valid) / f64::from(n))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_line_decides() {
        assert!(json_valid("{\"a\":", " 1}\nand so on"));
        assert!(!json_valid("{\"a\":", " 1"));
        assert!(!json_valid("{\"a\":", " 1} and so on"));
    }
}
