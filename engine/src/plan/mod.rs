//! The typed DAG: every stage with its kind, canonical parameters and wired inputs; it cannot hold a cycle.
//!
//! `link` makes the stages of a pipeline's declarations; this file puts them in order and answers what is asked of a plan.

mod link;
mod stage;

use std::collections::{BTreeSet, HashMap};

use petgraph::Direction;
use petgraph::algo::toposort;
use petgraph::graph::{DiGraph, NodeIndex};

use crate::estimate::{Estimate, Maker, Makers, Wired};
use crate::node::Node;
use crate::pipeline::{Pipeline, PortRef};
use crate::problem::{Problem, Problems, suggest};
use crate::registry::Registry;
use link::{Linker, cycle, declared_output, quoted};
pub(crate) use stage::json_pointer;
pub use stage::{Origin, ParamSource, PlannedStage, StageId, Wire};

/// A linked pipeline.
pub struct Plan {
    /// The file that it was made from, without the declarations of its stages.
    pub pipeline: Pipeline,
    /// Stages; [`StageId`] indexes them.
    pub stages: Vec<PlannedStage>,
    graph: DiGraph<StageId, ()>,
    order: Vec<StageId>,
    by_name: HashMap<String, StageId>,
    /// What the file's `publish:` asks for: path, stage, output port.
    pub publish: Vec<(String, StageId, String)>,
    targets: Vec<StageId>,
}

impl Plan {
    /// Links a pipeline against the kinds of a registry.
    pub fn link(mut pipeline: Pipeline, registry: &Registry) -> Result<Self, Problems> {
        let with = pipeline.stages.iter_mut().map(|decl| std::mem::replace(&mut decl.with, Node::null())).collect();
        let linker = Linker::new(&pipeline, with, registry);
        let (stages, publish, targets) = linker.link()?;
        let mut graph = DiGraph::new();
        let nodes: Vec<NodeIndex> = (0..stages.len()).map(|i| graph.add_node(StageId(i))).collect();
        for (i, stage) in stages.iter().enumerate() {
            for need in stage.needs() {
                graph.add_edge(nodes[need.0], nodes[i], ());
            }
        }
        let Ok(order) = toposort(&graph, None) else { return Err(cycle(&pipeline, &stages, &graph).into()) };
        // Declarations have become stages.
        pipeline.stages = Vec::new();
        let order = order.into_iter().map(|n| graph[n]).collect();
        let by_name = stages.iter().enumerate().map(|(i, s)| (s.name.clone(), StageId(i))).collect();
        Ok(Self { pipeline, stages, graph, order, by_name, publish, targets })
    }

    /// The stage of that id.
    pub fn stage(&self, id: StageId) -> &PlannedStage {
        &self.stages[id.0]
    }
    /// Whether any selected stage measures, so that the machine matters.
    pub fn measures(&self, selected: &[StageId]) -> bool {
        selected.iter().any(|id| self.stage(*id).is_measured())
    }
    /// The stage of that name.
    pub fn find(&self, name: &str) -> Result<StageId, Problem> {
        self.by_name.get(name).copied().ok_or_else(|| match self.pipeline.groups.get(name) {
            Some(members) if members.is_empty() => Problem::new(format!("`{name}` is left out: its `when` is false"))
                .help(format!("`--set stages.{name}.when=true` brings it in")),
            Some(members) => Problem::new(format!("`{name}` is a matrix of {} stages", members.len()))
                .help(format!("name one of them: {}", quoted(members))),
            None => {
                Problem::new(format!("the pipeline has no stage `{name}`")).help(suggest(name, self.stages.iter().map(|s| s.name.as_str())))
            }
        })
    }
    /// All stages, each after what it needs.
    pub fn order(&self) -> &[StageId] {
        &self.order
    }
    /// Environment variables with secrets that are neither the stage's own nor, where its kind needs them, those of the
    /// stages that it reads.
    pub fn withheld(&self, id: StageId) -> Vec<String> {
        let stage = self.stage(id);
        let of_makers = |name: &String| stage.inputs.iter().any(|wire| self.stage(wire.from).secrets.contains(name));
        let needed = |name: &String| stage.secrets.contains(name) || (stage.kind.needs_secrets() && of_makers(name));
        let all: BTreeSet<&String> = self.stages.iter().flat_map(|s| &s.secrets).collect();
        all.into_iter().filter(|name| !needed(name)).cloned().collect()
    }
    /// What an execution of the stage will take, where its kind says it.
    pub fn estimate(&self, id: StageId) -> Option<Estimate> {
        let stage = self.stage(id);
        stage.kind.estimate(&stage.params, &Wired::new(self, id.0))
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
            if self.targets.is_empty() && !self.pipeline.targets.is_empty() {
                return Err(
                    Problem::new("every target is left out: their `when` is false").help("name a stage, or set what their `when` asks for")
                );
            }
            self.targets.clone()
        } else {
            let mut wanted = Vec::new();
            for target in targets {
                wanted.extend(self.matching(target)?);
            }
            wanted
        };
        if wanted.is_empty() {
            return Ok(self.order.clone());
        }
        Ok(self.with_ancestors(&wanted))
    }
    /// These stages and all that they need, directly or not, in topological order.
    pub fn with_ancestors(&self, of: &[StageId]) -> Vec<StageId> {
        let closure = self.closure(of);
        self.order.iter().copied().filter(|s| closure.contains(s)).collect()
    }

    /// The stages that a name, a matrix, `stage.port` or a pattern with `*` and `?` means.
    pub fn matching(&self, text: &str) -> Result<Vec<StageId>, Problem> {
        if text.contains(['*', '?']) {
            let found: Vec<_> = self.order.iter().copied().filter(|id| wildcard(text, &self.stage(*id).name)).collect();
            if found.is_empty() {
                return Err(Problem::new(format!("no stage's name matches `{text}`")).help("`flow status PIPELINE` lists the stages"));
            }
            return Ok(found);
        }
        let name = PortRef::parse(text, Vec::new()).stage;
        match self.pipeline.groups.get(&name) {
            Some(members) if !members.is_empty() => members.iter().map(|m| self.find(m)).collect(),
            _ => Ok(vec![self.find(&name)?]),
        }
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

impl Makers for Plan {
    fn maker<'a>(&'a self, stage: usize, port: &str) -> Option<Maker<'a>> {
        let wire = self.stages[stage].inputs.iter().find(|w| w.port == port)?;
        let from = self.stage(wire.from);
        let wired = Wired::new(self, wire.from.0);
        Some(Maker { kind: from.kind.name(), params: &from.params, output: &wire.output, dir: &from.dir, wired })
    }
}

/// Whether `name` fits a pattern in which `*` stands for anything and `?` for one character.
fn wildcard(pattern: &str, name: &str) -> bool {
    let mut ends = vec![0];
    for c in pattern.chars() {
        let mut next = Vec::new();
        for at in ends {
            let rest = &name[at..];
            match c {
                '*' => next.extend(rest.char_indices().map(|(i, _)| at + i).chain([name.len()])),
                '?' => next.extend(rest.chars().next().map(|x| at + x.len_utf8())),
                c => next.extend(rest.starts_with(c).then(|| at + c.len_utf8())),
            }
        }
        next.sort_unstable();
        next.dedup();
        ends = next;
    }
    ends.contains(&name.len())
}
