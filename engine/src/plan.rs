//! The typed DAG: every stage with its kind, canonical parameters and wired inputs; it cannot hold a cycle.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use petgraph::Direction;
use petgraph::algo::{tarjan_scc, toposort};
use petgraph::graph::{DiGraph, NodeIndex};
use serde_json::Value;

use crate::path;
use crate::pipeline::{Pipeline, PortRef, StageDecl};
use crate::plugin::{InputPort, OutputPort, Purity};
use crate::problem::{Problem, Problems, nearest, suggest};
use crate::registry::{Kind, Registry, show_path};
use crate::schema::{self, Mark};

/// Index of a stage in its [`Plan`].
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

/// A parameter that is keyed by the content of a path.
#[derive(Clone, Debug)]
pub struct Source {
    /// Path inside `with:`.
    pub at: Vec<String>,
    /// The file or directory.
    pub path: PathBuf,
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
    pub sources: Vec<Source>,
    /// Inputs in the order of the kind's ports.
    pub inputs: Vec<Wire>,
    /// Stages to wait for without reading them.
    pub after: Vec<StageId>,
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
        self.inputs.iter().map(|w| w.from).chain(self.after.iter().copied()).collect()
    }
    /// Whether an output is measured, so that the machine is part of the key.
    pub fn is_measured(&self) -> bool {
        !self.kind.is_pure()
    }
}

/// A linked pipeline.
pub struct Plan {
    /// The file that it was made from.
    pub pipeline: Pipeline,
    /// Stages; [`StageId`] indexes them.
    pub stages: Vec<PlannedStage>,
    graph: DiGraph<StageId, ()>,
    order: Vec<StageId>,
    /// What the file's `publish:` asks for: path, stage, output port.
    pub publish: Vec<(String, StageId, String)>,
    targets: Vec<StageId>,
}

impl Plan {
    /// Links a pipeline against the kinds of a registry.
    pub fn link(pipeline: Pipeline, registry: &Registry) -> Result<Self, Problems> {
        let linker = Linker::new(&pipeline, registry);
        let (stages, publish, targets) = linker.link()?;
        let mut graph = DiGraph::new();
        let nodes: Vec<NodeIndex> = (0..stages.len()).map(|i| graph.add_node(StageId(i))).collect();
        for (i, stage) in stages.iter().enumerate() {
            for need in stage.needs() {
                graph.add_edge(nodes[need.0], nodes[i], ());
            }
        }
        let Ok(order) = toposort(&graph, None) else { return Err(cycle(&pipeline, &stages, &graph).into()) };
        let order = order.into_iter().map(|n| graph[n]).collect();
        Ok(Self { pipeline, stages, graph, order, publish, targets })
    }

    /// The stage of that id.
    pub fn stage(&self, id: StageId) -> &PlannedStage {
        &self.stages[id.0]
    }
    /// The stage of that name.
    pub fn find(&self, name: &str) -> Result<StageId, Problem> {
        self.stages.iter().position(|s| s.name == name).map(StageId).ok_or_else(|| {
            Problem::new(format!("the pipeline has no stage `{name}`")).help(suggest(name, self.stages.iter().map(|s| s.name.as_str())))
        })
    }
    /// All stages, each after what it needs.
    pub fn order(&self) -> &[StageId] {
        &self.order
    }
    /// Stages that need `id`.
    pub fn dependants(&self, id: StageId) -> impl Iterator<Item = StageId> + '_ {
        self.graph.neighbors_directed(NodeIndex::new(id.0), Direction::Outgoing).map(|n| self.graph[n])
    }
    /// All stages that `id` needs, directly or not, in topological order.
    pub fn ancestors(&self, id: StageId) -> Vec<StageId> {
        let closure = self.closure(&[id]);
        self.order.iter().copied().filter(|s| *s != id && closure.contains(s)).collect()
    }
    /// The stages that a run of `targets` needs, in topological order; no names mean the file's targets, else all.
    pub fn select(&self, targets: &[String]) -> Result<Vec<StageId>, Problem> {
        let wanted = if targets.is_empty() {
            self.targets.clone()
        } else {
            // A target may be written as `stage.port`; the stage is what runs.
            targets.iter().map(|t| self.find(t.split('.').next().unwrap_or(t))).collect::<Result<_, _>>()?
        };
        if wanted.is_empty() {
            return Ok(self.order.clone());
        }
        let closure = self.closure(&wanted);
        Ok(self.order.iter().copied().filter(|s| closure.contains(s)).collect())
    }

    fn closure(&self, of: &[StageId]) -> BTreeSet<StageId> {
        let mut seen = BTreeSet::new();
        let mut open = of.to_vec();
        while let Some(id) = open.pop() {
            if seen.insert(id) {
                open.extend(self.stage(id).needs());
            }
        }
        seen
    }

    /// `stage` or `stage.port` from the command line; a bare stage means its first declared output.
    pub fn output(&self, text: &str) -> Result<(StageId, String), Problem> {
        let reference = PortRef::parse(text, Vec::new());
        let id = self.find(&reference.stage)?;
        let port = declared_output(&self.stage(id).kind, &reference).map_err(|(message, help)| Problem::new(message).help(help))?;
        Ok((id, port))
    }
}

fn declared_output(kind: &Arc<dyn Kind>, reference: &PortRef) -> Result<String, (String, String)> {
    let outputs = kind.outputs();
    match &reference.port {
        None => outputs.first().map(|o| o.name.to_owned()).ok_or_else(|| (format!("`{}` has no output", reference.stage), String::new())),
        Some(port) => outputs.iter().find(|o| o.name == port).map(|o| o.name.to_owned()).ok_or_else(|| {
            (format!("stage `{}` ({}) has no output `{port}`", reference.stage, kind.name()), suggest(port, outputs.iter().map(|o| o.name)))
        }),
    }
}

fn cycle(pipeline: &Pipeline, stages: &[PlannedStage], graph: &DiGraph<StageId, ()>) -> Problem {
    let component = tarjan_scc(graph).into_iter().find(|c| c.len() > 1 || c.iter().any(|n| graph.contains_edge(*n, *n)));
    let members: BTreeSet<StageId> = component.unwrap_or_default().into_iter().map(|n| graph[n]).collect();
    // Follow needs inside the component until a stage comes again: that walk is the cycle.
    let mut walk: Vec<StageId> = members.iter().take(1).copied().collect();
    while let Some(next) = walk.last().and_then(|last| stages[last.0].needs().into_iter().find(|n| members.contains(n))) {
        if let Some(at) = walk.iter().position(|s| *s == next) {
            walk.drain(..at);
            walk.push(next);
            break;
        }
        walk.push(next);
    }
    walk.reverse();
    let names: Vec<_> = walk.iter().map(|s| stages[s.0].name.as_str()).collect();
    let first = names.first().copied().unwrap_or_default();
    pipeline
        .document
        .at_key(&path!["stages", first], format!("the stages form a cycle: {}", names.join(" → ")))
        .label("needs itself in the end")
        .help("remove one of these inputs")
}

type Linked = (Vec<PlannedStage>, Vec<(String, StageId, String)>, Vec<StageId>);

/// What became of a stage's `with:`.
struct Params {
    canonical: Value,
    sources: Vec<Source>,
    unkeyed: Vec<Vec<String>>,
    notes: Vec<String>,
}

/// Index of a stage by name, and its kind where that is known.
type Known<'a> = (usize, Option<&'a Arc<dyn Kind>>);

struct Linker<'a> {
    pipeline: &'a Pipeline,
    registry: &'a Registry,
    by_name: HashMap<&'a str, Known<'a>>,
    problems: Vec<Problem>,
}

impl<'a> Linker<'a> {
    fn new(pipeline: &'a Pipeline, registry: &'a Registry) -> Self {
        let by_name = pipeline.stages.iter().enumerate().map(|(i, s)| (s.name.as_str(), (i, registry.get(&s.kind)))).collect();
        Self { pipeline, registry, by_name, problems: Vec::new() }
    }

    fn link(mut self) -> Result<Linked, Problems> {
        let mut stages = Vec::new();
        for decl in &self.pipeline.stages {
            if let Some(stage) = self.stage(decl) {
                stages.push(stage);
            }
        }
        let mut targets = Vec::new();
        for reference in &self.pipeline.targets {
            if let Some((id, _)) = self.output(reference) {
                targets.push(id);
            }
        }
        let mut publish = Vec::new();
        for (to, reference) in &self.pipeline.publish {
            if let Some((id, port)) = self.output(reference) {
                publish.push((to.clone(), id, port));
            }
        }
        if self.problems.is_empty() { Ok((stages, publish, targets)) } else { Err(Problems { list: self.problems }) }
    }

    fn stage(&mut self, decl: &StageDecl) -> Option<PlannedStage> {
        let document = &self.pipeline.document;
        let Some(kind) = self.registry.get(&decl.kind) else {
            let help = match nearest(&decl.kind, self.registry.names()) {
                Some(near) => format!("did you mean `{near}`?"),
                None => "`flow kinds` lists all kinds".into(),
            };
            let problem = document.at_value(&path!["stages", decl.name, "use"], format!("unknown kind `{}`", decl.kind));
            self.problems.push(problem.help(help).label("no such kind"));
            return None;
        };
        let inputs = self.wires(decl, kind);
        let after = decl.after.iter().filter_map(|r| self.output(r).map(|(id, _)| id)).collect();
        let params = match self.params(decl, kind) {
            Ok(params) => params,
            Err(problem) => {
                self.problems.push(problem);
                return None;
            }
        };
        Some(PlannedStage {
            name: decl.name.clone(),
            kind: kind.clone(),
            params: params.canonical,
            unkeyed: params.unkeyed,
            sources: params.sources,
            inputs,
            after,
            resources: decl.resources.clone(),
            retries: decl.retries,
            timeout: decl.timeout,
            notes: params.notes,
        })
    }

    fn params(&self, decl: &StageDecl, kind: &Arc<dyn Kind>) -> Result<Params, Problem> {
        let document = &self.pipeline.document;
        let place = |path: &[String]| [path!["stages", decl.name, "with"], path.to_vec()].concat();
        let mut raw = decl.with.clone();
        for (path, mark) in schema::marks(kind.schema(), &raw) {
            if mark == Mark::NoKey {
                continue;
            }
            let Some(slot) = pointer(&mut raw, &path) else { continue };
            let file = self.pipeline.dir.join(slot.as_str().unwrap_or_default());
            let is_dir = mark == Mark::SourceDir;
            let problem = |what: &str| document.at_value(&place(&path), format!("{what}: {}", file.display()));
            match std::fs::metadata(&file) {
                Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
                    let what = if is_dir { "no such directory" } else { "no such file" };
                    return Err(problem(what).label("does not exist").help("relative paths start at the pipeline file's folder"));
                }
                Err(e) => return Err(problem(&format!("cannot be read ({e})"))),
                Ok(meta) if meta.is_dir() && !is_dir => return Err(problem("expected a file, found a directory")),
                Ok(meta) if !meta.is_dir() && is_dir => return Err(problem("expected a directory, found a file")),
                Ok(_) => {}
            }
            // The same file reached by two spellings has one path in the task.
            let real = file.canonicalize().unwrap_or_else(|_| file.clone());
            let Some(text) = real.to_str() else { return Err(problem("the path is not UTF-8")) };
            *slot = Value::String(text.to_owned());
        }
        let checked = kind.check(raw).map_err(|refused| {
            let place = place(&refused.path);
            let message = if refused.at_key {
                format!("{} of kind `{}`", refused.message, kind.name())
            } else if refused.path.is_empty() {
                format!("stage `{}`: {}", decl.name, refused.message)
            } else {
                format!("`{}`: {}", show_path(&refused.path), refused.message)
            };
            let problem = if refused.at_key { document.at_key(&place, message) } else { document.at_value(&place, message) };
            problem.maybe_help(refused.help).maybe_help_if_none(|| format!("`flow kinds {}` shows its parameters", kind.name()))
        })?;
        let (mut sources, mut unkeyed) = (Vec::new(), Vec::new());
        for (path, mark) in schema::marks(kind.schema(), &checked.params) {
            match mark {
                Mark::NoKey => unkeyed.push(path),
                Mark::SourceFile | Mark::SourceDir => {
                    let file = checked.params.pointer(&json_pointer(&path)).and_then(Value::as_str).unwrap_or_default();
                    sources.push(Source { at: path, path: file.into() });
                }
            }
        }
        Ok(Params { canonical: checked.params, sources, unkeyed, notes: checked.notes })
    }

    fn wires(&mut self, decl: &StageDecl, kind: &Arc<dyn Kind>) -> Vec<Wire> {
        let document = &self.pipeline.document;
        for (port, ..) in &decl.inputs {
            if !kind.inputs().iter().any(|i| i.name == port) {
                let help = suggest(port, kind.inputs().iter().map(|i| i.name));
                let message = format!("kind `{}` has no input `{port}`", kind.name());
                self.problems.push(document.at_key(&path!["stages", decl.name, "in", port], message).help(help).label("no such input"));
            }
        }
        let mut wires = Vec::new();
        for input in kind.inputs() {
            let Some((_, references, list)) = decl.inputs.iter().find(|(port, ..)| port == input.name) else {
                if input.required {
                    let message = format!("stage `{}` does not wire its input `{}` ({})", decl.name, input.name, input.types.join(" or "));
                    let help = self.candidates(input, &decl.name);
                    self.problems.push(document.at_key(&path!["stages", decl.name], message).maybe_help(help));
                }
                continue;
            };
            if *list && !input.list {
                let message = format!("input `{}` of kind `{}` takes one artifact, not a list", input.name, kind.name());
                self.problems.push(document.at_value(&path!["stages", decl.name, "in", input.name], message));
                continue;
            }
            if references.is_empty() && input.required {
                let message = format!("input `{}` needs at least one artifact", input.name);
                self.problems.push(document.at_value(&path!["stages", decl.name, "in", input.name], message));
            }
            for reference in references {
                match self.wire(decl, kind, input, reference) {
                    Ok(Some(wire)) => wires.push(wire),
                    Ok(None) => {}
                    Err(problem) => self.problems.push(problem),
                }
            }
        }
        wires
    }

    /// Resolves one reference of one input; `None` when the other stage's kind is unknown, which is told there.
    fn wire(&self, decl: &StageDecl, kind: &Arc<dyn Kind>, input: &InputPort, reference: &PortRef) -> Result<Option<Wire>, Problem> {
        let document = &self.pipeline.document;
        let Some((index, other)) = self.by_name.get(reference.stage.as_str()) else { return Err(self.no_stage(reference)) };
        let Some(other) = other else { return Ok(None) };
        let wanted = input.types.join(" or ");
        let output = match &reference.port {
            Some(_) => {
                let port = declared_output(other, reference).map_err(|(m, h)| document.at_value(&reference.at, m).help(h))?;
                other.outputs().iter().find(|o| o.name == port)
            }
            None => match other.outputs() {
                [only] => Some(only),
                many => {
                    let fitting: Vec<_> = many.iter().filter(|o| fits(input, o)).collect();
                    match fitting.as_slice() {
                        [one] => Some(*one),
                        [] => None,
                        several => {
                            let choices: Vec<_> = several.iter().map(|o| format!("`{}.{}`", reference.stage, o.name)).collect();
                            let message = format!("`{}` has several outputs of type {wanted}", reference.stage);
                            return Err(document.at_value(&reference.at, message).help(format!("write one of {}", choices.join(", "))));
                        }
                    }
                }
            },
        };
        let Some(output) = output.filter(|o| fits(input, o)) else {
            let gives = match output {
                Some(output) => format!("`{}.{}` is {}", reference.stage, output.name, output.ty),
                None => format!("`{}` gives {}", reference.stage, other.outputs().iter().map(|o| o.ty).collect::<Vec<_>>().join(", ")),
            };
            let message = format!("input `{}` of kind `{}` takes {wanted}, but {gives}", input.name, kind.name());
            return Err(document
                .at_value(&reference.at, message)
                .label(format!("expected {wanted}"))
                .maybe_help(self.candidates(input, &decl.name)));
        };
        if kind.is_pure() && output.purity == Purity::Measured {
            let message = format!(
                "`{}.{}` is measured, and `{}` is pure: its outputs would change from run to run",
                reference.stage,
                output.name,
                kind.name()
            );
            return Err(document.at_value(&reference.at, message).label("a measured output"));
        }
        Ok(Some(Wire { port: input.name.into(), from: StageId(*index), output: output.name.into(), ty: output.ty.into() }))
    }

    /// Which artifacts of the pipeline would fit.
    fn candidates(&self, input: &InputPort, consumer: &str) -> Option<String> {
        let mut fitting = Vec::new();
        for decl in self.pipeline.stages.iter().filter(|s| s.name != consumer) {
            for output in self.registry.get(&decl.kind).map(|k| k.outputs()).unwrap_or_default() {
                if fits(input, output) {
                    fitting.push(format!("`{}.{}`", decl.name, output.name));
                }
            }
        }
        fitting.truncate(4);
        (!fitting.is_empty()).then(|| format!("of that type: {}", fitting.join(", ")))
    }

    fn no_stage(&self, reference: &PortRef) -> Problem {
        let help = suggest(&reference.stage, self.pipeline.stages.iter().map(|s| s.name.as_str()));
        self.pipeline.document.at_value(&reference.at, format!("there is no stage `{}`", reference.stage)).help(help).label("no such stage")
    }

    fn output(&mut self, reference: &PortRef) -> Option<(StageId, String)> {
        let Some((index, kind)) = self.by_name.get(reference.stage.as_str()) else {
            let problem = self.no_stage(reference);
            self.problems.push(problem);
            return None;
        };
        match declared_output((*kind)?, reference) {
            Ok(port) => Some((StageId(*index), port)),
            Err((message, help)) => {
                self.problems.push(self.pipeline.document.at_value(&reference.at, message).help(help));
                None
            }
        }
    }
}

impl Problem {
    fn maybe_help_if_none(mut self, help: impl FnOnce() -> String) -> Self {
        self.help = self.help.or_else(|| Some(help()));
        self
    }
}

fn fits(input: &InputPort, output: &OutputPort) -> bool {
    input.types.iter().any(|t| *t == output.ty || *t == "*")
}

/// A JSON pointer of a path.
pub(crate) fn json_pointer(path: &[String]) -> String {
    path.iter().map(|p| format!("/{}", p.replace('~', "~0").replace('/', "~1"))).collect()
}

fn pointer<'a>(value: &'a mut Value, path: &[String]) -> Option<&'a mut Value> {
    value.pointer_mut(&json_pointer(path))
}
