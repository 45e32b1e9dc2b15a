//! `eval.text`: bits per byte of one model on a text; no teacher is needed.

use flow_engine::plugin::{InputPort, OutputPort, ParamError, Stage, StageError, TaskContext};
use flow_lm::format::load_with_tokenizer;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::data::{Lossy, read_text};
use crate::eval::quality::{Heldout, bits_per_byte, scorer};
use crate::eval::sides::tokenizer_of;
use crate::measurements::{self, TextReport};
use crate::task;
use crate::teacher::continuations::bits_of;
use crate::teacher::http::spec::Spec;

/// Parameters of `eval.text`.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct TextEvalParams {
    /// Activation bits: those at which training ended where null. A full-precision model has none.
    pub bits: Option<u32>,
    /// Where the model's tokenizer does not give the text back: `refuse`, or `accept`, which marks the figure as not comparable.
    #[serde(skip_serializing_if = "crate::is_default")]
    pub lossy: Lossy,
}

/// `eval.text`.
pub struct TextEvalStage;

impl Stage for TextEvalStage {
    type Params = TextEvalParams;
    const KIND: &'static str = "eval.text";
    const REVISION: u32 = 2;
    const SUMMARY: &'static str = "Measures the bits per byte of a model on a text.";
    const HEAVY: bool = true;

    fn inputs(&self) -> Vec<InputPort> {
        vec![
            InputPort::required("model", &["Model", "Teacher"], "What is measured."),
            InputPort::required("text", &["Text"], "Text that it was not trained on."),
        ]
    }
    fn outputs(&self) -> Vec<OutputPort> {
        vec![OutputPort::pure("report", "TextReport", "Bits per byte (JSON).")]
    }
    fn fingerprints(&self, _: &Self::Params, _: &[&str]) -> Vec<(String, String)> {
        crate::fingerprints::inference()
    }
    fn check(&self, p: &TextEvalParams) -> Result<Vec<String>, ParamError> {
        if !matches!(p.bits, None | Some(4 | 8)) {
            return Err(ParamError { path: "bits".into(), message: "is 4, 8 or null".into(), help: None });
        }
        Ok(Vec::new())
    }
    fn run(&self, p: TextEvalParams, ctx: &TaskContext) -> Result<(), StageError> {
        if let Some(spec) = Spec::read(ctx.input("model")?)? {
            return Err(StageError::new(format!("{}: a hosted teacher tells no bits per byte", spec.named()))
                .help("measure a model that runs here: `teacher.train`, `teacher.file` or `train.bitnet`"));
        }
        let (model, tokenizer) = load_with_tokenizer(ctx.input("model")?)?;
        let text = read_text(ctx.input("text")?)?;
        let bits = bits_of(p.bits, &model);
        let mut session = scorer(&task::device(ctx)?, &model, 0)?;
        session.set_bits(bits)?;
        let heldout = Heldout::of((&tokenizer, "the model's"), &text, p.lossy, ctx)?;
        let plain = bits_per_byte(&mut session, &heldout, false, ctx)?;
        let sliding = bits_per_byte(&mut session, &heldout, true, ctx)?;
        ctx.metric("bits_per_byte", plain);
        let report = TextReport {
            bits_per_byte: Some(plain),
            bits_per_byte_sliding: Some(sliding),
            bytes: text.len() as u64,
            activation_bits: model.config.quantises().then(|| bits.count()),
            weights: Some(model.config.weights),
            parameters: Some(model.config.parameters() as u64),
            config: serde_json::json!(model.config),
            tokenizer: tokenizer_of(&tokenizer),
            comparable: heldout.fidelity.is_lossless(),
            text_fidelity: heldout.fidelity,
        };
        measurements::write(ctx.output("report")?, &report)
    }
}
