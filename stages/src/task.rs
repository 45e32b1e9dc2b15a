//! What kinds do with their task: its device, a training's follower, files that are written and digested.

use std::path::Path;

use flow_engine::plugin::{StageError, TaskContext};
use flow_lm::train::{Loader, Trained, Training, Watch};
use flow_shaders::device::{Device, open};

/// The device that a task asks for.
pub fn device(ctx: &TaskContext) -> Result<Device, StageError> {
    let device = open(ctx.device(), ctx.threads()).map_err(flow_lm::Error::from)?;
    ctx.computes_on(&device.name());
    Ok(device)
}

/// A task that follows a training.
struct Follower<'a>(&'a TaskContext);

impl Watch for Follower<'_> {
    fn progress(&self, seen: u64, budget: u64) {
        self.0.progress(seen, budget, "tokens");
    }
    fn metric(&self, name: &str, value: f64) {
        self.0.metric(name, value);
    }
    fn log(&self, message: String) {
        self.0.log(message);
    }
    fn warn(&self, message: String) {
        self.0.warn(message);
    }
    fn should_stop(&self) -> bool {
        self.0.should_stop()
    }
    fn state_dir(&self) -> Option<&Path> {
        Some(self.0.state_dir())
    }
}

/// Trains in a task: it is told of the progress, keeps the state, and may stop it.
pub fn train(job: &Training<'_>, loader: &mut Loader<'_, StageError>, device: &Device, ctx: &TaskContext) -> Result<Trained, StageError> {
    flow_lm::train::train(job, loader, device, &Follower(ctx))?.ok_or_else(StageError::interrupted)
}

/// Fails where the task is asked to stop.
pub(crate) fn go_on(ctx: &TaskContext) -> Result<(), StageError> {
    if ctx.should_stop() { Err(StageError::interrupted()) } else { Ok(()) }
}

/// Digest of a directory's files, by name and content: what a baseline is locked to.
pub fn digest(dir: &Path) -> Result<String, StageError> {
    let mut names: Vec<_> = std::fs::read_dir(dir)
        .and_then(|all| all.map(|e| e.map(|e| e.path())).collect::<Result<_, _>>())
        .map_err(|e| StageError::io("cannot read", dir, &e))?;
    names.sort();
    let mut hash = blake3::Hasher::new();
    for path in names {
        let bytes = std::fs::read(&path).map_err(|e| StageError::io("cannot read", &path, &e))?;
        hash.update(path.file_name().unwrap_or_default().as_encoded_bytes());
        hash.update(blake3::hash(&bytes).as_bytes());
    }
    Ok(hash.finalize().to_hex().to_string())
}

/// Writes JSON, indented, with a newline at the end.
pub(crate) fn write_json(path: &Path, value: &impl serde::Serialize) -> Result<(), StageError> {
    let text = serde_json::to_string_pretty(value).map_err(|e| StageError::new(format!("cannot write {}: {e}", path.display())))?;
    std::fs::write(path, text + "\n").map_err(|e| StageError::io("cannot write", path, &e))
}
