//! The built-in kinds of `flow`.
pub mod bench;
pub mod data;
pub mod gguf;
pub mod lm;
pub mod model;
pub mod project;
pub mod report;
pub mod tokenizer;
pub mod traces;

/// Every built-in kind; a new one is one more line.
pub fn registry() -> flow_engine::Registry {
    flow_engine::Registry::new()
        .with(data::TextStage)
        .with(data::PromptsStage)
        .with(tokenizer::BpeStage)
        .with(project::ProjectStage)
        .with(project::import::ImportStage)
        .with(teacher::baseline::BaselineStage)
        .with(teacher::collect::CollectStage)
        .with(train::teacher::TeacherStage)
        .with(teacher::file::FileStage)
        .with(teacher::http::HttpTeacherStage)
        .with(train::student::StudentStage)
        .with(eval::student::EvalStage)
        .with(eval::text::TextEvalStage)
        .with(eval::dryrun::DryRunStage)
        .with(gguf::ExportStage)
        .with(report::GateStage)
        .with(report::ReportStage)
}
pub mod eval;
mod fingerprints;
mod map;
pub mod rng;
pub mod sample;
pub mod teacher;
pub mod train;

/// Writes JSON, indented, with a newline at the end.
pub(crate) fn write_json(path: &std::path::Path, value: &impl serde::Serialize) -> Result<(), flow_engine::plugin::StageError> {
    use flow_engine::plugin::StageError;
    let text = serde_json::to_string_pretty(value).map_err(|e| StageError::new(format!("cannot write {}: {e}", path.display())))?;
    std::fs::write(path, text + "\n").map_err(|e| StageError::io("cannot write", path, &e))
}

/// Whether a pipeline left a choice open: such a parameter is not written into keys, which thus outlive its introduction.
fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}
