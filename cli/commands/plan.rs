//! `flow plan`, `flow run --dry-run`: what would be executed, and why.

use std::collections::BTreeSet;
use std::path::PathBuf;

use flow_engine::Registry;
use flow_engine::events::{PlannedExecution, RunEvent};
use flow_engine::preview::Decision;
use flow_engine::run::options::REASKED;

use crate::args::PipelineArgs;
use crate::commands::teacher;
use crate::context::Context;
use crate::display::json;
use crate::failure::Failure;
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
        let decisions = context.preview(&selected, &forced)?;
        let name = |id| context.plan.stage(id).name.clone();
        let (mut execute, mut reuse) = (Vec::new(), Vec::new());
        for (id, decision) in decisions {
            match decision {
                Decision::Execute { .. } if again.contains(&id) => {
                    execute.push(PlannedExecution { stage: name(id), causes: vec![REASKED.into()] });
                }
                Decision::Execute { causes, .. } => execute.push(PlannedExecution { stage: name(id), causes }),
                Decision::Reuse { .. } => reuse.push(name(id)),
            }
        }
        if as_json {
            json::line(&RunEvent::Planned { execute, reuse });
            return Ok(0);
        }
        if execute.is_empty() {
            print(&format!("nothing to execute: all {} stages are up to date", reuse.len()));
        } else {
            print(&format!("would execute {} of {} stages:", execute.len(), execute.len() + reuse.len()));
        }
        let width = execute.iter().map(|e| e.stage.len()).max().unwrap_or(0);
        for planned in &execute {
            for (i, cause) in planned.causes.iter().enumerate() {
                let stage = if i == 0 { planned.stage.as_str() } else { "" };
                print(&format!("  {stage:width$}  {cause}"));
            }
        }
        for id in &selected {
            for note in &context.plan.stage(*id).notes {
                print(&format!("note: {}: {note}", name(*id)));
            }
        }
        Ok(0)
    })
}
