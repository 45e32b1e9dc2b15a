//! `data.text`: a UTF-8 text, split into training, validation and held-out parts at document boundaries.

use flow_engine::plugin::{InputPort, OutputPort, ParamError, SourceFile, Stage, StageError, TaskContext};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::data::text::{read_text, split_at};

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
