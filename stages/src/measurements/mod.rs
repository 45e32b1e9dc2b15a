//! What stages measured, as one writes it and others read it: an artifact is made from these types and taken apart by them, so
//! that a field cannot be written under one name and looked for under another. A reader leaves out what a file does not say.

mod baseline;
mod eval_report;
mod others;
mod train_log;

use std::path::Path;

use flow_engine::plugin::{InputArtifact, StageError};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::task;

pub use baseline::{Answer, Baseline, Usage};
pub use eval_report::{
    BitsPerByte, Compressor, EqualContext, EvalConfig, EvalReport, EvalResult, Fidelities, ModelMeta, Pair, Perplexity, QeiMetrics, Side,
    Sides, TokenizerOf,
};
pub use others::{ComparedWith, DryRun, DryRunAt, DryRunTraining, TextReport, Verdict};
pub use train_log::{TeacherInLoop, TrainLog, ValidationLog};

/// Reads a JSON artifact, naming what does not fit.
pub fn read<T: DeserializeOwned>(path: &Path, ty: &str) -> Result<T, StageError> {
    let bytes = std::fs::read(path).map_err(|e| StageError::io("cannot read", path, &e))?;
    serde_json::from_slice(&bytes).map_err(|e| {
        StageError::new(format!("{}: not a {ty}: {e}", path.display())).help("run the stage that makes it again, or wire another one")
    })
}

/// What an evaluation of a model says, alone or against its teacher.
pub enum Report {
    /// `EvalReport`.
    Eval(Box<EvalReport>),
    /// `TextReport`.
    Text(Box<TextReport>),
}

impl Report {
    /// The one on an input that takes both.
    pub fn read(input: &InputArtifact) -> Result<Self, StageError> {
        let (path, ty) = (input.path.as_path(), input.ty.as_str());
        Ok(if ty == "TextReport" { Self::Text(read(path, ty)?) } else { Self::Eval(read(path, ty)?) })
    }
}

/// Writes one. Its float32 figures stand there as the float64 that they are.
pub fn write<T: Serialize>(path: &Path, measured: &T) -> Result<(), StageError> {
    task::write_json(path, &serde_json::json!(measured))
}

/// A count as a figure.
pub(crate) fn figure(count: Option<u64>) -> Option<f64> {
    count.map(|n| n as f64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_words_of_earlier_versions_are_read() {
        let report: EvalReport = serde_json::from_value(json!({
            "timestamp": 5, "qei_metrics": {"student_memory_bytes": 3, "teacher_memory_bytes": 4, "qei": 0.5},
            "eval_config": {"bits": 4, "window": 128, "stride": 128},
        }))
        .expect("reads");
        let q = &report.qei_metrics;
        assert_eq!((q.student_memory_planned_bytes, q.teacher_memory(), q.qei), (Some(3), Some(4), Some(0.5)));
        for less in [json!({}), json!({"template": "{prompt}", "results": [{"id": 1, "prompt": "a"}]})] {
            assert!(serde_json::from_value::<Baseline>(less.clone()).is_err(), "{less} is no baseline: it says nothing to compare with");
        }
        let baseline: Baseline =
            serde_json::from_value(json!({"memory_bytes": 7, "decode_measured": "so", "template": "{prompt}", "results": [{"id": 1, "kind": "prose", "prompt": "a", "text": "b"}]}))
                .expect("reads");
        assert_eq!((baseline.memory_planned_bytes, baseline.speed_measured.as_deref(), baseline.max_tokens), (Some(7), Some("so"), 128));
    }

    #[test]
    fn what_is_written_is_read_and_numbers_without_a_word_are_left_out() {
        let log: TrainLog =
            serde_json::from_value(json!({"steps": 2, "budget_tokens": 10, "tau": 2.0, "flip": {"step": 1, "seen_tokens": 9},
            "curve": [{"step": 1, "seen_tokens": 5, "loss": null, "kl": 0.0, "ce": 1.5, "format": 0.0, "grad_norm": null,
                       "grad_norm_clipped": null, "lr": 0.1, "bits": 8}]}))
            .expect("reads");
        assert!(log.curve[0].loss.is_nan() && log.largest_clipped_norm().is_none());
        assert_eq!((log.flip_share(), log.tau), (Some(0.9), Some(2.0)));
        let again: TrainLog = serde_json::from_value(json!(log)).expect("reads what it wrote");
        assert_eq!(json!(again), json!(log));
        let of_teacher = json!(TrainLog { steps: Some(3), ..TrainLog::default() });
        assert!(of_teacher.get("tau").is_none() && of_teacher.get("flip").is_none() && of_teacher["steps"] == 3);
    }
}
