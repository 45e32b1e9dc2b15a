//! Documents → declarations. Goes on after a problem, so that all are told at once.

use std::collections::{BTreeMap, HashMap};
use std::path::{Component, Path};
use std::sync::Arc;

use serde_json::{Map, Value};

use crate::document::Document;
use crate::path;
use crate::pipeline::{Part, Pipeline, PluginDecl, PortRef, RemoteDecl, StageDecl, project_root};
use crate::problem::{Problem, Problems, nearest, suggest};
use crate::units;
use crate::vars::{self, substitute};

const TOP_KEYS: [&str; 10] = ["flow", "name", "vars", "include", "plugins", "stages", "targets", "publish", "pools", "remote"];
const INCLUDED_KEYS: [&str; 5] = ["flow", "vars", "include", "plugins", "stages"];
pub(crate) const STAGE_KEYS: [&str; 10] = ["use", "in", "with", "matrix", "after", "requires", "resources", "retries", "timeout", "labels"];

/// Reads the parts of a pipeline, the main file first.
pub(crate) fn read(parts: Vec<Part>) -> Result<Pipeline, Problems> {
    let mut vars = Map::new();
    for part in parts.iter().rev() {
        vars.extend(part.map("vars").into_iter().flatten().map(|(k, v)| (k.clone(), v.clone())));
    }
    let main = &parts[0];
    let stem = main.file.file_stem().map_or_else(|| "pipeline".into(), |s| s.to_string_lossy().into_owned());
    let mut out = Pipeline {
        document: Arc::new(main.document.clone()),
        files: parts.iter().map(|p| (p.file.clone(), p.text.clone())).collect(),
        name: stem,
        file: main.file.clone(),
        root: project_root(main.dir()),
        stages: Vec::new(),
        groups: BTreeMap::new(),
        plugins: Vec::new(),
        pools: BTreeMap::new(),
        remote: None,
        targets: Vec::new(),
        publish: Vec::new(),
    };
    let mut problems = Vec::new();
    for (i, part) in parts.into_iter().enumerate() {
        let dir: Arc<Path> = part.dir().into();
        let mut reader = Reader { document: Arc::new(part.document), dir, vars: &vars, problems: Vec::new() };
        reader.file(i == 0, &mut out);
        problems.extend(reader.problems);
    }
    problems.extend(misspelt_pools(&out));
    if problems.is_empty() { Ok(out) } else { Err(Problems { list: problems }) }
}

/// A pool that nobody sized admits one stage at a time; one that is nearly called as another is a slip of the pen.
fn misspelt_pools(pipeline: &Pipeline) -> Vec<Problem> {
    let known = || pipeline.pools.keys().map(String::as_str).chain(["cpu", "gpu", "memory"]);
    let mut problems = Vec::new();
    for stage in &pipeline.stages {
        for pool in stage.resources.keys().filter(|pool| known().all(|k| k != pool.as_str())) {
            if let Some(near) = nearest(pool, known()) {
                let at = [stage.at.as_slice(), &["resources".to_owned(), pool.clone()]].concat();
                let problem = stage.document.at_key(&at, format!("no pool is called `{pool}`"));
                problems.push(problem.help(format!("did you mean `{near}`? A pool of its own is declared under `pools:`")));
            }
        }
    }
    problems
}

struct Reader<'a> {
    document: Arc<Document>,
    dir: Arc<Path>,
    vars: &'a Map<String, Value>,
    problems: Vec<Problem>,
}

impl Reader<'_> {
    fn wrong(&mut self, at: &[String], message: impl Into<String>) {
        let problem = self.document.at_value(at, message);
        self.problems.push(problem);
    }

    fn wrong_key(&mut self, at: &[String], message: impl Into<String>, help: impl Into<String>) {
        let problem = self.document.at_key(at, message).help(help);
        self.problems.push(problem);
    }

    fn unknown_keys(&mut self, map: &Map<String, Value>, at: &[String], known: &[&str], what: &str) {
        for key in map.keys().filter(|k| !known.contains(&k.as_str())) {
            let path = [at, std::slice::from_ref(key)].concat();
            self.wrong_key(&path, format!("unknown key `{key}` {what}"), suggest(key, known.iter().copied()));
        }
    }

    fn map<'v>(&mut self, value: Option<&'v Value>, at: &[String], what: &str) -> impl Iterator<Item = (&'v String, &'v Value)> + use<'v> {
        let map = match value {
            Some(Value::Object(map)) => Some(map),
            None | Some(Value::Null) => None,
            _ => {
                self.wrong(at, format!("{what} must be a mapping"));
                None
            }
        };
        map.into_iter().flatten()
    }

    fn resolved(&mut self, vars: &Map<String, Value>, at: &[String], value: &Value) -> Value {
        match substitute(&self.document, vars, &mut at.to_vec(), value) {
            Ok(value) => value,
            Err(problem) => {
                self.problems.push(problem);
                Value::Null
            }
        }
    }

    fn file(&mut self, main: bool, out: &mut Pipeline) {
        let document = self.document.clone();
        let Value::Object(top) = &document.root else {
            return self.wrong(&[], "a pipeline is a mapping with `flow: 1` and `stages:`");
        };
        if main {
            self.unknown_keys(top, &[], &TOP_KEYS, "in a pipeline");
        } else {
            self.unknown_keys(top, &[], &INCLUDED_KEYS, "in an included file");
        }
        match top.get("flow") {
            Some(Value::Number(n)) if n.as_u64() == Some(1) => {}
            Some(other) => self.wrong(&path!["flow"], format!("this version of flow reads format 1, not {other}")),
            None if !main => {}
            None => {
                let problem = document.at_value(&[], "the file does not say `flow: 1`").help("put `flow: 1` on its first line");
                self.problems.push(problem);
            }
        }
        if top.get("vars").is_some_and(|v| !v.is_object() && !v.is_null()) {
            self.wrong(&path!["vars"], "`vars` must be a mapping");
        }
        if main && top.get("stages").is_none_or(Value::is_null) && out.files.len() == 1 {
            self.wrong(&path!["stages"], "a pipeline needs `stages:` with at least one stage");
        }
        let elsewhere: HashMap<String, String> =
            out.stages.iter().map(|s| (s.at.last().cloned().unwrap_or_default(), s.document.name().to_owned())).collect();
        for (name, value) in self.map(top.get("stages"), &path!["stages"], "`stages`") {
            if let Some(other) = elsewhere.get(name) {
                let message = format!("stage `{name}` stands in {other} too");
                self.wrong_key(&path!["stages", name], message, "remove or rename one of the two");
                continue;
            }
            self.stages(name, value, out);
        }
        for (name, value) in self.map(top.get("plugins"), &path!["plugins"], "`plugins`") {
            if let Some(plugin) = self.plugin(name, value) {
                out.plugins.push(plugin);
            }
        }
        if main {
            self.rest(top, out);
        }
    }

    /// What only the main file says.
    fn rest(&mut self, top: &Map<String, Value>, out: &mut Pipeline) {
        match top.get("name") {
            Some(Value::String(name)) => out.name.clone_from(name),
            None => {}
            Some(_) => self.wrong(&path!["name"], "`name` must be a text"),
        }
        let targets = self.resolved(self.vars, &path!["targets"], top.get("targets").unwrap_or(&Value::Null));
        out.targets = self.references(&targets, &path!["targets"]).0;
        for (to, value) in self.map(top.get("publish"), &path!["publish"], "`publish`") {
            let at = path!["publish", to];
            let inside = Path::new(to).components().all(|c| matches!(c, Component::Normal(_) | Component::CurDir));
            if !inside || to.is_empty() {
                let problem = self.document.at_key(&at, format!("`{to}` is not a path inside the project"));
                self.problems.push(problem);
            }
            match self.resolved(self.vars, &at, value) {
                Value::String(text) => out.publish.push((to.clone(), PortRef::parse(&text, at))),
                _ => self.wrong(&at, "expected `stage` or `stage.port`"),
            }
        }
        out.pools = self.amounts(top.get("pools"), &path!["pools"], "`pools`");
        let remote = self.resolved(self.vars, &path!["remote"], top.get("remote").unwrap_or(&Value::Null));
        out.remote = match &remote {
            Value::Null => None,
            Value::String(url) => Some(RemoteDecl { url: url.clone(), read_only: false }),
            Value::Object(map) => {
                self.unknown_keys(map, &path!["remote"], &["url", "read_only"], "in `remote`");
                match (map.get("url"), map.get("read_only").unwrap_or(&Value::Bool(false))) {
                    (Some(Value::String(url)), Value::Bool(read_only)) => Some(RemoteDecl { url: url.clone(), read_only: *read_only }),
                    _ => {
                        self.wrong(&path!["remote"], "`remote` needs `url`, such as s3://bucket/prefix, and may say `read_only: true`");
                        None
                    }
                }
            }
            _ => {
                self.wrong(&path!["remote"], "`remote` is a mapping with `url`");
                None
            }
        };
    }

    fn plugin(&mut self, name: &str, value: &Value) -> Option<PluginDecl> {
        let at = path!["plugins", name];
        let value = self.resolved(self.vars, &at, value);
        let Value::Object(map) = &value else {
            self.wrong(&at, "a plugin is a mapping with `command` and `files`");
            return None;
        };
        self.unknown_keys(map, &at, &["command", "files"], &format!("in plugin `{name}`"));
        let texts = |value: Option<&Value>| match value {
            None => Some(Vec::new()),
            Some(Value::String(one)) => Some(vec![one.clone()]),
            Some(Value::Array(items)) => items.iter().map(|v| v.as_str().map(str::to_owned)).collect(),
            _ => None,
        };
        match (texts(map.get("command")).filter(|c| !c.is_empty()), texts(map.get("files"))) {
            (Some(command), Some(files)) => {
                Some(PluginDecl { name: name.into(), document: self.document.clone(), at, dir: self.dir.clone(), command, files })
            }
            (None, _) => {
                self.wrong(&at, "a plugin needs `command`: the program and its arguments as a list");
                None
            }
            _ => {
                self.wrong(&path!["plugins", name, "files"], "`files` is a list of paths and globs");
                None
            }
        }
    }

    /// Adds the stage `name`, or all that its matrix gives.
    fn stages(&mut self, name: &str, value: &Value, out: &mut Pipeline) {
        let at = path!["stages", name];
        if name.is_empty() || !name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_' || c == '-') {
            self.wrong_key(&at, format!("`{name}` cannot be a stage's name"), "use letters, digits, `_` and `-`");
        }
        let Value::Object(map) = value else {
            return self.wrong(&at, format!("stage `{name}` must be a mapping with `use:`"));
        };
        self.unknown_keys(map, &at, &STAGE_KEYS, &format!("in stage `{name}`"));
        let before = self.problems.len();
        let Some(matrix) = map.get("matrix") else {
            let decl = self.stage(name, name, map, self.vars);
            if self.problems.len() == before {
                out.stages.extend(decl);
            }
            return;
        };
        let mut group = Vec::new();
        for choice in self.choices(name, matrix, map) {
            let mut vars = self.vars.clone();
            let label: Vec<_> = choice.iter().map(|(axis, value)| format!("{axis}={}", vars::text_of(value))).collect();
            vars.extend(choice);
            let full = format!("{name}[{}]", label.join(","));
            let decl = self.stage(name, &full, map, &vars);
            if self.problems.len() > before {
                return;
            }
            out.stages.extend(decl);
            group.push(full);
        }
        out.groups.insert(name.to_owned(), group);
    }

    /// Every combination of a matrix, the last axis fastest.
    fn choices(&mut self, name: &str, matrix: &Value, stage: &Map<String, Value>) -> Vec<Vec<(String, Value)>> {
        let at = path!["stages", name, "matrix"];
        let matrix = self.resolved(self.vars, &at, matrix);
        let mut all = vec![Vec::new()];
        let rest = Value::Object(stage.iter().filter(|(k, _)| *k != "matrix").map(|(k, v)| (k.clone(), v.clone())).collect()).to_string();
        for (axis, values) in self.map(Some(&matrix), &at, "`matrix`") {
            let place = path!["stages", name, "matrix", axis];
            let scalars = values.as_array().filter(|v| !v.is_empty() && v.iter().all(|x| !x.is_array() && !x.is_object()));
            let Some(values) = scalars else {
                self.wrong(&place, format!("axis `{axis}` needs a list of at least one plain value"));
                all.iter_mut().for_each(|choice| choice.push((axis.clone(), Value::Null)));
                continue;
            };
            if !rest.contains(&format!("${{{axis}}}")) {
                let help = format!("write `${{{axis}}}` where its value belongs, or remove the axis");
                self.wrong_key(&place, format!("stage `{name}` does not use its axis `{axis}`"), help);
            }
            all = all
                .into_iter()
                .flat_map(|head| values.iter().map(move |v| [head.clone(), vec![(axis.clone(), v.clone())]].concat()))
                .collect();
        }
        all
    }

    /// One stage; `key` is its key in the file, `name` its own.
    fn stage(&mut self, key: &str, name: &str, map: &Map<String, Value>, vars: &Map<String, Value>) -> Option<StageDecl> {
        let at = path!["stages", key];
        let sub = |field: &str| path!["stages", key, field];
        let mut fields = Map::new();
        for (field, value) in map.iter().filter(|(f, _)| *f != "matrix") {
            fields.insert(field.clone(), self.resolved(vars, &sub(field), value));
        }
        let kind = match fields.get("use") {
            Some(Value::String(kind)) => kind.clone(),
            Some(_) => {
                self.wrong(&sub("use"), "`use` names a kind, such as `data.text`");
                return None;
            }
            None => {
                let message = format!("stage `{name}` does not say what it uses");
                self.wrong_key(&at, message, "add `use: KIND`; `flow kinds` lists them");
                return None;
            }
        };
        let mut inputs = Vec::new();
        for (port, value) in self.map(fields.get("in"), &sub("in"), "`in`") {
            let (references, list) = self.references(value, &path!["stages", key, "in", port]);
            inputs.push((port.clone(), references, list));
        }
        let with = match fields.get("with") {
            Some(Value::Object(map)) => Value::Object(map.clone()),
            None | Some(Value::Null) => Value::Object(Map::new()),
            _ => {
                self.wrong(&sub("with"), "`with` must be a mapping");
                Value::Object(Map::new())
            }
        };
        let after = self.references(fields.get("after").unwrap_or(&Value::Null), &sub("after")).0;
        let requires = self.references(fields.get("requires").unwrap_or(&Value::Null), &sub("requires")).0;
        let resources = self.amounts(fields.get("resources"), &sub("resources"), "`resources`");
        let retries = match fields.get("retries") {
            None => 0,
            Some(value) => value.as_u64().and_then(|n| u32::try_from(n).ok()).unwrap_or_else(|| {
                self.wrong(&sub("retries"), "`retries` is a whole number, 0 or more");
                0
            }),
        };
        let timeout = fields.get("timeout").and_then(|value| {
            let parsed = units::duration(value);
            if parsed.is_none() {
                self.wrong(&sub("timeout"), "`timeout` is a number of seconds, or such as 90s, 10m, 2h");
            }
            parsed
        });
        let (document, dir, name) = (self.document.clone(), self.dir.clone(), name.to_owned());
        Some(StageDecl { name, document, at, dir, kind, inputs, with, after, requires, resources, retries, timeout })
    }

    fn amounts(&mut self, value: Option<&Value>, at: &[String], what: &str) -> BTreeMap<String, u64> {
        let mut out = BTreeMap::new();
        for (pool, value) in self.map(value, at, what) {
            match units::amount(value) {
                Some(n) => {
                    out.insert(pool.clone(), n);
                }
                None => {
                    let at = [at, std::slice::from_ref(pool)].concat();
                    self.wrong(&at, format!("`{pool}` needs a whole number or a size such as 4GiB"));
                }
            }
        }
        out
    }

    /// `a.b`, or a list of such; says whether it was a list.
    fn references(&mut self, value: &Value, at: &[String]) -> (Vec<PortRef>, bool) {
        match value {
            Value::Null => (Vec::new(), false),
            Value::String(text) => (vec![PortRef::parse(text, at.to_vec())], false),
            Value::Array(items) => {
                let mut out = Vec::new();
                for (i, item) in items.iter().enumerate() {
                    let at = [at, &[i.to_string()]].concat();
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
