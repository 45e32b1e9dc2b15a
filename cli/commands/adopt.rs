//! `flow adopt PIPELINE STAGE PATH`: outputs that were made elsewhere become a stage's result.

use std::collections::BTreeMap;

use flow_cache::{ActionEntry, ActionProvenance, Commit, Entered, files_copy};
use flow_engine::Registry;
use flow_engine::clock::unix_now;
use flow_engine::key::KeyParts;
use flow_engine::preview::Decision;
use flow_engine::problem::Problem;

use crate::args::AdoptArgs;
use crate::context::Context;
use crate::failure::Failure;
use crate::print::print;

pub fn adopt(registry: &Registry, args: &AdoptArgs) -> Result<u8, Failure> {
    let context = Context::load(registry, &args.pipeline)?;
    let id = context.plan.find(&args.stage)?;
    let stage = context.plan.stage(id);
    let cache = context.cache()?;
    let mut inputs = Vec::new();
    for wire in &stage.inputs {
        let from = &context.plan.stage(wire.from).name;
        let Decision::Reuse { entry, .. } = context.decision(wire.from)? else {
            let problem =
                Problem::new(format!("`{from}`, which `{}` reads, is not made yet, so that its action key is unknown", stage.name));
            return Err(problem.help(format!("flow run {} {from}", args.pipeline.pipeline.display())).into());
        };
        let artifact = entry.outputs.get(&wire.output).copied();
        inputs.push(artifact.ok_or_else(|| Failure::Broken(format!("`{from}` has no artifact on `{}`", wire.output)))?);
    }
    let parts = KeyParts::of(stage, &inputs, context.machine().as_ref(), &cache)?;
    let key = parts.key();
    let Some(_lock) = cache.try_lock(&key)? else {
        return Err(Failure::Broken(format!("another process makes `{}` at this moment", stage.name)));
    };
    let copies = tempfile::tempdir_in(cache.layout().tmp()).map_err(|e| Failure::Broken(format!("create a directory: {e}")))?;
    let mut entered = Entered::default();
    let mut outputs = BTreeMap::new();
    for output in stage.kind.outputs() {
        let from = if stage.kind.outputs().len() == 1 { args.path.clone() } else { args.path.join(&*output.name) };
        if !from.exists() {
            let problem = Problem::new(format!("no output `{}`: {} does not exist", output.name, from.display()));
            return Err(problem.help("a stage with several outputs is adopted from a directory with one entry per port").into());
        }
        let copy = copies.path().join(&*output.name);
        copy_all(&from, &copy)?;
        outputs.insert(output.name.to_string(), cache.enter(&copy, &mut entered)?);
    }
    let finished = unix_now();
    let warning = format!("adopted from {}: flow did not make it", args.path.display());
    let provenance =
        ActionProvenance { stage: stage.name.clone(), finished, device: "adopted".into(), warnings: vec![warning], ..Default::default() };
    let entry = ActionEntry { format: flow_cache::action::FORMAT, key, kind: stage.kind.name().into(), outputs, provenance };
    let parts = serde_json::to_value(&parts).map_err(|e| Failure::Broken(format!("action entry: {e}")))?;
    let artifacts: Vec<_> = entry.outputs.iter().map(|(port, a)| format!("{port} {}", a.digest.short())).collect();
    cache.commit(&[Commit { entry, parts, entered }])?;
    cache.set_latest(&context.plan.pipeline.file.to_string_lossy(), [(stage.name.as_str(), key)])?;
    print(&format!("{} is now {} ({})", stage.name, args.path.display(), artifacts.join(", ")));
    Ok(0)
}

fn copy_all(from: &std::path::Path, to: &std::path::Path) -> Result<(), Failure> {
    let failed = |e: std::io::Error| Failure::Broken(format!("copy {}: {e}", from.display()));
    if !from.is_dir() {
        return Ok(files_copy(from, to)?);
    }
    std::fs::create_dir(to).map_err(failed)?;
    for item in std::fs::read_dir(from).map_err(failed)? {
        let item = item.map_err(failed)?;
        copy_all(&item.path(), &to.join(item.file_name()))?;
    }
    Ok(())
}
