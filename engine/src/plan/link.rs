//! From declarations to a [`Plan`](crate::plan::Plan): kinds are looked up, parameters made canonical, inputs wired by
//! type, cycles refused; every mistake points into the file.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use petgraph::algo::tarjan_scc;
use petgraph::graph::DiGraph;
use serde_json::Value;

use crate::document::Document;
use crate::kind::{Kind, Refused, show_path};
use crate::node::Node;
use crate::outputs::VERDICT;
use crate::pipeline::{Pipeline, PortRef, StageDecl};
use crate::plan::stage::{Origin, ParamSource, PlannedStage, StageId, Wire, json_pointer};
use crate::plugin::{InputPort, OutputPort, Purity};
use crate::problem::{Problem, Problems, nearest, suggest};
use crate::registry::Registry;
use crate::schema::{self, Mark};
use crate::sources;
use crate::typed;

/// Names for a message.
pub(crate) fn quoted(names: &[String]) -> String {
    names.iter().take(6).map(|n| format!("`{n}`")).collect::<Vec<_>>().join(", ")
}

/// The output that a reference means, or what is wrong and what to do.
pub(crate) fn declared_output(kind: &Arc<dyn Kind>, reference: &PortRef) -> Result<String, (String, String)> {
    let outputs = kind.outputs();
    match &reference.port {
        None => outputs.first().map(|o| o.name.to_string()).ok_or_else(|| (format!("`{}` has no output", reference.stage), String::new())),
        Some(port) => outputs.iter().find(|o| o.name == *port).map(|o| o.name.to_string()).ok_or_else(|| {
            (
                format!("stage `{}` ({}) has no output `{port}`", reference.stage, kind.name()),
                suggest(port, outputs.iter().map(|o| &*o.name)),
            )
        }),
    }
}

/// The problem of stages that need each other.
pub(crate) fn cycle(pipeline: &Pipeline, stages: &[PlannedStage], graph: &DiGraph<StageId, ()>) -> Problem {
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
    let message = format!("the stages form a cycle: {}", names.join(" → "));
    let problem = match pipeline.stages.iter().find(|s| s.name == first) {
        Some(decl) => decl.document.at_key(&decl.at, message),
        None => Problem::new(message),
    };
    problem.label("needs itself in the end").help("remove one of these inputs")
}

pub(crate) type Linked = (Vec<PlannedStage>, Vec<(String, StageId, String)>, Vec<StageId>);

/// What became of a stage's `with:`.
struct Params {
    canonical: Value,
    sources: Vec<ParamSource>,
    unkeyed: Vec<Vec<String>>,
    secrets: Vec<String>,
    notes: Vec<String>,
}

pub(crate) struct Linker<'a> {
    pipeline: &'a Pipeline,
    registry: &'a Registry,
    /// Index of a stage by name.
    by_name: HashMap<&'a str, usize>,
    /// Kinds in the order of the stages, with the parameters read by their types; `None` where either is wrong.
    kinds: Vec<Option<Arc<dyn Kind>>>,
    /// `with:` of each stage, until it is read.
    with: Vec<Node>,
    raw: Vec<Value>,
    problems: Vec<Problem>,
}

impl<'a> Linker<'a> {
    /// `with` are the parameters of the stages of the pipeline, which are let go one by one.
    pub fn new(pipeline: &'a Pipeline, with: Vec<Node>, registry: &'a Registry) -> Self {
        let by_name = pipeline.stages.iter().enumerate().map(|(i, s)| (s.name.as_str(), i)).collect();
        Self { pipeline, registry, by_name, with, kinds: Vec::new(), raw: Vec::new(), problems: Vec::new() }
    }

    pub fn link(mut self) -> Result<Linked, Problems> {
        for (decl, with) in self.pipeline.stages.iter().zip(std::mem::take(&mut self.with)) {
            let (kind, raw) = self.kind(decl, &with).unzip();
            self.kinds.push(kind);
            self.raw.push(raw.unwrap_or_default());
        }
        let mut stages = Vec::new();
        for (i, decl) in self.pipeline.stages.iter().enumerate() {
            let raw = std::mem::take(&mut self.raw[i]);
            if let Some(kind) = self.kinds[i].clone()
                && let Some(stage) = self.stage(decl, &kind, raw)
            {
                stages.push(stage);
            }
        }
        let document = &self.pipeline.document;
        let mut targets = Vec::new();
        for reference in &self.pipeline.targets {
            targets.extend(self.outputs(document, reference).into_iter().map(|(id, _)| id));
        }
        let mut publish = Vec::new();
        for (to, reference) in &self.pipeline.publish {
            match self.outputs(document, reference).as_slice() {
                [(id, port)] => publish.push((to.clone(), *id, port.clone())),
                [] => {}
                _ => {
                    let problem = self.one_of_group(document, reference);
                    self.problems.push(problem);
                }
            }
        }
        if self.problems.is_empty() { Ok((stages, publish, targets)) } else { Err(Problems { list: once(self.problems) }) }
    }

    /// The kind of a stage, and its parameters by the kind's types.
    fn kind(&mut self, decl: &StageDecl, with: &Node) -> Option<(Arc<dyn Kind>, Value)> {
        let Some(kind) = self.registry.get(&decl.kind) else {
            let help = match nearest(&decl.kind, self.registry.names()) {
                Some(near) => format!("did you mean `{near}`?"),
                None => "`flow kinds` lists all kinds".into(),
            };
            let problem = decl.document.at_value(&decl.place(&["use"]), format!("unknown kind `{}`", decl.kind));
            self.problems.push(problem.help(help).label("no such kind"));
            return None;
        };
        let inputs: Vec<_> = decl.inputs.iter().map(|(port, refs, list)| (port.clone(), *list || self.several(refs))).collect();
        let read = typed::read(kind.schema(), with);
        match read.and_then(|raw| Ok((kind.shape(&inputs, &raw)?.unwrap_or_else(|| kind.clone()), raw))) {
            Ok(found) => Some(found),
            Err(refused) => {
                self.problems.push(refusal(decl, kind.as_ref(), refused));
                None
            }
        }
    }

    /// Whether references that are not written as a list mean several artifacts.
    fn several(&self, references: &[PortRef]) -> bool {
        references.iter().any(|r| self.pipeline.groups.get(&r.stage).is_some_and(|members| !members.is_empty()))
    }

    fn stage(&mut self, decl: &StageDecl, kind: &Arc<dyn Kind>, raw: Value) -> Option<PlannedStage> {
        let before = self.problems.len();
        let inputs = self.wires(decl, kind);
        let wired_well = self.problems.len() == before;
        let after = decl.after.iter().flat_map(|r| self.outputs(&decl.document, r)).map(|(id, _)| id).collect();
        let mut requires = Vec::new();
        for reference in &decl.requires {
            if self.left_out(reference) {
                let problem = self.one_of_group(&decl.document, reference);
                self.problems.push(problem);
            }
            for (id, port) in self.outputs(&decl.document, reference) {
                let verdict = self.kinds[id.0].iter().flat_map(|k| k.outputs()).find(|o| o.name == port).is_some_and(|o| o.ty == VERDICT);
                if !verdict {
                    let message = format!("`{}` gives no verdict: only a gate can be required", reference.stage);
                    self.problems.push(decl.document.at_value(&reference.at, message));
                }
                requires.push((id, port));
            }
        }
        let params = match self.params(decl, kind, raw) {
            Ok(params) => params,
            Err(problem) => {
                self.problems.push(problem);
                return None;
            }
        };
        let there = |references: &[PortRef]| references.iter().any(|r| !self.left_out(r));
        let wired: Vec<&str> = decl.inputs.iter().filter(|(_, references, _)| there(references)).map(|(port, ..)| port.as_str()).collect();
        if let Some(e) = kind.wiring(&params.canonical, &wired).err().filter(|_| wired_well) {
            self.problems.push(decl.document.at_key(&decl.at, format!("stage `{}`: {e}", decl.name)).maybe_help(e.help));
        }
        Some(PlannedStage {
            name: decl.name.clone(),
            kind: kind.clone(),
            params: params.canonical,
            unkeyed: params.unkeyed,
            sources: params.sources,
            secrets: params.secrets,
            inputs,
            after,
            requires,
            dir: decl.dir.clone(),
            resources: decl.resources.clone(),
            retries: decl.retries,
            timeout: decl.timeout,
            notes: params.notes,
        })
    }

    fn params(&self, decl: &StageDecl, kind: &Arc<dyn Kind>, mut raw: Value) -> Result<Params, Problem> {
        let place = |path: &[String]| [decl.place(&["with"]), path.to_vec()].concat();
        for (path, mark) in schema::marks(kind.schema(), &raw) {
            let Some(slot) = pointer(&mut raw, &path) else { continue };
            let text = slot.as_str().unwrap_or_default();
            let relative = "relative paths start at the pipeline file's folder";
            let is_dir = match mark {
                Mark::NoKey | Mark::Env | Mark::Secret => continue,
                Mark::SourceGlob => {
                    if let Err(e) = sources::expand(&decl.dir, text) {
                        let message = match e.kind() {
                            std::io::ErrorKind::NotFound if !text.contains('*') => {
                                format!("no such file: {}", decl.dir.join(text).display())
                            }
                            _ => e.to_string(),
                        };
                        return Err(decl.document.at_value(&place(&path), message).help(relative));
                    }
                    continue;
                }
                Mark::SourceFile => Some(false),
                Mark::SourceDir => Some(true),
                Mark::SourcePath => None,
            };
            let file = decl.dir.join(text);
            let problem = |what: &str| decl.document.at_value(&place(&path), format!("{what}: {}", file.display()));
            match std::fs::metadata(&file) {
                Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
                    let what = match is_dir {
                        Some(true) => "no such directory",
                        Some(false) => "no such file",
                        None => "no such file or directory",
                    };
                    return Err(problem(what).label("does not exist").help(relative));
                }
                Err(e) => return Err(problem(&format!("cannot be read ({e})"))),
                Ok(meta) if meta.is_dir() && is_dir == Some(false) => return Err(problem("expected a file, found a directory")),
                Ok(meta) if !meta.is_dir() && is_dir == Some(true) => return Err(problem("expected a directory, found a file")),
                Ok(_) => {}
            }
            // The same file reached by two spellings has one path in the task.
            let real = sources::real(&file);
            let Some(text) = real.to_str() else { return Err(problem("the path is not UTF-8")) };
            *slot = Value::String(text.to_owned());
        }
        let checked = kind.check(raw).map_err(|refused| refusal(decl, kind.as_ref(), refused))?;
        let (mut sources, mut unkeyed, mut secrets) = (Vec::new(), Vec::new(), Vec::new());
        for (path, mark) in schema::marks(kind.schema(), &checked.params) {
            let value = checked.params.pointer(&json_pointer(&path));
            let text = value.and_then(Value::as_str).unwrap_or_default();
            let of = match mark {
                Mark::NoKey => {
                    unkeyed.push(path);
                    continue;
                }
                Mark::Secret => {
                    secrets.extend(Some(text.to_owned()).filter(|t| !t.is_empty()));
                    unkeyed.push(path);
                    continue;
                }
                Mark::SourceFile | Mark::SourceDir | Mark::SourcePath => Origin::Path(text.into()),
                Mark::SourceGlob => Origin::Glob(decl.dir.clone(), text.into()),
                Mark::Env if value.is_some_and(|v| v["secret"] == true) => {
                    secrets.extend(path.last().cloned());
                    continue;
                }
                Mark::Env => Origin::Env(path.last().cloned().unwrap_or_default()),
            };
            sources.push(ParamSource { at: path, of });
        }
        Ok(Params { canonical: checked.params, sources, unkeyed, secrets, notes: checked.notes })
    }

    fn wires(&mut self, decl: &StageDecl, kind: &Arc<dyn Kind>) -> Vec<Wire> {
        for (port, ..) in &decl.inputs {
            if !kind.inputs().iter().any(|i| i.name == *port) {
                let help = suggest(port, kind.inputs().iter().map(|i| &*i.name));
                let message = format!("kind `{}` has no input `{port}`", kind.name());
                self.problems.push(decl.document.at_key(&decl.place(&["in", port]), message).help(help).label("no such input"));
            }
        }
        let mut wires = Vec::new();
        for input in kind.inputs() {
            let at = decl.place(&["in", &input.name]);
            let Some((_, references, list)) = decl.inputs.iter().find(|(port, ..)| *port == input.name) else {
                if input.required {
                    let message = format!("stage `{}` does not wire its input `{}` ({})", decl.name, input.name, input.types.join(" or "));
                    let help = self.candidates(input, &decl.name);
                    self.problems.push(decl.document.at_key(&decl.at, message).maybe_help(help));
                }
                continue;
            };
            if *list && !input.list {
                let message = format!("input `{}` of kind `{}` takes one artifact, not a list", input.name, kind.name());
                self.problems.push(decl.document.at_value(&at, message));
                continue;
            }
            if references.is_empty() && input.required {
                let message = format!("input `{}` needs at least one artifact", input.name);
                self.problems.push(decl.document.at_value(&at, message));
            }
            // A list goes on without what is left out, but not without anything.
            if input.required && !references.is_empty() && references.iter().all(|r| self.left_out(r)) {
                self.problems.push(self.one_of_group(&decl.document, &references[0]));
                continue;
            }
            for reference in references {
                match self.wire(decl, kind, input, reference) {
                    Ok(found) => wires.extend(found),
                    Err(problem) => self.problems.push(problem),
                }
            }
        }
        wires
    }

    /// Resolves one reference of one input; nothing when the other stage's kind is unknown, which is told there.
    fn wire(&self, decl: &StageDecl, kind: &Arc<dyn Kind>, input: &InputPort, reference: &PortRef) -> Result<Vec<Wire>, Problem> {
        let Some(members) = self.pipeline.groups.get(&reference.stage) else {
            let Some(index) = self.by_name.get(reference.stage.as_str()) else { return Err(self.no_stage(&decl.document, reference)) };
            return Ok(self.wire_to(*index, decl, kind, input, reference)?.into_iter().collect());
        };
        if members.is_empty() && !input.required {
            return Ok(Vec::new());
        }
        if !input.list {
            return Err(self.one_of_group(&decl.document, reference));
        }
        let indices = members.iter().filter_map(|m| self.by_name.get(m.as_str()));
        indices.filter_map(|i| self.wire_to(*i, decl, kind, input, reference).transpose()).collect()
    }

    fn wire_to(
        &self,
        index: usize,
        decl: &StageDecl,
        kind: &Arc<dyn Kind>,
        input: &InputPort,
        reference: &PortRef,
    ) -> Result<Option<Wire>, Problem> {
        let Some(other) = &self.kinds[index] else { return Ok(None) };
        let document = &decl.document;
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
                None => format!("`{}` gives {}", reference.stage, other.outputs().iter().map(|o| &*o.ty).collect::<Vec<_>>().join(", ")),
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
        Ok(Some(Wire { port: input.name.to_string(), from: StageId(index), output: output.name.to_string(), ty: output.ty.to_string() }))
    }

    /// Which artifacts of the pipeline would fit.
    fn candidates(&self, input: &InputPort, consumer: &str) -> Option<String> {
        let mut fitting = Vec::new();
        for (decl, kind) in self.pipeline.stages.iter().zip(&self.kinds).filter(|(s, _)| s.name != consumer) {
            for output in kind.iter().flat_map(|k| k.outputs()) {
                if fits(input, output) && fitting.len() < 4 {
                    fitting.push(format!("`{}.{}`", decl.name, output.name));
                }
            }
        }
        (!fitting.is_empty()).then(|| format!("of that type: {}", fitting.join(", ")))
    }

    fn no_stage(&self, document: &Document, reference: &PortRef) -> Problem {
        let names = self.pipeline.stages.iter().map(|s| s.name.as_str()).chain(self.pipeline.groups.keys().map(String::as_str));
        let help = suggest(&reference.stage, names);
        document.at_value(&reference.at, format!("there is no stage `{}`", reference.stage)).help(help).label("no such stage")
    }

    fn one_of_group(&self, document: &Document, reference: &PortRef) -> Problem {
        let members = self.pipeline.groups.get(&reference.stage).map(Vec::as_slice).unwrap_or_default();
        if members.is_empty() {
            let message = format!("`{}` is left out: its `when` is false", reference.stage);
            return document.at_value(&reference.at, message).help("set it, or do not read from that stage");
        }
        let message = format!("`{}` is a matrix of {} stages, and one artifact is wanted", reference.stage, members.len());
        document.at_value(&reference.at, message).help(format!("name one of them: {}", quoted(members)))
    }

    /// Whether a reference means a stage whose `when` is false.
    fn left_out(&self, reference: &PortRef) -> bool {
        self.pipeline.groups.get(&reference.stage).is_some_and(Vec::is_empty)
    }

    /// What a reference outside `in:` means; nothing (and a problem) where it means nothing.
    fn outputs(&mut self, document: &Document, reference: &PortRef) -> Vec<(StageId, String)> {
        let indices: Vec<usize> = match self.pipeline.groups.get(&reference.stage) {
            Some(members) => members.iter().filter_map(|m| self.by_name.get(m.as_str()).copied()).collect(),
            None => self.by_name.get(reference.stage.as_str()).copied().into_iter().collect(),
        };
        if indices.is_empty() && !self.left_out(reference) {
            let problem = self.no_stage(document, reference);
            self.problems.push(problem);
        }
        let mut found = Vec::new();
        for index in indices {
            let Some(kind) = &self.kinds[index] else { continue };
            match declared_output(kind, reference) {
                Ok(port) => found.push((StageId(index), port)),
                Err((message, help)) => self.problems.push(document.at_value(&reference.at, message).help(help)),
            }
        }
        found
    }
}

/// A message without the values that tell members of a matrix apart: `student[seed=1]` → `student`.
fn without_axes(message: &str) -> String {
    let mut out = String::new();
    for (i, part) in message.split('[').enumerate() {
        match part.split_once(']') {
            Some((axes, rest)) if i > 0 && axes.contains('=') => out.push_str(rest),
            _ => out.push_str(part),
        }
    }
    out
}

/// What is wrong with every member of a matrix is told once.
fn once(mut problems: Vec<Problem>) -> Vec<Problem> {
    let mut told = std::collections::HashSet::new();
    problems.retain(|p| {
        let file = p.source_code.as_ref().map(|s| s.name().to_owned());
        told.insert((file, p.span.map(|s| (s.offset(), s.len())), without_axes(&p.message)))
    });
    problems
}

/// A refused parameter as a problem in the file.
fn refusal(decl: &StageDecl, kind: &dyn Kind, refused: Refused) -> Problem {
    let place = [decl.place(&["with"]), refused.path.clone()].concat();
    let message = if refused.at_key {
        format!("{} of kind `{}`", refused.message, kind.name())
    } else if refused.path.is_empty() {
        format!("stage `{}`: {}", decl.name, refused.message)
    } else {
        format!("`{}`: {}", show_path(&refused.path), refused.message)
    };
    let problem = if refused.at_key { decl.document.at_key(&place, message) } else { decl.document.at_value(&place, message) };
    problem.maybe_help(refused.help).maybe_help_if_none(|| format!("`flow kinds {}` shows its parameters", kind.name()))
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

fn pointer<'a>(value: &'a mut Value, path: &[String]) -> Option<&'a mut Value> {
    value.pointer_mut(&json_pointer(path))
}
