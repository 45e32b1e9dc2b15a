//! `flow get PIPELINE STAGE[.PORT] --to PATH`.

use flow_engine::Registry;
use flow_engine::preview::Decision;
use flow_engine::problem::Problem;

use crate::args::GetArgs;
use crate::commands::print;
use crate::context::Context;
use crate::failure::Failure;

pub fn get(registry: &Registry, args: &GetArgs) -> Result<u8, Failure> {
    let context = Context::load(registry, &args.pipeline)?;
    let (id, port) = context.plan.output(&args.artifact)?;
    let cache = context.cache()?;
    let name = &context.plan.stage(id).name;
    let artifact = match context.decision(id)? {
        Decision::Reuse { entry, .. } => entry.outputs.get(&port).copied(),
        Decision::Execute { .. } => None,
    };
    let Some(artifact) = artifact else {
        let problem = Problem::new(format!("`{name}` is not made yet, or is out of date"));
        return Err(problem.help(format!("flow run {} {name}", args.pipeline.pipeline.display())).into());
    };
    cache.export(&artifact, &args.to)?;
    print(&format!("{name}.{port} → {} ({} bytes, {})", args.to.display(), artifact.size, artifact.digest.short()));
    Ok(0)
}
