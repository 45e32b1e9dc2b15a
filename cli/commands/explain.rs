//! `flow explain PIPELINE STAGE`.

use flow_engine::Registry;
use flow_engine::preview::Decision;
use serde_json::json;

use crate::args::ExplainArgs;
use crate::commands::print;
use crate::context::Context;
use crate::display::{ago, seconds};
use crate::failure::Failure;

pub fn explain(registry: &Registry, args: &ExplainArgs) -> Result<u8, Failure> {
    let context = Context::load(registry, &args.pipeline)?;
    let id = context.plan.find(&args.stage)?;
    let decision = context.decision(id)?;
    let stage = context.plan.stage(id);
    if args.json {
        let value = match &decision {
            Decision::Reuse { key, entry } => json!({ "stage": args.stage, "execute": false, "key": key, "causes": [], "entry": entry }),
            Decision::Execute { key, causes } => json!({ "stage": args.stage, "execute": true, "key": key, "causes": causes }),
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
        Decision::Execute { causes, .. } => {
            print(&format!("{} ({}) would execute:", args.stage, stage.kind.name()));
            for cause in causes {
                print(&format!("  {cause}"));
            }
        }
    }
    Ok(0)
}
