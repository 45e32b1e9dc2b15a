//! Documents → declarations. Goes on after a problem, so that all are told at once.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use crate::document::Document;
use crate::node::{Fields, Meaning, Node, Scalar};
use crate::path;
use crate::pipeline::decl::{Overrides, Pipeline, PluginDecl, PortRef, RemoteDecl, StageDecl, project_root};
use crate::problem::{Problem, Problems, nearest, suggest};
use crate::units;
use crate::vars::substitute;

const TOP_KEYS: [&str; 10] = ["flow", "name", "vars", "include", "plugins", "stages", "targets", "publish", "pools", "remote"];
const INCLUDED_KEYS: [&str; 5] = ["flow", "vars", "include", "plugins", "stages"];
pub(crate) const STAGE_KEYS: [&str; 11] =
    ["use", "when", "in", "with", "matrix", "after", "requires", "resources", "retries", "timeout", "labels"];

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

/// Reads the parts of a pipeline, the main file first.
pub(crate) fn read(mut parts: Vec<Part>) -> Result<Pipeline, Problems> {
    let mut vars = Fields::new();
    for part in parts.iter().rev() {
        vars.extend(part.map("vars").into_iter().flatten().map(|(k, v)| (k.clone(), v.clone())));
    }
    // Values are needed until declarations are made of them; what stays of a document says where things stand.
    let roots: Vec<Node> = parts.iter_mut().map(|part| std::mem::replace(&mut part.document.root, Node::null())).collect();
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
        left_out: BTreeMap::new(),
        plugins: Vec::new(),
        pools: BTreeMap::new(),
        remote: None,
        targets: Vec::new(),
        publish: Vec::new(),
        overrides: Overrides::default(),
    };
    let mut problems = Vec::new();
    for (i, (part, root)) in parts.into_iter().zip(roots).enumerate() {
        let dir: Arc<Path> = part.dir().into();
        let document = if i == 0 { out.document.clone() } else { Arc::new(part.document) };
        let mut reader = Reader { document, dir, vars: &vars, problems: Vec::new() };
        reader.file(i == 0, &root, &mut out);
        problems.extend(reader.problems);
    }
    problems.extend(misspelt_pools(&out));
    problems.extend(coinciding_names(&out));
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

/// Two stages of one name: cells of a matrix whose values look alike.
fn coinciding_names(pipeline: &Pipeline) -> Vec<Problem> {
    let mut seen = HashSet::new();
    let twice = pipeline.stages.iter().filter(|stage| !seen.insert(stage.name.as_str()));
    let problem = |stage: &StageDecl| {
        let message = format!("two cells of the matrix are called `{}`", stage.name);
        stage.document.at_key(&stage.place(&["matrix"]), message).help("remove one of the two values, or write it otherwise")
    };
    twice.map(problem).collect()
}

struct Reader<'a> {
    document: Arc<Document>,
    dir: Arc<Path>,
    vars: &'a Fields,
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

    fn unknown_keys(&mut self, map: &Fields, at: &[String], known: &[&str], what: &str) {
        for key in map.keys().filter(|k| !known.contains(&k.as_str())) {
            let path = [at, std::slice::from_ref(key)].concat();
            self.wrong_key(&path, format!("unknown key `{key}` {what}"), suggest(key, known.iter().copied()));
        }
    }

    fn map<'v>(&mut self, value: Option<&'v Node>, at: &[String], what: &str) -> impl Iterator<Item = (&'v String, &'v Node)> + use<'v> {
        let map = match value {
            Some(Node::Map(map)) => Some(map),
            Some(other) if !other.is_null() => {
                self.wrong(at, format!("{what} must be a mapping"));
                None
            }
            _ => None,
        };
        map.into_iter().flatten()
    }

    fn resolved(&mut self, vars: &Fields, at: &[String], value: Option<&Node>) -> Node {
        let Some(value) = value else { return Node::null() };
        match substitute(&self.document, vars, &mut at.to_vec(), value) {
            Ok(value) => value,
            Err(problem) => {
                self.problems.push(problem);
                Node::null()
            }
        }
    }

    fn file(&mut self, main: bool, root: &Node, out: &mut Pipeline) {
        let document = self.document.clone();
        let Node::Map(top) = root else {
            return self.wrong(&[], "a pipeline is a mapping with `flow: 1` and `stages:`");
        };
        if main {
            self.unknown_keys(top, &[], &TOP_KEYS, "in a pipeline");
        } else {
            self.unknown_keys(top, &[], &INCLUDED_KEYS, "in an included file");
        }
        match top.get("flow") {
            Some(Node::Scalar(s)) if s.meaning() == Meaning::Whole(1.into()) => {}
            Some(other) => self.wrong(&path!["flow"], format!("this version of flow reads format 1, not {}", other.shown())),
            None if !main => {}
            None => {
                let problem = document.at_value(&[], "the file does not say `flow: 1`").help("put `flow: 1` on its first line");
                self.problems.push(problem);
            }
        }
        if top.get("vars").is_some_and(|v| v.fields().is_none() && !v.is_null()) {
            self.wrong(&path!["vars"], "`vars` must be a mapping");
        }
        if main && top.get("stages").is_none_or(Node::is_null) && out.files.len() == 1 {
            self.wrong(&path!["stages"], "a pipeline needs `stages:` with at least one stage");
        }
        let read = out.stages.iter().map(|s| (s.at.last().cloned().unwrap_or_default(), s.document.name().to_owned()));
        let elsewhere: HashMap<String, String> = read.chain(out.left_out.clone()).collect();
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
    fn rest(&mut self, top: &Fields, out: &mut Pipeline) {
        match top.get("name").map(Node::text) {
            Some(Some(name)) => name.clone_into(&mut out.name),
            None => {}
            Some(None) => self.wrong(&path!["name"], "`name` must be a text"),
        }
        let targets = self.resolved(self.vars, &path!["targets"], top.get("targets"));
        out.targets = self.references(&targets, &path!["targets"]).0;
        for (to, value) in self.map(top.get("publish"), &path!["publish"], "`publish`") {
            let at = path!["publish", to];
            let inside = Path::new(to).components().all(|c| matches!(c, Component::Normal(_) | Component::CurDir));
            if !inside || to.is_empty() {
                let problem = self.document.at_key(&at, format!("`{to}` is not a path inside the project"));
                self.problems.push(problem);
            }
            match self.resolved(self.vars, &at, Some(value)).text() {
                Some(text) => {
                    let normal: PathBuf = Path::new(to).components().filter(|c| *c != Component::CurDir).collect();
                    let normal = if normal.as_os_str().is_empty() { to.clone() } else { normal.to_string_lossy().into_owned() };
                    out.publish.push((normal, PortRef::parse(text, at)));
                }
                None => self.wrong(&at, "expected `stage` or `stage.port`"),
            }
        }
        for (i, (to, _)) in out.publish.iter().enumerate() {
            let parts = |path: &str| Path::new(path).components().filter(|c| *c != Component::CurDir).collect::<PathBuf>();
            let above = |(other, _): &&(String, PortRef)| parts(to).starts_with(parts(other));
            if let Some((other, _)) = out.publish.iter().enumerate().filter(|(j, _)| *j != i).map(|(_, p)| p).find(above) {
                let message = format!("`{to}` lies at or in `{other}`, which is published too");
                let problem = self.document.at_key(&path!["publish", to], message).help("give each artifact a path of its own");
                self.problems.push(problem);
            }
        }
        out.pools = self.amounts(top.get("pools"), &path!["pools"], "`pools`");
        out.remote = self.remote(top);
    }

    fn remote(&mut self, top: &Fields) -> Option<RemoteDecl> {
        let at = path!["remote"];
        let remote = self.resolved(self.vars, &at, top.get("remote"));
        if let Some(url) = remote.text() {
            return Some(RemoteDecl { url: url.to_owned(), read_only: false });
        }
        let Node::Map(map) = &remote else {
            if !remote.is_null() {
                self.wrong(&at, "`remote` is a mapping with `url`");
            }
            return None;
        };
        self.unknown_keys(map, &at, &["url", "read_only"], "in `remote`");
        let read_only = match map.get("read_only") {
            None => Some(false),
            Some(Node::Scalar(s)) => match s.meaning() {
                Meaning::Bool(b) => Some(b),
                _ => None,
            },
            Some(_) => None,
        };
        match (map.get("url").and_then(Node::text), read_only) {
            (Some(url), Some(read_only)) => Some(RemoteDecl { url: url.to_owned(), read_only }),
            _ => {
                self.wrong(&at, "`remote` needs `url`, such as s3://bucket/prefix, and may say `read_only: true`");
                None
            }
        }
    }

    fn plugin(&mut self, name: &str, value: &Node) -> Option<PluginDecl> {
        let at = path!["plugins", name];
        let value = self.resolved(self.vars, &at, Some(value));
        let Node::Map(map) = &value else {
            self.wrong(&at, "a plugin is a mapping with `command` and `files`");
            return None;
        };
        self.unknown_keys(map, &at, &["command", "files"], &format!("in plugin `{name}`"));
        let texts = |value: Option<&Node>| match value {
            None => Some(Vec::new()),
            Some(Node::List(items)) => items.iter().map(|v| v.text().map(str::to_owned)).collect(),
            Some(one) => one.text().map(|text| vec![text.to_owned()]),
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
    fn stages(&mut self, name: &str, value: &Node, out: &mut Pipeline) {
        let at = path!["stages", name];
        if name.is_empty() || !name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_' || c == '-') {
            self.wrong_key(&at, format!("`{name}` cannot be a stage's name"), "use letters, digits, `_` and `-`");
        }
        let Node::Map(map) = value else {
            return self.wrong(&at, format!("stage `{name}` must be a mapping with `use:`"));
        };
        self.unknown_keys(map, &at, &STAGE_KEYS, &format!("in stage `{name}`"));
        let before = self.problems.len();
        let Some(matrix) = map.get("matrix") else {
            if !self.wanted(name, map, self.vars) {
                // A group of nothing: what reads lists goes on without it.
                out.groups.insert(name.to_owned(), Vec::new());
                out.left_out.insert(name.to_owned(), self.document.name().to_owned());
                return;
            }
            let decl = self.stage(name, name, map, self.vars);
            if self.problems.len() == before {
                out.stages.extend(decl);
            }
            return;
        };
        let mut group = Vec::new();
        for choice in self.choices(name, matrix, map) {
            let mut vars = self.vars.clone();
            let label: Vec<_> = choice.iter().map(|(axis, value)| format!("{axis}={}", value.text)).collect();
            vars.extend(choice.into_iter().map(|(axis, value)| (axis, Node::Scalar(value))));
            let full = format!("{name}[{}]", label.join(","));
            if !self.wanted(name, map, &vars) {
                out.groups.insert(full, Vec::new());
                continue;
            }
            let decl = self.stage(name, &full, map, &vars);
            if self.problems.len() > before {
                return;
            }
            out.stages.extend(decl);
            group.push(full);
        }
        if group.is_empty() {
            out.left_out.insert(name.to_owned(), self.document.name().to_owned());
        }
        out.groups.insert(name.to_owned(), group);
    }

    /// Whether a stage is part of the pipeline: its `when`.
    fn wanted(&mut self, name: &str, map: &Fields, vars: &Fields) -> bool {
        let Some(when) = map.get("when") else { return true };
        let (at, before) = (path!["stages", name, "when"], self.problems.len());
        match self.resolved(vars, &at, Some(when)) {
            // What is wrong with a variable was told.
            _ if self.problems.len() > before => true,
            Node::Scalar(s) if matches!(s.text.as_str(), "true" | "false") => s.text == "true",
            _ => {
                self.wrong(&at, "`when` is true or false");
                true
            }
        }
    }

    /// Every combination of a matrix, the last axis fastest.
    fn choices(&mut self, name: &str, matrix: &Node, stage: &Fields) -> Vec<Vec<(String, Scalar)>> {
        let at = path!["stages", name, "matrix"];
        let matrix = self.resolved(self.vars, &at, Some(matrix));
        let mut all = vec![Vec::new()];
        for (axis, values) in self.map(Some(&matrix), &at, "`matrix`") {
            let place = path!["stages", name, "matrix", axis];
            let Some(values) = scalars(values) else {
                self.wrong(&place, format!("axis `{axis}` needs a list of at least one plain value"));
                all.iter_mut().for_each(|choice| choice.push((axis.clone(), Scalar::text(""))));
                continue;
            };
            let used = format!("${{{axis}}}");
            if !stage.iter().any(|(field, value)| field != "matrix" && value.mentions(&used)) {
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
    fn stage(&mut self, key: &str, name: &str, map: &Fields, vars: &Fields) -> Option<StageDecl> {
        let at = path!["stages", key];
        let sub = |field: &str| path!["stages", key, field];
        let mut fields = Fields::new();
        for (field, value) in map.iter().filter(|(f, _)| !matches!(f.as_str(), "matrix" | "when")) {
            fields.insert(field.clone(), self.resolved(vars, &sub(field), Some(value)));
        }
        let kind = match fields.get("use").map(Node::text) {
            Some(Some(kind)) => kind.to_owned(),
            Some(None) => {
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
        let with = Node::Map(self.map(fields.get("with"), &sub("with"), "`with`").map(|(k, v)| (k.clone(), v.clone())).collect());
        let after = fields.get("after").map(|value| self.references(value, &sub("after")).0).unwrap_or_default();
        let requires = fields.get("requires").map(|value| self.references(value, &sub("requires")).0).unwrap_or_default();
        let resources = self.amounts(fields.get("resources"), &sub("resources"), "`resources`");
        let retries = match fields.get("retries") {
            None => 0,
            Some(value) => count(value).and_then(|n| u32::try_from(n).ok()).unwrap_or_else(|| {
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

    fn amounts(&mut self, value: Option<&Node>, at: &[String], what: &str) -> BTreeMap<String, u64> {
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
    fn references(&mut self, value: &Node, at: &[String]) -> (Vec<PortRef>, bool) {
        match value {
            Node::List(items) => {
                let mut out = Vec::new();
                for (i, item) in items.iter().enumerate() {
                    let at = [at, &[i.to_string()]].concat();
                    match item.text() {
                        Some(text) => out.push(PortRef::parse(text, at)),
                        None => self.wrong(&at, "expected `stage` or `stage.port`"),
                    }
                }
                (out, true)
            }
            one => {
                let text = one.text().map(|text| PortRef::parse(text, at.to_vec()));
                if text.is_none() && !one.is_null() {
                    self.wrong(at, "expected `stage` or `stage.port`");
                }
                (text.into_iter().collect(), false)
            }
        }
    }
}

/// The plain values of an axis: at least one, none of them a list or a mapping.
fn scalars(values: &Node) -> Option<Vec<Scalar>> {
    let Node::List(items) = values else { return None };
    let scalar = |item: &Node| match item {
        Node::Scalar(scalar) => Some(scalar.clone()),
        _ => None,
    };
    items.iter().map(scalar).collect::<Option<Vec<_>>>().filter(|values| !values.is_empty())
}

fn count(value: &Node) -> Option<u64> {
    match value {
        Node::Scalar(scalar) => scalar.count()?.as_u64(),
        _ => None,
    }
}
