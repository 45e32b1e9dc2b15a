//! The kinds, one file each: ports, parameters, run. What several share stands beside them: [`shape`] the sizes of a model,
//! `training` what trainings say, [`init`] and `beginning` which model a student begins as.

mod beginning;
pub mod bitnet_dryrun;
pub mod data_prompts;
pub mod data_text;
pub mod eval_gate;
pub mod eval_student;
pub mod eval_text;
pub mod export_gguf;
pub mod export_safetensors;
pub mod init;
pub mod kd_collect;
pub mod kd_import;
pub mod kd_project;
pub mod report_html;
pub mod shape;
pub mod teacher_baseline;
pub mod teacher_file;
pub mod teacher_http;
pub mod teacher_train;
pub mod tokenizer_bpe;
pub mod train_bitnet;
mod training;

use flow_engine::Registry;

/// Every built-in kind; a new one is one file and one more line.
pub fn registry() -> Registry {
    Registry::new()
        .with(data_text::TextStage)
        .with(data_prompts::PromptsStage)
        .with(tokenizer_bpe::BpeStage)
        .with(kd_project::ProjectStage)
        .with(kd_import::ImportStage)
        .with(teacher_baseline::BaselineStage)
        .with(kd_collect::CollectStage)
        .with(teacher_train::TeacherStage)
        .with(teacher_file::FileStage)
        .with(teacher_http::HttpTeacherStage)
        .with(train_bitnet::StudentStage)
        .with(eval_student::EvalStage)
        .with(eval_text::TextEvalStage)
        .with(bitnet_dryrun::DryRunStage)
        .with(export_gguf::ExportStage)
        .with(export_safetensors::SafetensorsStage)
        .with(eval_gate::GateStage)
        .with(report_html::ReportStage)
}
