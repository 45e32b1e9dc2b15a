//! The model that a command is given: a file, a directory, or what a stage of a pipeline has made.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use flow_cache::{Cache, Materialised};
use flow_engine::Registry;
use flow_engine::problem::Problem;
use flow_lm::Model;
use flow_lm::format::Checkpoint;
use flow_lm::infer::{Session, Takes, Uses};
use flow_shaders::device::Device;

use crate::args::{OverrideArgs, PipelineArgs};
use crate::context::{Context, say_assumed};
use crate::failure::Failure;

/// A model that was read, and the files under it.
pub struct Opened {
    pub model: Model,
    /// What it is read from, where that lies in a cache.
    _lent: Option<Lent>,
}

/// Files out of a cache, which the model's weights are read from as they are touched.
struct Lent {
    cache: Arc<Cache>,
    files: Option<Materialised>,
    _dir: tempfile::TempDir,
}

impl Drop for Lent {
    fn drop(&mut self) {
        // What cannot be taken away lies where temporary files do.
        self.files.take().map(|files| self.cache.release(files));
    }
}

/// Reads `PATH`, or `PIPELINE:STAGE[.PORT]` where no such path exists.
pub fn open(registry: &Registry, model: &str, overrides: &OverrideArgs) -> Result<Opened, Failure> {
    let path = Path::new(model);
    if path.exists() {
        return Ok(Opened { model: read(path)?, _lent: None });
    }
    let Some((pipeline, artifact)) = model.rsplit_once(':').filter(|(p, a)| Path::new(p).is_file() && !a.is_empty()) else {
        let problem = Problem::new(format!("no model at {model}"));
        return Err(problem.help("give a GGUF file, a model's directory, or PIPELINE.yaml:STAGE").into());
    };
    let args = PipelineArgs { pipeline: pipeline.into(), overrides: overrides.clone() };
    let (path, lent) = made(registry, &args, artifact)?;
    Ok(Opened { model: read(&path)?, _lent: lent })
}

/// What a model's linears take: what was asked for, where it can.
pub fn takes(model: &Model, asked: Option<Takes>) -> Result<Takes, Failure> {
    Takes::fitting(asked, &model.checkpoint.config).map_err(|e| Problem::new(format!("--{} {}", e.field, e.why)).into())
}

/// A session of a model whose linears take what was asked for.
pub fn session(device: &Device, model: &Model, uses: Uses, asked: Option<Takes>) -> Result<Session, Failure> {
    let takes = takes(model, asked)?;
    let broken = |e: flow_lm::Error| Failure::Broken(e.to_string());
    let Checkpoint { config, tensors, .. } = &model.checkpoint;
    let mut session = Session::new(device, config.clone(), tensors, uses.taking(takes)).map_err(broken)?;
    session.set_bits(takes.bits()).map_err(broken)?;
    Ok(session)
}

/// How a model is called: by its file, its directory or its stage.
pub fn name(model: &str) -> String {
    let path = Path::new(model);
    let found = if path.exists() { path.canonicalize().ok() } else { None };
    // Of a file without its ending; a directory's name has none, whatever its dots.
    let name = |p: &PathBuf| if p.is_dir() { p.file_name() } else { p.file_stem() }.map(|n| n.to_string_lossy().into_owned());
    let stem = found.as_ref().and_then(name);
    stem.unwrap_or_else(|| model.rsplit(':').next().unwrap_or(model).to_owned())
}

fn read(path: &Path) -> Result<Model, Failure> {
    Model::open(path).map_err(|e| {
        let problem = Problem::new(e.to_string());
        match e.help {
            Some(help) => problem.help(help).into(),
            None => problem.into(),
        }
    })
}

/// The present result of a stage, as files.
fn made(registry: &Registry, args: &PipelineArgs, artifact: &str) -> Result<(PathBuf, Option<Lent>), Failure> {
    say_assumed(args)?;
    let context = Context::load(registry, args)?;
    let (_, found) = context.made(artifact)?;
    let cache = context.cache()?;
    if !found.tree {
        return Ok((cache.object_path(&found)?, None));
    }
    let broken = |e: std::io::Error| Failure::Broken(format!("cannot copy {artifact} out of the cache: {e}"));
    let dir = tempfile::tempdir().map_err(broken)?;
    let path = dir.path().join("model");
    let files = Some(cache.materialise(&[(found, path.clone())])?);
    Ok((path, Some(Lent { cache, files, _dir: dir })))
}
