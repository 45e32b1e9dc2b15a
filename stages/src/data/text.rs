//! `data.text`: a UTF-8 text, split into training and held-out parts at document boundaries.

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
}

fn default_holdout() -> f64 {
    0.05
}

/// `data.text`.
pub struct TextStage;

impl Stage for TextStage {
    type Params = TextParams;
    const KIND: &'static str = "data.text";
    const REVISION: u32 = 2;
    const SUMMARY: &'static str = "Reads a text and holds a part of it out for evaluation.";

    fn inputs(&self) -> Vec<InputPort> {
        Vec::new()
    }
    fn outputs(&self) -> Vec<OutputPort> {
        vec![
            OutputPort::pure("train", "Text", "The text to train on."),
            OutputPort::pure("holdout", "Text", "The text that no training sees."),
        ]
    }
    fn check(&self, p: &TextParams) -> Result<Vec<String>, ParamError> {
        if p.holdout > 0.0 && p.holdout <= 0.5 {
            return Ok(Vec::new());
        }
        Err(ParamError {
            path: "holdout".into(),
            message: format!("{} is not a share above 0 and up to 0.5", p.holdout),
            help: Some("0.05 holds out five percent of the text".into()),
        })
    }
    fn run(&self, p: TextParams, ctx: &TaskContext) -> Result<(), StageError> {
        let text = read_text(&p.path.0)?;
        let cut = split_at(&text, p.holdout).ok_or_else(|| {
            StageError::new(format!("{}: a single line cannot be split into training and held-out text", p.path.0.display()))
                .help("give a text of several lines or documents (a document starts with a line `# title`)")
        })?;
        let held = (text.len() - cut) as f64 / text.len() as f64;
        if (held - p.holdout).abs() > 0.25 * p.holdout {
            ctx.warn(format!(
                "{:.1} % of the text are held out where {:.1} % were asked for: it has no document, paragraph or line that begins nearer; \
                 break long lines, or give another `holdout`",
                100.0 * held,
                100.0 * p.holdout
            ));
        }
        ctx.metric("train_bytes", cut as f64);
        ctx.metric("holdout_bytes", (text.len() - cut) as f64);
        for (port, part) in [("train", &text[..cut]), ("holdout", &text[cut..])] {
            let out = ctx.output(port)?;
            std::fs::write(out, part).map_err(|e| StageError::io("cannot write", out, &e))?;
        }
        Ok(())
    }
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

/// Byte offset at which the held-out part begins.
fn split_at(text: &str, holdout: f64) -> Option<usize> {
    let wanted = (text.len() as f64 * (1.0 - holdout)).round();
    let share = text.len() as f64 * holdout;
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
        let cut = split_at(text, 0.05).expect("many documents");
        assert_eq!(text.len() - cut, 121_322);
        assert!(text[cut..].starts_with("# Donald J. Trump, 2019"));
    }

    #[test]
    fn a_text_without_documents_is_cut_at_a_paragraph_or_a_line() {
        let paragraphs = "one two three\nfour\n\n".repeat(50);
        let cut = split_at(&paragraphs, 0.1).expect("paragraphs");
        assert!(paragraphs[..cut].ends_with("\n\n") && cut == 900, "{cut}");
        assert_eq!(split_at("a single line", 0.1), None);
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
