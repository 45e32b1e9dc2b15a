//! The built-in kinds of `flow`.
pub mod data;
pub mod gguf;
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
        .with(gguf::ExportStage)
        .with(report::GateStage)
        .with(report::ReportStage)
}
