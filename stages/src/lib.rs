//! The built-in kinds of `flow`.
pub mod bench;
pub mod data;
pub mod distil;
pub mod eval;
mod fingerprints;
pub mod kinds;
pub mod report;
pub mod task;
pub mod teacher;
pub mod traces;

/// Every built-in kind; a new one is one more line.
pub fn registry() -> flow_engine::Registry {
    flow_engine::Registry::new()
        .with(data::TextStage)
        .with(data::PromptsStage)
        .with(kinds::tokenizer_bpe::BpeStage)
        .with(distil::project::ProjectStage)
        .with(distil::import::ImportStage)
        .with(teacher::baseline::BaselineStage)
        .with(teacher::collect::CollectStage)
        .with(kinds::teacher_train::TeacherStage)
        .with(teacher::file::FileStage)
        .with(teacher::http::HttpTeacherStage)
        .with(kinds::train_bitnet::StudentStage)
        .with(eval::student::EvalStage)
        .with(eval::text::TextEvalStage)
        .with(eval::dryrun::DryRunStage)
        .with(kinds::export_gguf::ExportStage)
        .with(report::GateStage)
        .with(report::ReportStage)
}

/// Whether a pipeline left a choice open: such a parameter is not written into keys, which thus outlive its introduction.
fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

/// `FLOW_GOLDEN_DIR`, or the repository's own golden files.
#[cfg(test)]
fn golden_dir() -> std::path::PathBuf {
    let ours = || std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden");
    std::env::var_os("FLOW_GOLDEN_DIR").map_or_else(ours, Into::into)
}
