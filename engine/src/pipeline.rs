//! A pipeline file as typed declarations, before kinds are known.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::{Map, Value};

use crate::document::{Document, parse_value};
use crate::path;
use crate::problem::{Problem, Problems, suggest};
use crate::vars::substitute;

const TOP_KEYS: [&str; 6] = ["flow", "name", "vars", "stages", "targets", "publish"];
const LATER_TOP_KEYS: [&str; 2] = ["include", "plugins"];
const STAGE_KEYS: [&str; 8] = ["use", "in", "with", "after", "resources", "retries", "timeout", "labels"];
const LATER_STAGE_KEYS: [&str; 2] = ["matrix", "requires"];

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
    /// Stage name.
    pub stage: String,
    /// Port, if it is given.
    pub port: Option<String>,
    /// Where it stands in the document.
    pub at: Vec<String>,
}

impl PortRef {
    /// Splits `stage.port`.
    pub fn parse(text: &str, at: Vec<String>) -> Self {
        match text.split_once('.') {
            Some((stage, port)) => Self { stage: stage.into(), port: Some(port.into()), at },
            None => Self { stage: text.into(), port: None, at },
        }
    }
}

/// One stage as it is written.
#[derive(Clone, Debug)]
pub struct StageDecl {
    /// Its name.
    pub name: String,
    /// `use:`.
    pub kind: String,
    /// `in:`: port, artifacts, whether they were written as a list.
    pub inputs: Vec<(String, Vec<PortRef>, bool)>,
    /// `with:`, variables replaced.
    pub with: Value,
    /// `after:`.
    pub after: Vec<PortRef>,
    /// `resources:`, memory in bytes.
    pub resources: BTreeMap<String, u64>,
    /// `retries:`.
    pub retries: u32,
    /// `timeout:`.
    pub timeout: Option<Duration>,
}

/// A whole file.
#[derive(Clone, Debug)]
pub struct Pipeline {
    /// The text and its places.
    pub document: Document,
    /// `name:`, else the file's stem.
    pub name: String,
    /// Absolute path of the file.
    pub file: PathBuf,
    /// Its folder: relative paths of parameters start here.
    pub dir: PathBuf,
    /// Project root: `.flow/` and published paths start here.
    pub root: PathBuf,
    /// Stages in the order of the file.
    pub stages: Vec<StageDecl>,
    /// `targets:`.
    pub targets: Vec<PortRef>,
    /// `publish:`: path and artifact.
    pub publish: Vec<(String, PortRef)>,
}

/// The nearest ancestor of `dir` that holds `.flow/` or `.git/`, else `dir`.
pub fn project_root(dir: &Path) -> PathBuf {
    dir.ancestors().find(|a| a.join(".flow").is_dir() || a.join(".git").exists()).unwrap_or(dir).to_owned()
}

impl Pipeline {
    /// Reads and parses a file.
    pub fn load(file: &Path, overrides: &Overrides) -> Result<Self, Problems> {
        let shown = file.display().to_string();
        let bytes = std::fs::read(file).map_err(|e| {
            Problem::new(format!("cannot read the pipeline {shown}: {e}"))
                .help("give the path of a pipeline file, such as pipelines/poc.yaml")
        })?;
        let text = String::from_utf8(bytes).map_err(|e| {
            let row = e.as_bytes()[..e.utf8_error().valid_up_to()].iter().filter(|b| **b == b'\n').count() + 1;
            Problem::new(format!("{shown} is not UTF-8 (line {row})")).help("save the file as UTF-8")
        })?;
        let file = file.canonicalize().map_err(|e| Problem::new(format!("cannot resolve {shown}: {e}")))?;
        Self::parse(&shown, &text, &file, overrides)
    }

    /// Parses text that stands (or would stand) in `file`.
    pub fn parse(shown: &str, text: &str, file: &Path, overrides: &Overrides) -> Result<Self, Problems> {
        let mut document = Document::parse(shown, text)?;
        let dir = file.parent().unwrap_or(Path::new(".")).to_owned();
        let root = project_root(&dir);
        let name = file.file_stem().map_or_else(|| "pipeline".into(), |s| s.to_string_lossy().into_owned());
        apply(&mut document, overrides)?;
        let mut reader = Reader { document: &document, problems: Vec::new() };
        let parsed = reader.file(name);
        let problems = reader.problems;
        if !problems.is_empty() {
            return Err(Problems { list: problems });
        }
        let (name, stages, targets, publish) = parsed;
        Ok(Self { name, file: file.to_owned(), dir, root, stages, targets, publish, document })
    }
}

fn apply(document: &mut Document, overrides: &Overrides) -> Result<(), Problem> {
    for (name, text) in &overrides.vars {
        let origin = format!("--var {name}={text}");
        let known: Vec<_> = document.root["vars"].as_object().map(|m| m.keys().cloned().collect()).unwrap_or_default();
        if !known.contains(name) {
            let help = suggest(name, known.iter().map(String::as_str));
            return Err(Problem::new(format!("`{origin}`: the pipeline has no variable `{name}`")).help(help));
        }
        document.set(&path!["vars", name], parse_value(text)?, &origin)?;
    }
    for (target, text) in &overrides.sets {
        let origin = format!("--set {target}={text}");
        let parts: Vec<_> = target.split('.').map(str::to_owned).collect();
        let stages: Vec<_> = document.root["stages"].as_object().map(|m| m.keys().cloned().collect()).unwrap_or_default();
        match parts.as_slice() {
            [first, stage, field, ..] if first == "stages" && STAGE_KEYS.contains(&field.as_str()) => {
                if !stages.contains(stage) {
                    let help = suggest(stage, stages.iter().map(String::as_str));
                    return Err(Problem::new(format!("`{origin}`: the pipeline has no stage `{stage}`")).help(help));
                }
            }
            _ => {
                return Err(
                    Problem::new(format!("`{origin}` names nothing that can be set")).help("write --set stages.STAGE.with.PARAMETER=VALUE")
                );
            }
        }
        document.set(&parts, parse_value(text)?, &origin)?;
    }
    Ok(())
}

type Parsed = (String, Vec<StageDecl>, Vec<PortRef>, Vec<(String, PortRef)>);

/// Reads the document and keeps going after a problem, so that all are told at once.
struct Reader<'a> {
    document: &'a Document,
    problems: Vec<Problem>,
}

impl Reader<'_> {
    fn wrong(&mut self, at: &[String], message: impl Into<String>) {
        let problem = self.document.at_value(at, message);
        self.problems.push(problem);
    }

    fn unknown_keys(&mut self, map: &Map<String, Value>, at: &[String], known: &[&str], later: &[&str], what: &str) {
        for key in map.keys().filter(|k| !known.contains(&k.as_str())) {
            let mut path = at.to_vec();
            path.push(key.clone());
            let problem = if later.contains(&key.as_str()) {
                self.document.at_key(&path, format!("`{key}:` is not supported by this version of flow"))
            } else {
                self.document.at_key(&path, format!("unknown key `{key}` {what}")).help(suggest(key, known.iter().copied()))
            };
            self.problems.push(problem);
        }
    }

    fn map(&mut self, value: &Value, at: &[String], what: &str) -> Map<String, Value> {
        match value {
            Value::Object(map) => map.clone(),
            Value::Null => Map::new(),
            _ => {
                self.wrong(at, format!("{what} must be a mapping"));
                Map::new()
            }
        }
    }

    fn resolved(&mut self, vars: &Map<String, Value>, at: &[String], value: &Value) -> Value {
        match substitute(self.document, vars, &mut at.to_vec(), value) {
            Ok(value) => value,
            Err(problem) => {
                self.problems.push(problem);
                Value::Null
            }
        }
    }

    fn file(&mut self, default_name: String) -> Parsed {
        let Value::Object(top) = &self.document.root else {
            self.wrong(&[], "a pipeline is a mapping with `flow: 1` and `stages:`");
            return Default::default();
        };
        self.unknown_keys(top, &[], &TOP_KEYS, &LATER_TOP_KEYS, "in a pipeline");
        match top.get("flow") {
            Some(Value::Number(n)) if n.as_u64() == Some(1) => {}
            Some(other) => self.wrong(&path!["flow"], format!("this version of flow reads format 1, not {other}")),
            None => {
                let problem = self.document.at_value(&[], "the file does not say `flow: 1`").help("put `flow: 1` on its first line");
                self.problems.push(problem);
            }
        }
        let name = match top.get("name") {
            Some(Value::String(name)) => name.clone(),
            None => default_name,
            Some(_) => {
                self.wrong(&path!["name"], "`name` must be a text");
                default_name
            }
        };
        let vars = self.map(top.get("vars").unwrap_or(&Value::Null), &path!["vars"], "`vars`");
        if top.get("stages").is_none_or(Value::is_null) {
            self.wrong(&path!["stages"], "a pipeline needs `stages:` with at least one stage");
        }
        let declared = self.map(top.get("stages").unwrap_or(&Value::Null), &path!["stages"], "`stages`");
        let mut stages = Vec::new();
        for (stage, value) in &declared {
            let before = self.problems.len();
            let decl = self.stage(stage, value, &vars);
            if self.problems.len() == before
                && let Some(decl) = decl
            {
                stages.push(decl);
            }
        }
        let targets = self.resolved(&vars, &path!["targets"], top.get("targets").unwrap_or(&Value::Null));
        let targets = self.references(&targets, &path!["targets"]).0;
        let publish = self.map(top.get("publish").unwrap_or(&Value::Null), &path!["publish"], "`publish`");
        let mut published = Vec::new();
        for (to, value) in &publish {
            let at = path!["publish", to];
            let inside = Path::new(to).components().all(|c| matches!(c, std::path::Component::Normal(_) | std::path::Component::CurDir));
            if !inside || to.is_empty() {
                let problem = self.document.at_key(&at, format!("`{to}` is not a path inside the project"));
                self.problems.push(problem);
            }
            match self.resolved(&vars, &at, value) {
                Value::String(text) => published.push((to.clone(), PortRef::parse(&text, at))),
                _ => self.wrong(&at, "expected `stage` or `stage.port`"),
            }
        }
        (name, stages, targets, published)
    }

    fn stage(&mut self, name: &str, value: &Value, vars: &Map<String, Value>) -> Option<StageDecl> {
        let at = path!["stages", name];
        if name.is_empty() || !name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_' || c == '-') {
            let problem = self.document.at_key(&at, format!("`{name}` cannot be a stage's name")).help("use letters, digits, `_` and `-`");
            self.problems.push(problem);
        }
        let Value::Object(map) = value else {
            self.wrong(&at, format!("stage `{name}` must be a mapping with `use:`"));
            return None;
        };
        self.unknown_keys(map, &at, &STAGE_KEYS, &LATER_STAGE_KEYS, &format!("in stage `{name}`"));
        let Value::Object(map) = self.resolved(vars, &at, value) else { return None };
        let sub = |key: &str| path!["stages", name, key];
        let kind = match map.get("use") {
            Some(Value::String(kind)) => kind.clone(),
            Some(_) => {
                self.wrong(&sub("use"), "`use` names a kind, such as `data.text`");
                return None;
            }
            None => {
                let problem = self
                    .document
                    .at_key(&at, format!("stage `{name}` does not say what it uses"))
                    .help("add `use: KIND`; `flow kinds` lists them");
                self.problems.push(problem);
                return None;
            }
        };
        let mut inputs = Vec::new();
        for (port, value) in self.map(map.get("in").unwrap_or(&Value::Null), &sub("in"), "`in`") {
            let (references, list) = self.references(&value, &path!["stages", name, "in", port]);
            inputs.push((port, references, list));
        }
        let with = Value::Object(self.map(map.get("with").unwrap_or(&Value::Null), &sub("with"), "`with`"));
        let after = self.references(map.get("after").unwrap_or(&Value::Null), &sub("after")).0;
        let mut resources = BTreeMap::new();
        for (pool, value) in self.map(map.get("resources").unwrap_or(&Value::Null), &sub("resources"), "`resources`") {
            match amount(&value) {
                Some(n) => {
                    resources.insert(pool, n);
                }
                None => {
                    self.wrong(&path!["stages", name, "resources", pool], format!("`{pool}` needs a whole number or a size such as 4GiB"))
                }
            }
        }
        let retries = match map.get("retries") {
            None => 0,
            Some(value) => value.as_u64().and_then(|n| u32::try_from(n).ok()).unwrap_or_else(|| {
                self.wrong(&sub("retries"), "`retries` is a whole number, 0 or more");
                0
            }),
        };
        let timeout = map.get("timeout").and_then(|value| {
            let parsed = duration(value);
            if parsed.is_none() {
                self.wrong(&sub("timeout"), "`timeout` is a number of seconds, or such as 90s, 10m, 2h");
            }
            parsed
        });
        Some(StageDecl { name: name.into(), kind, inputs, with, after, resources, retries, timeout })
    }

    /// `a.b`, or a list of such; says whether it was a list.
    fn references(&mut self, value: &Value, at: &[String]) -> (Vec<PortRef>, bool) {
        match value {
            Value::Null => (Vec::new(), false),
            Value::String(text) => (vec![PortRef::parse(text, at.to_vec())], false),
            Value::Array(items) => {
                let mut out = Vec::new();
                for (i, item) in items.iter().enumerate() {
                    let mut at = at.to_vec();
                    at.push(i.to_string());
                    match item {
                        Value::String(text) => out.push(PortRef::parse(text, at)),
                        _ => self.wrong(&at, "expected `stage` or `stage.port`"),
                    }
                }
                (out, true)
            }
            _ => {
                self.wrong(at, "expected `stage` or `stage.port`");
                (Vec::new(), false)
            }
        }
    }
}

/// A count, or bytes with a unit.
fn amount(value: &Value) -> Option<u64> {
    match value {
        Value::Number(n) => n.as_u64(),
        Value::String(text) => {
            let at = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
            let number: f64 = text[..at].parse().ok()?;
            let unit: u64 = match text[at..].trim() {
                "" => 1,
                "kB" | "KB" | "k" => 1000,
                "MB" | "M" => 1_000_000,
                "GB" | "G" => 1_000_000_000,
                "KiB" => 1 << 10,
                "MiB" => 1 << 20,
                "GiB" => 1 << 30,
                "TiB" => 1 << 40,
                _ => return None,
            };
            Some((number * unit as f64) as u64)
        }
        _ => None,
    }
}

fn duration(value: &Value) -> Option<Duration> {
    let seconds = match value {
        Value::Number(n) => n.as_f64()?,
        Value::String(text) => {
            let at = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
            let number: f64 = text[..at].parse().ok()?;
            number
                * match text[at..].trim() {
                    "" | "s" => 1.0,
                    "m" => 60.0,
                    "h" => 3600.0,
                    "d" => 86_400.0,
                    _ => return None,
                }
        }
        _ => return None,
    };
    (seconds > 0.0).then(|| Duration::try_from_secs_f64(seconds).ok()).flatten()
}
