//! `report.html`: one self-contained page and the summary of a pipeline.

use flow_engine::plugin::{InputPort, OutputPort, Stage, StageError, TaskContext};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::report::page::{Parts, page, summary};
use crate::task;

/// Parameters of `report.html`.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ReportParams {
    /// Title of the page; by default `Distillation report`.
    pub title: Option<String>,
}

/// `report.html`.
pub struct ReportStage;

impl Stage for ReportStage {
    type Params = ReportParams;
    const KIND: &'static str = "report.html";
    const REVISION: u32 = 3;
    const SUMMARY: &'static str = "Gathers what a pipeline measured into one self-contained page.";

    fn inputs(&self) -> Vec<InputPort> {
        vec![InputPort::list(
            "parts",
            &["Baseline", "TraceStats", "TrainLog", "EvalReport", "TextReport", "Verdict", "DryRun"],
            "What to show, in any order; a section without its part is left out.",
        )]
    }
    fn outputs(&self) -> Vec<OutputPort> {
        vec![
            OutputPort::measured("report", "Html", "The page."),
            OutputPort::measured("summary", "Summary", "Exit criteria and headline figures (JSON)."),
        ]
    }
    fn run(&self, p: ReportParams, ctx: &TaskContext) -> Result<(), StageError> {
        let parts = Parts::collect(ctx)?;
        let title = p.title.as_deref().unwrap_or("Distillation report");
        let page = page(title, &parts, ctx)?;
        let out = ctx.output("report")?;
        std::fs::write(out, page).map_err(|e| StageError::io("cannot write", out, &e))?;
        task::write_json(ctx.output("summary")?, &summary(&parts, ctx))
    }
}
