//! `flow explain PIPELINE STAGE`.

use flow_engine::Registry;
use flow_engine::explain::{Nearest, nearest};
use flow_engine::key::KeyParts;
use flow_engine::plan::StageId;
use flow_engine::preview::Decision;
use serde_json::json;

use crate::args::ExplainArgs;
use crate::context::{Context, say_assumed};
use crate::display::amounts::{ago, seconds};
use crate::failure::Failure;
use crate::print::print;

pub fn explain(registry: &Registry, args: &ExplainArgs) -> Result<u8, Failure> {
    say_assumed(&args.pipeline)?;
    let context = Context::load(registry, &args.pipeline)?;
    let id = context.plan.find(&args.stage)?;
    let decision = context.decision(id)?;
    let stage = context.plan.stage(id);
    if args.json {
        let value = match &decision {
            Decision::Reuse { key, entry } => json!({ "stage": args.stage, "execute": false, "key": key, "causes": [], "entry": entry }),
            Decision::Execute { key, parts, causes } => {
                let nearest = nearest_to(&context, id, parts.as_deref())?;
                let nearest = nearest.map(|n| json!({ "entry": n.entry, "differences": n.differences }));
                json!({ "stage": args.stage, "execute": true, "key": key, "causes": causes, "nearest": nearest })
            }
        };
        print(&value.to_string());
        return Ok(0);
    }
    match decision {
        Decision::Reuse { key, entry } => {
            let how = &entry.provenance;
            print(&format!("{} ({}) is up to date", args.stage, stage.kind.name()));
            print(&format!("  action key  {key}"));
            print(&format!("  made        {} in {} on {}", ago(how.finished), seconds(how.seconds), how.device));
            for (port, artifact) in &entry.outputs {
                print(&format!("  {port:10}  {}  {} bytes", artifact.digest.short(), artifact.size));
            }
        }
        Decision::Execute { parts, causes, .. } => {
            print(&format!("{} ({}) would execute:", args.stage, stage.kind.name()));
            for cause in &causes {
                print(&format!("  {cause}"));
            }
            if let Some(near) = nearest_to(&context, id, parts.as_deref())? {
                show_nearest(&near, &causes);
            }
        }
    }
    Ok(0)
}

fn nearest_to(context: &Context, id: StageId, parts: Option<&KeyParts>) -> Result<Option<Nearest>, Failure> {
    let cache = context.cache()?;
    if let Some(parts) = parts {
        return Ok(nearest(&cache, &context.plan, id, parts)?);
    }
    let parts = KeyParts::of(context.plan.stage(id), &[], context.machine().as_ref(), &cache)?;
    Ok(nearest(&cache, &context.plan, id, &parts)?)
}

/// The execution that came nearest, and what would have to be otherwise for its result to be used.
fn show_nearest(near: &Nearest, causes: &[String]) {
    let how = &near.entry.provenance;
    let key = near.entry.key.0.short();
    print(&format!(
        "nearest earlier execution: {key} of `{}`, {} in {} on {}",
        how.stage,
        ago(how.finished),
        seconds(how.seconds),
        how.device
    ));
    if near.differences == causes {
        print("  with the differences above");
        return;
    }
    for difference in &near.differences {
        print(&format!("  {difference}"));
    }
    if near.differences.is_empty() {
        print("  it differs in nothing that is known yet");
    }
}
