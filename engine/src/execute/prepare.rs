//! A task's directory before it runs: its description, its inputs in place, nothing of a dead attempt but its state.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use flow_cache::{Artifact, Cache, CacheError, KeyLock, Materialised};

use crate::command::end_marked;
use crate::execute::env::Env;
use crate::execute::execution::Execution;
use crate::execute::failure::ExecuteError;
use crate::plugin::{InputArtifact, Task};

/// The description of the task in `dir`.
pub(super) fn draft(job: &Execution, env: &Env, dir: &Path) -> Task {
    let list = |port: &str| job.stage.kind.inputs().iter().any(|i| i.name == port && i.list);
    let mut seen: BTreeMap<&str, usize> = BTreeMap::new();
    let inputs = job
        .stage
        .inputs
        .iter()
        .zip(&job.inputs)
        .zip(&job.operational)
        .map(|((wire, (artifact, from)), operational)| {
            let n = seen.entry(&wire.port).or_default();
            let name = if list(&wire.port) { format!("{}.{n}", wire.port) } else { wire.port.clone() };
            *n += 1;
            let path = env.cache.place_of(artifact, dir.join("in").join(name));
            InputArtifact {
                port: wire.port.clone(),
                path,
                ty: wire.ty.clone(),
                digest: artifact.digest.hex(),
                from: from.clone(),
                operational: operational.clone(),
            }
        })
        .collect();
    Task {
        flow: 1,
        stage: job.stage.name.clone(),
        kind: job.stage.kind.name().into(),
        key: job.key.to_string(),
        params: job.stage.params.clone(),
        inputs,
        outputs: job.stage.kind.outputs().iter().map(|o| (o.name.to_string(), dir.join("out").join(&*o.name))).collect(),
        dir: job.stage.dir.to_path_buf(),
        state: dir.join("state"),
        answers: env.cache.layout().answers(),
        withheld: job.withheld.clone(),
        device: env.options.device.clone(),
        threads: env.options.threads,
        provenance: job.provenance.clone(),
        run: if job.stage.is_measured() { env.run.clone() } else { String::new() },
    }
}

/// Clears what a dead attempt left, except its state, and puts the inputs in place.
pub(super) fn prepare(
    cache: &Cache,
    dir: &Path,
    task: Task,
    placed: &[(Artifact, PathBuf)],
    heavy: bool,
) -> Result<(Task, Materialised), ExecuteError> {
    let make = |path: &Path| std::fs::create_dir_all(path).map_err(CacheError::io("create directory", path));
    if dir.exists() {
        // A child whose parent was killed may live for a moment; it holds this lock.
        drop(KeyLock::wait(&dir.join("lock"))?);
        end_marked(dir);
        for left in ["in", "out", "work", "events.jsonl", "result.json", "stderr.log", "output.log"] {
            cache.remove(&dir.join(left))?;
        }
    }
    make(&dir.join("out"))?;
    for (i, (artifact, _)) in placed.iter().enumerate() {
        if let Err(e) = cache.fetch(artifact) {
            return Err(match e {
                source @ CacheError::NotFetched { .. } => ExecuteError::LostInput { input: i, source },
                other => other.into(),
            });
        }
    }
    let inputs = cache.materialise(placed)?;
    if heavy {
        make(&task.state)?;
        let file = dir.join("task.json");
        let text = serde_json::to_vec_pretty(&task).map_err(ExecuteError::Description)?;
        std::fs::write(&file, text).map_err(CacheError::io("write", &file))?;
    }
    Ok((task, inputs))
}
