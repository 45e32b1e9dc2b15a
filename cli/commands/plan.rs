//! `flow plan`, `flow run --dry-run`: what would be executed, why, and what that will take.

use std::collections::BTreeSet;
use std::path::PathBuf;

use flow_engine::Registry;
use flow_engine::events::{PlannedExecution, RunEvent};
use flow_engine::plan::StageId;
use flow_engine::preview::Decision;
use flow_engine::run::options::REASKED;

use crate::args::PipelineArgs;
use crate::commands::teacher;
use crate::context::Context;
use crate::display::json;
use crate::failure::Failure;
use crate::forecast::{self, Forecast};
use crate::print::print;

pub fn plan(
    registry: &Registry,
    args: &PipelineArgs,
    targets: &[String],
    force: &[String],
    overwrite: &[PathBuf],
    reask: bool,
    as_json: bool,
) -> Result<u8, Failure> {
    json::guard(as_json, || {
        let context = Context::load(registry, args)?;
        let selected = context.plan.select(targets)?;
        context.check_places(&selected, overwrite)?;
        let again = if reask { teacher::askers(&context.plan) } else { BTreeSet::new() };
        let forced = context.stages(force)?.union(&again).copied().collect();
        let (mut execute, mut reuse) = (Vec::new(), Vec::new());
        for (id, decision) in context.preview(&selected, &forced)? {
            match decision {
                Decision::Execute { .. } if again.contains(&id) => execute.push((id, vec![REASKED.into()])),
                Decision::Execute { causes, .. } => execute.push((id, causes)),
                Decision::Reuse { .. } => reuse.push(context.plan.stage(id).name.clone()),
            }
        }
        let forecast = context.forecast(forecast::estimates(&context.plan, execute.iter().map(|(id, _)| *id)));
        let planned = |(id, causes): (StageId, Vec<String>)| PlannedExecution {
            stage: context.plan.stage(id).name.clone(),
            causes,
            estimate: forecast.stage(id),
        };
        let execute: Vec<_> = execute.into_iter().map(planned).collect();
        if as_json {
            json::line(&RunEvent::Planned { execute, reuse });
            return Ok(0);
        }
        show(&execute, reuse.len(), &forecast);
        for id in &selected {
            let stage = context.plan.stage(*id);
            stage.notes.iter().for_each(|note| print(&format!("note: {}: {note}", stage.name)));
        }
        forecast.notes().iter().for_each(|note| print(&format!("note: {note}")));
        Ok(0)
    })
}

/// Stages with their causes, and what they are expected to take.
fn show(execute: &[PlannedExecution], reused: usize, forecast: &Forecast) {
    if execute.is_empty() {
        print(&format!("nothing to execute: all {reused} stages are up to date"));
    } else {
        print(&format!("would execute {} of {} stages:", execute.len(), execute.len() + reused));
    }
    let width = execute.iter().map(|e| e.stage.len()).max().unwrap_or(0);
    for planned in execute {
        for (i, cause) in planned.causes.iter().enumerate() {
            let stage = if i == 0 { planned.stage.as_str() } else { "" };
            print(&format!("  {stage:width$}  {cause}"));
        }
    }
    for (stage, takes) in forecast.lines() {
        print(&format!("  {stage:width$}  {takes}"));
    }
    if let Some(total) = forecast.total() {
        print(&total);
    }
}
