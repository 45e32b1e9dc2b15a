//! The DAG as text for other tools.

use std::fmt::Write;

use crate::plan::{Plan, StageId};

/// Graphviz.
pub fn dot(plan: &Plan, selected: &[StageId]) -> String {
    let mut out = String::from("digraph flow {\n  rankdir=LR;\n  node [shape=box, fontname=\"sans-serif\"];\n");
    for id in selected {
        let stage = plan.stage(*id);
        let _ = writeln!(out, "  \"{0}\" [label=\"{0}\\n{1}\"];", stage.name, stage.kind.name());
    }
    edges(plan, selected, |from, to, label| match label {
        Some(label) => {
            let _ = writeln!(out, "  \"{from}\" -> \"{to}\" [label=\"{label}\"];");
        }
        None => {
            let _ = writeln!(out, "  \"{from}\" -> \"{to}\" [style=dashed];");
        }
    });
    out.push_str("}\n");
    out
}

/// Mermaid.
pub fn mermaid(plan: &Plan, selected: &[StageId]) -> String {
    let mut out = String::from("flowchart LR\n");
    for id in selected {
        let stage = plan.stage(*id);
        let _ = writeln!(out, "  {}[\"{}<br/>{}\"]", node(&stage.name), stage.name, stage.kind.name());
    }
    edges(plan, selected, |from, to, label| match label {
        Some(label) => {
            let _ = writeln!(out, "  {} -->|{label}| {}", node(from), node(to));
        }
        None => {
            let _ = writeln!(out, "  {} -.-> {}", node(from), node(to));
        }
    });
    out
}

/// Mermaid's node ids hold no brackets.
fn node(name: &str) -> String {
    name.replace(['[', ',', '='], "_").replace(']', "")
}

fn edges(plan: &Plan, selected: &[StageId], mut emit: impl FnMut(&str, &str, Option<&str>)) {
    for id in selected {
        let stage = plan.stage(*id);
        for wire in &stage.inputs {
            emit(&plan.stage(wire.from).name, &stage.name, Some(&wire.port));
        }
        for other in stage.after.iter().chain(stage.requires.iter().map(|(gate, _)| gate)) {
            emit(&plan.stage(*other).name, &stage.name, None);
        }
    }
}
