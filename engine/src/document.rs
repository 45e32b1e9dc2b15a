//! YAML text as [`Node`]s with their places.
//!
//! One walk over the events of `saphyr-parser` builds the values, so that each scalar keeps the text and the style in which it was
//! written. Places are only needed when something is wrong: a second walk notes them then, by path.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::{Arc, OnceLock};

use miette::NamedSource;

use crate::node::{Fields, Node, Scalar};
use crate::problem::Problem;
use crate::walk::{Place, Walk};

/// A path into the document: mapping keys and sequence indices.
pub type Path = [String];

/// The path of these parts.
pub fn path_of(parts: &[&dyn std::fmt::Display]) -> Vec<String> {
    parts.iter().map(ToString::to_string).collect()
}

/// Builds an owned path.
#[macro_export]
#[doc(hidden)]
macro_rules! path {
    ($($part:expr),* $(,)?) => { $crate::document::path_of(&[$(&$part as &dyn std::fmt::Display),*]) };
}

/// A parsed file: its values and where each of them is.
#[derive(Clone, Debug)]
pub struct Document {
    name: String,
    text: Arc<str>,
    /// The values.
    pub root: Node,
    places: OnceLock<HashMap<Vec<String>, Place>>,
    overrides: Vec<(Vec<String>, String)>,
}

impl Document {
    /// Parses `text`; `name` is how the file is called in messages.
    pub fn parse(name: &str, text: &str) -> Result<Self, Problem> {
        let text = text.strip_prefix('\u{feff}').unwrap_or(text);
        let mut document =
            Self { name: name.into(), text: text.into(), root: Node::null(), places: OnceLock::new(), overrides: Vec::new() };
        match Walk::new(text).values() {
            Ok(root) => document.root = root,
            Err((message, span, help)) => return Err(document.at_bytes(message, span).maybe_help(help)),
        }
        Ok(document)
    }

    /// How the file is called in messages.
    pub fn name(&self) -> &str {
        &self.name
    }

    fn at_bytes(&self, message: impl Into<String>, span: Range<usize>) -> Problem {
        let mut problem = Problem::new(message);
        // A place may lie within a character: parsers count bytes.
        let boundary = |at: &usize| self.text.is_char_boundary(*at);
        let start = (0..=span.start.min(self.text.len())).rev().find(boundary).unwrap_or(0);
        let end = (span.end.clamp(start, self.text.len())..=self.text.len()).find(boundary).unwrap_or(self.text.len());
        let lines_before = self.text.get(..start).unwrap_or_default().rsplit('\n');
        if lines_before.take(1).any(|l| l.len() > LONGEST_LINE) {
            let line = self.text.get(..start).unwrap_or_default().matches('\n').count() + 1;
            problem.message = format!("{} (line {line} of {}, which is too long to show)", problem.message, self.name);
            return problem;
        }
        let text = clipped(&self.text);
        let cut = |at: usize| self.text.get(..at).map_or(0, clipped_len);
        let (start, end) = (cut(start), cut(end));
        problem.source_code = Some(Arc::new(NamedSource::new(&self.name, text).with_language("YAML")));
        problem.span = Some((start, end - start).into());
        problem
    }

    /// A problem with the value at `path` (or the nearest that has a place above it).
    pub fn at_value(&self, path: &Path, message: impl Into<String>) -> Problem {
        self.problem(path, message.into(), |p| p.value.clone())
    }

    /// A problem with the key at `path`.
    pub fn at_key(&self, path: &Path, message: impl Into<String>) -> Problem {
        self.problem(path, message.into(), |p| p.key.clone().unwrap_or(p.value.clone()))
    }

    fn problem(&self, path: &Path, message: String, pick: impl Fn(&Place) -> Range<usize>) -> Problem {
        if let Some((_, origin)) = self.overrides.iter().find(|(o, _)| path.starts_with(o)) {
            return Problem::new(format!("{message} (set by `{origin}`)"));
        }
        let places = self.places.get_or_init(|| Walk::new(&self.text).places().unwrap_or_default());
        for len in (0..=path.len()).rev() {
            if let Some(place) = places.get(&path[..len]) {
                let span = if len == path.len() { pick(place) } else { place.key.clone().unwrap_or(place.value.clone()) };
                return self.at_bytes(message, span);
            }
        }
        Problem::new(message)
    }

    /// Sets the value at `path` as `origin` (a command-line argument) says; mappings on the way are made.
    pub fn set(&mut self, path: &Path, value: Node, origin: &str) -> Result<(), Problem> {
        let mut slot = &mut self.root;
        for part in path {
            if let Node::Scalar(_) = slot {
                *slot = Node::Map(Fields::new());
            }
            slot = match slot {
                Node::List(items) => {
                    let len = items.len();
                    let item = part.parse::<usize>().ok().and_then(|i| items.get_mut(i));
                    item.ok_or_else(|| Problem::new(format!("`{origin}`: the list has {len} items, no item `{part}`")))?
                }
                Node::Map(fields) => fields.entry(part.clone()).or_insert_with(Node::null),
                Node::Scalar(_) => return Err(Problem::new(format!("`{origin}` does not fit"))),
            };
        }
        *slot = value;
        self.overrides.push((path.to_vec(), origin.into()));
        Ok(())
    }
}

/// Longer lines are cut where they are shown.
const LONGEST_LINE: usize = 400;

/// The text with long lines cut, so that a message never prints megabytes.
fn clipped(text: &Arc<str>) -> Arc<str> {
    if text.lines().all(|l| l.len() <= LONGEST_LINE) {
        return text.clone();
    }
    let lines: Vec<_> = text.split('\n').map(|l| &l[..clipped_line(l)]).collect();
    lines.join("\n").into()
}

fn clipped_line(line: &str) -> usize {
    (0..=LONGEST_LINE.min(line.len())).rev().find(|&at| line.is_char_boundary(at)).unwrap_or(0)
}

/// How long the beginning of a text is when its lines are cut.
fn clipped_len(before: &str) -> usize {
    before.split('\n').map(|l| clipped_line(l) + 1).sum::<usize>() - 1
}

/// A value of the command line: exactly the text, unless it is written as a list (`[`), a mapping (`{`) or in quotes.
pub fn parse_value(text: &str) -> Result<Node, Problem> {
    if text.starts_with(['[', '{', '"', '\'']) {
        return Walk::new(text).values().map_err(|(message, ..)| {
            Problem::new(format!("`{text}`: {message}")).help("a value that begins with `[`, `{` or a quote is read as YAML")
        });
    }
    Ok(typed_text(text))
}

/// A scalar that is exactly this text; nothing typed is the empty text.
pub fn typed_text(text: &str) -> Node {
    Node::Scalar(Scalar { text: text.into(), plain: !text.is_empty() })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(text: &str, path: &[&str], key: bool) -> String {
        let document = Document::parse("p.yaml", text).unwrap();
        let path: Vec<_> = path.iter().map(ToString::to_string).collect();
        let p = if key { document.at_key(&path, "m") } else { document.at_value(&path, "m") };
        let span = p.span.unwrap();
        text[span.offset()..span.offset() + span.len()].to_owned()
    }

    #[test]
    fn places_are_bytes_even_after_other_alphabets() {
        let text = "# übung – ж\na:\n  b: { c: \"${x}\", d: [1, zwei] } # kommentar\n  \u{e9}t\u{e9}: 3\n";
        assert_eq!(shown(text, &["a", "b", "c"], true), "c");
        assert_eq!(shown(text, &["a", "b", "c"], false), "\"${x}\"");
        assert_eq!(shown(text, &["a", "b", "d", "1"], false), "zwei");
        assert_eq!(shown(text, &["a", "\u{e9}t\u{e9}"], false), "3");
        assert_eq!(shown(text, &["a", "b", "nothing"], false), "b", "falls back to the nearest place above");
    }

    #[test]
    fn duplicate_keys_are_found_where_they_are() {
        let problem = Document::parse("p.yaml", "a: 1\nb: 2\na: 3\n").unwrap_err();
        assert_eq!(problem.line_column(), Some((3, 1)));
        assert!(problem.message.contains("`a` is given twice"));
    }

    #[test]
    fn aliases_and_merges_are_values() {
        let document = Document::parse("p.yaml", "x: &x { a: 1 }\ny: { <<: *x, b: 2 }\nz: *x\n").unwrap();
        assert_eq!(document.root.get("y").map(Node::shown), Some(serde_json::json!({"b": 2, "a": 1})));
        assert_eq!(document.root.get("z").map(Node::shown), Some(serde_json::json!({"a": 1})));
    }
}
