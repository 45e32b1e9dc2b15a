//! A pipeline file and what it includes, as typed declarations, before kinds are known.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use crate::document::{Document, parse_value, typed_text};
use crate::node::{Fields, Node};
use crate::path;
use crate::problem::{Problem, Problems, suggest};
use crate::reader::{self, STAGE_KEYS};
use crate::text;

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

/// One file of a pipeline.
pub(crate) struct Part {
    pub document: Document,
    pub file: PathBuf,
    pub text: Arc<str>,
}

impl Part {
    pub fn dir(&self) -> &Path {
        self.file.parent().unwrap_or(Path::new("."))
    }
    pub fn map(&self, key: &str) -> Option<&Fields> {
        self.document.root.get(key).and_then(Node::fields)
    }
}

impl Pipeline {
    /// Reads and parses a file and what it includes.
    pub fn load(file: &Path, overrides: &Overrides) -> Result<Self, Problems> {
        let shown = file.display().to_string();
        let text = read(file, &shown).map_err(|p| p.help("give the path of a pipeline file, such as pipelines/poc.yaml"))?;
        let file = file.canonicalize().map_err(|e| Problem::new(format!("cannot resolve {shown}: {e}")))?;
        if file.to_str().is_none() {
            // Records, tasks and keys hold paths as text: two that differ must not look alike there.
            let problem = Problem::new(format!("the path {} is not UTF-8", file.display()));
            return Err(problem.help("rename the folder or the file").into());
        }
        Self::parse(&shown, &text, &file, overrides)
    }

    /// Parses text that stands (or would stand) in `file`.
    pub fn parse(shown: &str, text: &str, file: &Path, overrides: &Overrides) -> Result<Self, Problems> {
        let mut parts = vec![Part { document: Document::parse(shown, text)?, file: file.to_owned(), text: text.into() }];
        let mut open = vec![file.to_owned()];
        include(0, &mut parts, &mut open)?;
        apply(&mut parts, overrides)?;
        Ok(Self { overrides: overrides.clone(), ..reader::read(parts)? })
    }
}

fn read(file: &Path, shown: &str) -> Result<String, Problem> {
    let bytes = std::fs::read(file).map_err(|e| Problem::new(format!("cannot read the pipeline {shown}: {e}")))?;
    text::utf8(bytes).map_err(|e| Problem::new(format!("{shown} {e}")).help(e.help()))
}

/// Reads what part `of` includes, depth first; `open` are the files being read, to find one that includes itself.
fn include(of: usize, parts: &mut Vec<Part>, open: &mut Vec<PathBuf>) -> Result<(), Problem> {
    let names: Vec<(Vec<String>, Node)> = match parts[of].document.root.get("include") {
        None => return Ok(()),
        Some(nothing) if nothing.is_null() => return Ok(()),
        Some(Node::List(items)) => items.iter().enumerate().map(|(i, v)| (path!["include", i], v.clone())).collect(),
        Some(one) => vec![(path!["include"], one.clone())],
    };
    for (at, name) in names {
        let document = &parts[of].document;
        let Some(name) = name.text() else { return Err(document.at_value(&at, "`include` names files")) };
        let file = parts[of].dir().join(name);
        let real = file.canonicalize().map_err(|e| {
            document
                .at_value(&at, format!("cannot include {}: {e}", file.display()))
                .help("relative paths start at the folder of the file that includes")
        })?;
        if open.contains(&real) {
            return Err(document.at_value(&at, format!("`{name}` includes itself in the end")).help("remove one of the includes"));
        }
        if parts.iter().any(|p| p.file == real) {
            continue;
        }
        let shown = Path::new(document.name()).parent().unwrap_or(Path::new("")).join(name).display().to_string();
        let text = read(&real, &shown)?;
        parts.push(Part { document: Document::parse(&shown, &text)?, file: real.clone(), text: text.into() });
        open.push(real);
        include(parts.len() - 1, parts, open)?;
        open.pop();
    }
    Ok(())
}

fn apply(parts: &mut [Part], overrides: &Overrides) -> Result<(), Problem> {
    for (name, text) in &overrides.vars {
        let origin = format!("--var {name}={text}");
        let declared = parts.iter().filter_map(|p| p.map("vars")).find_map(|m| m.get(name));
        let Some(declared) = declared else {
            let known = parts.iter().filter_map(|p| p.map("vars")).flat_map(|m| m.keys().map(String::as_str));
            return Err(Problem::new(format!("`{origin}`: the pipeline has no variable `{name}`")).help(suggest(name, known)));
        };
        // A variable that is a text stays one whatever is typed: `--var message=[x]` is no list.
        let scalar = matches!(declared, Node::Scalar(_)) && !declared.is_null();
        let value = if scalar { typed_text(text) } else { parse_value(text)? };
        parts[0].document.set(&path!["vars", name], value, &origin)?;
    }
    for (target, text) in &overrides.sets {
        let origin = format!("--set {target}={text}");
        let parts_of: Vec<_> = target.split('.').map(str::to_owned).collect();
        let stages: Vec<_> = parts.iter().filter_map(|p| p.map("stages")).flat_map(|m| m.keys().cloned()).collect();
        let [first, stage, field, ..] = parts_of.as_slice() else { return Err(nothing_to_set(&origin)) };
        if first != "stages" || !STAGE_KEYS.contains(&field.as_str()) {
            return Err(nothing_to_set(&origin));
        }
        let Some(part) = parts.iter_mut().find(|p| p.map("stages").is_some_and(|m| m.contains_key(stage))) else {
            let help = suggest(stage, stages.iter().map(String::as_str));
            return Err(Problem::new(format!("`{origin}`: the pipeline has no stage `{stage}`")).help(help));
        };
        part.document.set(&parts_of, parse_value(text)?, &origin)?;
    }
    Ok(())
}

fn nothing_to_set(origin: &str) -> Problem {
    Problem::new(format!("`{origin}` names nothing that can be set")).help("write --set stages.STAGE.with.PARAMETER=VALUE")
}
