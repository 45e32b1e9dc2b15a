//! What a pipeline declares, before kinds are known.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use crate::document::Document;
use crate::node::Node;

/// What the command line changes in the file.
#[derive(Clone, Debug, Default)]
pub struct Overrides {
    /// `--var name=value`.
    pub vars: Vec<(String, String)>,
    /// `--set stages.S.with.P=value`.
    pub sets: Vec<(String, String)>,
}

/// `stage` or `stage.port`, with its place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PortRef {
    /// Stage name, or the name of a stage with `matrix:`.
    pub stage: String,
    /// Port, if it is given.
    pub port: Option<String>,
    /// Where it stands in the document.
    pub at: Vec<String>,
}

impl PortRef {
    /// Splits `stage.port`; a dot inside `stage[tau=1.5]` belongs to the name.
    pub fn parse(text: &str, at: Vec<String>) -> Self {
        let name_end = text.rfind(']').map_or(0, |i| i + 1);
        match text[name_end..].split_once('.') {
            Some((rest, port)) => Self { stage: format!("{}{rest}", &text[..name_end]), port: Some(port.into()), at },
            None => Self { stage: text.into(), port: None, at },
        }
    }
}

/// One stage as it is written; one of several, where it has a `matrix:`.
#[derive(Clone, Debug)]
pub struct StageDecl {
    /// Its name.
    pub name: String,
    /// The file that it stands in.
    pub document: Arc<Document>,
    /// Where it stands in that file.
    pub at: Vec<String>,
    /// The file's folder: relative paths of parameters start there.
    pub dir: Arc<Path>,
    /// `use:`.
    pub kind: String,
    /// `in:`: port, artifacts, whether they were written as a list.
    pub inputs: Vec<(String, Vec<PortRef>, bool)>,
    /// `with:`, variables replaced; a mapping.
    pub with: Node,
    /// `after:`.
    pub after: Vec<PortRef>,
    /// `requires:`: gates that must accept.
    pub requires: Vec<PortRef>,
    /// `resources:`, memory in bytes.
    pub resources: BTreeMap<String, u64>,
    /// `retries:`.
    pub retries: u32,
    /// `timeout:`.
    pub timeout: Option<Duration>,
}

impl StageDecl {
    /// The path of one of its fields in its document.
    pub fn place(&self, field: &[&str]) -> Vec<String> {
        self.at.iter().cloned().chain(field.iter().map(ToString::to_string)).collect()
    }
}

/// An external plugin: how it is started, and the files that it is made of.
#[derive(Clone, Debug)]
pub struct PluginDecl {
    /// Name under `plugins:`.
    pub name: String,
    /// The file that it stands in, and where.
    pub document: Arc<Document>,
    /// Its place in that file.
    pub at: Vec<String>,
    /// Folder of that file.
    pub dir: Arc<Path>,
    /// Program and arguments.
    pub command: Vec<String>,
    /// Paths and globs whose contents are in the key of its stages.
    pub files: Vec<String>,
}

/// `remote:`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RemoteDecl {
    /// Where.
    pub url: String,
    /// Whether results are only read from it.
    pub read_only: bool,
}

/// A whole pipeline.
#[derive(Clone, Debug)]
pub struct Pipeline {
    /// The text of the main file and its places.
    pub document: Arc<Document>,
    /// Every file that was read: absolute path and content.
    pub files: Vec<(PathBuf, Arc<str>)>,
    /// `name:`, else the file's stem.
    pub name: String,
    /// Absolute path of the main file.
    pub file: PathBuf,
    /// Project root: `.flow/` and published paths start here.
    pub root: PathBuf,
    /// Stages in the order of the files.
    pub stages: Vec<StageDecl>,
    /// Stages with `matrix:`: name and the names of what it gave; stages and cells whose `when` is false gave nothing.
    pub groups: BTreeMap<String, Vec<String>>,
    /// Stages of which nothing is left: their name and their file.
    pub left_out: BTreeMap<String, String>,
    /// `plugins:`.
    pub plugins: Vec<PluginDecl>,
    /// `pools:`: tokens of named resources, memory in bytes.
    pub pools: BTreeMap<String, u64>,
    /// `remote:`.
    pub remote: Option<RemoteDecl>,
    /// `targets:`.
    pub targets: Vec<PortRef>,
    /// `publish:`: path and artifact.
    pub publish: Vec<(String, PortRef)>,
    /// What the command line changed.
    pub overrides: Overrides,
}

/// The nearest ancestor of `dir` that holds `.flow/` or `.git/`, else `dir`.
pub fn project_root(dir: &Path) -> PathBuf {
    dir.ancestors().find(|a| a.join(".flow").is_dir() || a.join(".git").exists()).unwrap_or(dir).to_owned()
}
