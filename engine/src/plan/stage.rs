//! A stage as it is planned: its kind, canonical parameters, wires, and what outside of the file its key depends on.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use flow_cache::{Cache, CacheError};
use serde_json::{Map, Value, json};

use crate::kind::Kind;
use crate::sources;

/// Index of a stage in its [`Plan`](crate::plan::Plan).
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct StageId(pub usize);

/// One wired input.
#[derive(Clone, Debug)]
pub struct Wire {
    /// Input port of the consumer.
    pub port: String,
    /// Stage that makes the artifact.
    pub from: StageId,
    /// Its output port.
    pub output: String,
    /// Artifact type.
    pub ty: String,
}

/// A parameter that is keyed by something outside the pipeline file.
#[derive(Clone, Debug)]
pub struct ParamSource {
    /// Path inside `with:`.
    pub at: Vec<String>,
    /// What counts.
    pub of: Origin,
}

/// Where the content of a parameter lies, which the key holds in its place.
#[derive(Clone, Debug)]
pub enum Origin {
    /// The content of a file or directory.
    Path(PathBuf),
    /// The contents of all files that a path or glob means in a folder.
    Glob(Arc<Path>, String),
    /// The value of an environment variable.
    Env(String),
}

impl ParamSource {
    /// What stands for it in the key; `None` where the parameter itself does.
    pub fn content(&self, cache: &Cache) -> Result<Option<Value>, CacheError> {
        Ok(Some(match &self.of {
            Origin::Path(path) => match sources::parts(path) {
                Some(all) => {
                    let mut parts = Map::new();
                    for part in all.iter().filter(|p| p.is_file()) {
                        let name = part.file_name().unwrap_or_default().to_string_lossy().into_owned();
                        parts.insert(name, json!(cache.digest_source_file(part)?.0));
                    }
                    json!({ "parts": parts })
                }
                None => {
                    let artifact = cache.digest_source(path)?;
                    json!({ if artifact.tree { "dir" } else { "file" }: artifact.digest })
                }
            },
            Origin::Glob(dir, pattern) => {
                let found = sources::expand(dir, pattern).map_err(CacheError::io("read", &dir.join(pattern)))?;
                let mut files = Map::new();
                for (name, path) in found {
                    let (digest, executable) = cache.digest_source_file(&path)?;
                    files.insert(name, json!(if executable { format!("{digest} x") } else { digest.to_string() }));
                }
                json!({ "files": files })
            }
            Origin::Env(name) => match std::env::var_os(name).map(OsString::into_string) {
                None => json!({ "env": null }),
                Some(Ok(text)) => json!({ "env": text }),
                // JSON holds no other bytes than UTF-8; two such values must not share a key.
                Some(Err(bytes)) => json!({ "env_bytes": hex(bytes.as_bytes()) }),
            },
        }))
    }
    /// How it is called in messages.
    pub fn shown(&self, root: &Path) -> String {
        match &self.of {
            Origin::Path(path) => format!("source file {}", path.strip_prefix(root).unwrap_or(path).display()),
            Origin::Glob(_, pattern) => format!("source files `{pattern}`"),
            Origin::Env(name) => format!("environment variable {name}"),
        }
    }
}

/// One stage, ready to be keyed.
#[derive(Clone)]
pub struct PlannedStage {
    /// Name in the file.
    pub name: String,
    /// Its kind.
    pub kind: Arc<dyn Kind>,
    /// Canonical parameters, source paths absolute.
    pub params: Value,
    /// Parameters that never enter the key.
    pub unkeyed: Vec<Vec<String>>,
    /// Parameters keyed by content.
    pub sources: Vec<ParamSource>,
    /// Environment variables whose secrets the stage, or what reads its outputs, may ask for.
    pub secrets: Vec<String>,
    /// Inputs in the order of the kind's ports.
    pub inputs: Vec<Wire>,
    /// Stages to wait for without reading them.
    pub after: Vec<StageId>,
    /// Gates that must accept: stage and its port of type `Verdict`.
    pub requires: Vec<(StageId, String)>,
    /// Folder of its file.
    pub dir: Arc<Path>,
    /// Tokens to hold while running.
    pub resources: BTreeMap<String, u64>,
    /// How often a failure is tried again.
    pub retries: u32,
    /// How long an attempt may take.
    pub timeout: Option<Duration>,
    /// What the kind wants a person to know before the run.
    pub notes: Vec<String>,
}

impl PlannedStage {
    /// Stages that must be done first.
    pub fn needs(&self) -> BTreeSet<StageId> {
        let waited = self.after.iter().copied().chain(self.requires.iter().map(|(id, _)| *id));
        self.inputs.iter().map(|w| w.from).chain(waited).collect()
    }
    /// Whether an output is measured, so that the machine is part of the key.
    pub fn is_measured(&self) -> bool {
        !self.kind.is_pure()
    }
    /// The parameters that never enter the key, by name; nested ones are left out.
    pub fn operational(&self) -> Value {
        let mut out = Map::new();
        for path in &self.unkeyed {
            if let [name] = path.as_slice()
                && let Some(value) = self.params.get(name)
            {
                out.insert(name.clone(), value.clone());
            }
        }
        Value::Object(out)
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

/// A JSON pointer of a path.
pub(crate) fn json_pointer(path: &[String]) -> String {
    path.iter().map(|p| format!("/{}", p.replace('~', "~0").replace('/', "~1"))).collect()
}
