//! `flow status PIPELINE`.

use std::collections::{BTreeSet, HashMap};

use flow_engine::Registry;
use flow_engine::preview::Decision;
use flow_engine::publish;
use serde_json::json;

use crate::args::StatusArgs;
use crate::context::{Context, say_assumed};
use crate::display::amounts::{ago, seconds};
use crate::failure::Failure;
use crate::print::print;

pub fn status(registry: &Registry, args: &StatusArgs) -> Result<u8, Failure> {
    say_assumed(&args.pipeline)?;
    let context = Context::load(registry, &args.pipeline)?;
    let decisions = context.preview(context.plan.order(), &BTreeSet::new())?;
    let width = decisions.iter().map(|(id, _)| context.plan.stage(*id).name.len()).max().unwrap_or(0);
    let mut rows = Vec::new();
    for (id, decision) in &decisions {
        let stage = context.plan.stage(*id);
        match decision {
            Decision::Reuse { key, entry } => {
                let how = &entry.provenance;
                rows.push(json!({ "stage": stage.name, "up_to_date": true, "key": key, "finished": how.finished, "seconds": how.seconds, "device": how.device }));
                if !args.json {
                    print(&format!(
                        "{:width$}  up to date  {} ({} on {})",
                        stage.name,
                        ago(how.finished),
                        seconds(how.seconds),
                        how.device
                    ));
                }
            }
            Decision::Execute { causes, .. } => {
                rows.push(json!({ "stage": stage.name, "up_to_date": false, "causes": causes }));
                if !args.json {
                    print(&format!("{:width$}  stale       {}", stage.name, causes.join("; ")));
                }
            }
        }
    }
    let cache = context.cache()?;
    let by_stage: HashMap<_, _> = decisions.into_iter().collect();
    let decide = |id| Ok(by_stage.get(&id).cloned().unwrap_or(Decision::Execute { key: None, parts: None, causes: Vec::new() }));
    let strays = publish::strays(&context.plan, &cache, &|_| false, &decide)?;
    if args.json {
        print(&json!({ "stages": rows, "of_another_run": strays, "vars": context.plan.pipeline.overrides.vars, "sets": context.plan.pipeline.overrides.sets }).to_string());
    }
    for stray in strays.iter().filter(|_| !args.json) {
        print(&format!("of another run: {} ({}, run {}): {}", stray.path, stray.from, stray.run, stray.why));
    }
    Ok(0)
}
