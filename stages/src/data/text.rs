//! `data.text`: a UTF-8 text, split into training, validation and held-out parts at document boundaries.

use std::path::Path;

use flow_engine::plugin::{InputPort, OutputPort, ParamError, SourceFile, Stage, StageError, TaskContext};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Parameters of `data.text`.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct TextParams {
    /// The text file, UTF-8. A line that begins with `# ` starts a document.
    pub path: SourceFile,
    /// Share of the bytes to hold out, taken from the end at the nearest document boundary (paragraph or line where
    /// no document boundary is near). Between 0 and 0.5.
    #[serde(default = "default_holdout")]
    pub holdout: f64,
    /// Share of the bytes to keep for choices (recipes, the best checkpoint), taken before the held-out part in the same way:
    /// held-out text that choices were made on is none. 0 to 0.5; at 0 the output `validation` is empty.
    #[serde(default)]
    pub validation: f64,
}

fn default_holdout() -> f64 {
    0.05
}

/// `data.text`.
pub struct TextStage;

impl Stage for TextStage {
    type Params = TextParams;
    const KIND: &'static str = "data.text";
    const REVISION: u32 = 3;
    const SUMMARY: &'static str = "Reads a text and holds parts of it out for choices and for evaluation.";

    fn inputs(&self) -> Vec<InputPort> {
        Vec::new()
    }
    fn outputs(&self) -> Vec<OutputPort> {
        vec![
            OutputPort::pure("train", "Text", "The text to train on."),
            OutputPort::pure("validation", "Text", "The text to choose by."),
            OutputPort::pure("holdout", "Text", "The text that no training sees."),
        ]
    }
    fn check(&self, p: &TextParams) -> Result<Vec<String>, ParamError> {
        let outside = |path: &str, value: f64, range: &str, help: &str| {
            Err(ParamError { path: path.into(), message: format!("{value} is not a share {range}"), help: Some(help.into()) })
        };
        if !(p.holdout > 0.0 && p.holdout <= 0.5) {
            return outside("holdout", p.holdout, "above 0 and up to 0.5", "0.05 holds out five percent of the text");
        }
        if !(0.0..=0.5).contains(&p.validation) {
            return outside("validation", p.validation, "from 0 to 0.5", "0.05 keeps five percent of the text for choices");
        }
        if p.holdout + p.validation > 0.9 {
            return outside("validation", p.validation, "that leaves a tenth to train on beside `holdout`", "lower one of them");
        }
        Ok(Vec::new())
    }
    fn run(&self, p: TextParams, ctx: &TaskContext) -> Result<(), StageError> {
        let text = read_text(&p.path.0)?;
        let held = cut(&text, text.len(), p.holdout, "held out", &p, ctx)?;
        let kept = match p.validation {
            0.0 => held,
            share => cut(&text[..held], text.len(), share, "kept for validation", &p, ctx)?,
        };
        for (port, part) in [("train", &text[..kept]), ("validation", &text[kept..held]), ("holdout", &text[held..])] {
            ctx.metric(&format!("{port}_bytes"), part.len() as f64);
            let out = ctx.output(port)?;
            std::fs::write(out, part).map_err(|e| StageError::io("cannot write", out, &e))?;
        }
        Ok(())
    }
}

/// Where the last `share` of a text of `whole` bytes begins in what is left of it; `what` says what for.
fn cut(left: &str, whole: usize, share: f64, what: &str, p: &TextParams, ctx: &TaskContext) -> Result<usize, StageError> {
    let at = split_at(left, share * whole as f64).ok_or_else(|| {
        StageError::new(format!("{}: a single line cannot be split into training text and text that is {what}", p.path.0.display()))
            .help("give a text of several lines or documents (a document starts with a line `# title`)")
    })?;
    let got = (left.len() - at) as f64 / whole as f64;
    if (got - share).abs() > 0.25 * share {
        ctx.warn(format!(
            "{:.1} % of the text are {what} where {:.1} % were asked for: it has no document, paragraph or line that begins nearer; \
             break long lines, or ask for another share",
            100.0 * got,
            100.0 * share
        ));
    }
    Ok(at)
}

/// Reads a text, or says at which byte and line it is not one.
pub fn read_text(path: &Path) -> Result<String, StageError> {
    let bytes = std::fs::read(path).map_err(|e| StageError::io("cannot read the text", path, &e))?;
    let text = flow_engine::text::utf8(bytes).map_err(|e| StageError::new(format!("{} {e}", path.display())).help(e.help()))?;
    if text.trim().is_empty() {
        return Err(
            StageError::new(format!("{}: the text is empty ({} bytes)", path.display(), text.len())).help("give a file that holds text")
        );
    }
    Ok(text)
}

/// Byte offset at which a text's last `share` bytes begin, about.
fn split_at(text: &str, share: f64) -> Option<usize> {
    let wanted = (text.len() as f64 - share).round();
    let mut best: Option<usize> = None;
    let documents = line_starts(text).filter(|i| text[*i..].starts_with("# "));
    let paragraphs = line_starts(text).filter(|i| text[..*i].ends_with("\n\n"));
    for level in [&mut documents.into_iter() as &mut dyn Iterator<Item = usize>, &mut paragraphs.into_iter(), &mut line_starts(text)] {
        let near = level.min_by(|a, b| (*a as f64 - wanted).abs().total_cmp(&(*b as f64 - wanted).abs()));
        let Some(near) = near else { continue };
        if (near as f64 - wanted).abs() <= share * 0.25 {
            return Some(near);
        }
        best = Some(near);
    }
    best
}

/// Starts of all lines but the first.
fn line_starts(text: &str) -> impl Iterator<Item = usize> + '_ {
    text.bytes().enumerate().filter(|(i, b)| *b == b'\n' && i + 1 < text.len()).map(|(i, _)| i + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_shipped_text_holds_out_its_last_three_documents() {
        let text = include_str!("../../../pipelines/data/corpus.txt");
        let share = 0.05 * text.len() as f64;
        let cut = split_at(text, share).expect("many documents");
        assert_eq!(text.len() - cut, 121_322);
        assert!(text[cut..].starts_with("# Donald J. Trump, 2019"));
        let before = split_at(&text[..cut], share).expect("many documents");
        assert_eq!(cut - before, 103_602);
        assert!(text[before..].starts_with("# Barack Obama, 2016"));
    }

    #[test]
    fn a_text_without_documents_is_cut_at_a_paragraph_or_a_line() {
        let paragraphs = "one two three\nfour\n\n".repeat(50);
        let cut = split_at(&paragraphs, 100.0).expect("paragraphs");
        assert!(paragraphs[..cut].ends_with("\n\n") && cut == 900, "{cut}");
        assert_eq!(split_at("a single line", 1.0), None);
    }

    #[test]
    fn bytes_that_are_no_text_are_named() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let file = dir.path().join("bad.txt");
        std::fs::write(&file, b"good\nbad \xff here\n").expect("write");
        let error = read_text(&file).expect_err("must refuse").message;
        assert!(error.contains("bad.txt") && error.contains("byte 9") && error.contains("line 2"), "{error}");
        std::fs::write(&file, b" \n").expect("write");
        assert!(read_text(&file).expect_err("must refuse").message.contains("empty"));
    }
}
