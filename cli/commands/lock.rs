//! `flow lock`, and what `run --locked` reads: `flow.lock` in the project root.

use std::collections::BTreeMap;
use std::path::PathBuf;

use flow_engine::Registry;
use flow_engine::plugin::Purity;
use flow_engine::preview::Decision;
use flow_engine::problem::Problem;
use flow_engine::run::options::LockedStage;
use serde::{Deserialize, Serialize};

use crate::args::LockArgs;
use crate::commands::get;
use crate::context::{Context, say_assumed};
use crate::failure::Failure;
use crate::print::print;

/// The whole file: pipeline (relative to the project root) → stage → key and digests of its pure outputs.
#[derive(Default, Serialize, Deserialize)]
struct LockFile {
    flow: u32,
    pipelines: BTreeMap<String, BTreeMap<String, LockedStage>>,
}

fn place(context: &Context) -> (PathBuf, String) {
    let pipeline = &context.plan.pipeline;
    let name = pipeline.file.strip_prefix(&pipeline.root).unwrap_or(&pipeline.file);
    (pipeline.root.join("flow.lock"), name.to_string_lossy().into_owned())
}

fn load(path: &std::path::Path) -> Result<Option<LockFile>, Failure> {
    let text = match std::fs::read(path) {
        Ok(text) => text,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(Problem::new(format!("read {}: {e}", path.display())).into()),
    };
    let file: LockFile = serde_json::from_slice(&text).map_err(|e| {
        Problem::new(format!("{} is not a lock file: {e}", path.display()))
            .help("restore it from version control, or delete it and run `flow lock`")
    })?;
    Ok(Some(file))
}

/// What the lock file says of this pipeline's stages.
pub fn read(context: &Context) -> Result<BTreeMap<String, LockedStage>, Failure> {
    let (path, name) = place(context);
    let missing = || Problem::new(format!("{} holds no lock of {name}", path.display())).help(format!("flow lock {name}"));
    Ok(load(&path)?.and_then(|mut file| file.pipelines.remove(&name)).ok_or_else(missing)?)
}

pub fn lock(registry: &Registry, args: &LockArgs) -> Result<u8, Failure> {
    say_assumed(&args.pipeline)?;
    let context = Context::load(registry, &args.pipeline)?;
    let selected = context.plan.select(&args.targets)?;
    let mut locked = BTreeMap::new();
    for (id, decision) in context.preview(&selected, &Default::default())? {
        let stage = context.plan.stage(id);
        let Decision::Reuse { key, entry } = decision else {
            let problem = Problem::new(format!("`{}` is not made yet, or is out of date", stage.name));
            return Err(problem.help(format!("flow run {} {}", args.pipeline.pipeline.display(), stage.name)).into());
        };
        let pure = stage.kind.outputs().iter().filter(|o| o.purity == Purity::Pure);
        let outputs = pure.filter_map(|o| Some((o.name.to_string(), entry.outputs.get(&*o.name)?.digest))).collect();
        locked.insert(stage.name.clone(), LockedStage { key, outputs });
    }
    let (path, name) = place(&context);
    let mut file = load(&path)?.unwrap_or_default();
    file.flow = 1;
    let count = locked.len();
    let all = file.pipelines.entry(name).or_default();
    if args.targets.is_empty() {
        all.clear();
    }
    all.extend(locked);
    let text = serde_json::to_string_pretty(&file).map_err(|e| Failure::Broken(format!("flow.lock: {e}")))? + "\n";
    let temporary = path.with_extension("lock.new");
    std::fs::write(&temporary, text)
        .and_then(|()| std::fs::rename(&temporary, &path))
        .map_err(|e| Failure::Broken(format!("write {}: {e}", path.display())))?;
    print(&format!("locked {count} stages in {}", path.display()));
    if let Some(to) = &args.to {
        let [stage] = args.targets.as_slice() else {
            return Err(Problem::new("--to copies the output of one stage: name that stage").into());
        };
        let (id, port) = context.plan.output(stage)?;
        if let Decision::Reuse { entry, .. } = context.decision(id)?
            && let Some(artifact) = entry.outputs.get(&port)
        {
            get::put(&context, &*context.cache()?, (artifact, &format!("{stage}.{port}")), to, &args.overwrite)?;
            print(&format!("{stage}.{port} → {}", to.display()));
        }
    }
    Ok(0)
}
