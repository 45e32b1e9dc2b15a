//! A pipeline file and what it includes, as typed declarations, before kinds are known.
//!
//! This file reads the texts and changes them as the command line says; `reader` makes the declarations in `decl` of them.

mod decl;
mod reader;

use std::path::{Path, PathBuf};

use crate::document::{Document, parse_value, typed_text};
use crate::node::Node;
use crate::path;
use crate::problem::{Problem, Problems, suggest};
use crate::text;
pub use decl::{Overrides, Pipeline, PluginDecl, PortRef, RemoteDecl, StageDecl, project_root};
use reader::{Part, STAGE_KEYS};

// Apart from its type on purpose: the reader takes the type, and is called from here.
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
