//! YAML text as values with their places.
//!
//! Values come from `serde_yaml`. Places are only needed when something is wrong: they come then from the event
//! parser `saphyr-parser` over the same text, matched by path.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::{Arc, OnceLock};

use miette::NamedSource;
use saphyr_parser::{Event, Parser, Span};
use serde_json::{Map, Value};

use crate::problem::Problem;

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

#[derive(Clone, Debug, Default)]
struct Place {
    key: Option<Range<usize>>,
    value: Range<usize>,
}

/// A parsed file: its values and where each of them is.
#[derive(Clone, Debug)]
pub struct Document {
    name: String,
    text: Arc<str>,
    /// The values.
    pub root: Value,
    places: OnceLock<HashMap<Vec<String>, Place>>,
    overrides: Vec<(Vec<String>, String)>,
}

impl Document {
    /// Parses `text`; `name` is how the file is called in messages.
    pub fn parse(name: &str, text: &str) -> Result<Self, Problem> {
        let mut document = Self { name: name.into(), text: text.into(), root: Value::Null, places: OnceLock::new(), overrides: Vec::new() };
        let mut yaml: serde_yaml::Value = serde_yaml::from_str(text).map_err(|e| {
            // The event parser knows the place of most mistakes better.
            match Walk::new(text).walk() {
                Ok(_) => document.yaml_problem(&e),
                Err((message, span, help)) => document.at_bytes(message, span).maybe_help(help),
            }
        })?;
        if text.contains("<<") {
            yaml.apply_merge().map_err(|e| document.yaml_problem(&e))?;
        }
        document.root = to_json(yaml, &mut Vec::new()).map_err(|(path, message)| document.at_value(&path, message))?;
        Ok(document)
    }

    /// How the file is called in messages.
    pub fn name(&self) -> &str {
        &self.name
    }

    fn yaml_problem(&self, error: &serde_yaml::Error) -> Problem {
        let text = error.to_string();
        // The place is shown in the file itself.
        let message = text.split(" at line ").next().unwrap_or(&text);
        let (message, position) = message.split_once(" at position ").unwrap_or((message, ""));
        let at = position.parse().ok().or_else(|| error.location().map(|l| l.index())).unwrap_or(0);
        self.at_bytes(format!("not valid YAML: {message}"), at..at + 1)
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
        let places = self.places.get_or_init(|| Walk::new(&self.text).walk().unwrap_or_default());
        for len in (0..=path.len()).rev() {
            if let Some(place) = places.get(&path[..len]) {
                let span = if len == path.len() { pick(place) } else { place.key.clone().unwrap_or(place.value.clone()) };
                return self.at_bytes(message, span);
            }
        }
        Problem::new(message)
    }

    /// Sets the value at `path` as `origin` (a command-line argument) says; mappings on the way are made.
    pub fn set(&mut self, path: &Path, value: Value, origin: &str) -> Result<(), Problem> {
        let mut slot = &mut self.root;
        for part in path {
            slot = match slot {
                Value::Array(items) => {
                    let len = items.len();
                    part.parse::<usize>()
                        .ok()
                        .and_then(|i| items.get_mut(i))
                        .ok_or_else(|| Problem::new(format!("`{origin}`: the list has {len} items, no item `{part}`")))?
                }
                Value::Object(map) => map.entry(part.clone()).or_insert(Value::Null),
                other => {
                    *other = Value::Object(Map::new());
                    match other {
                        Value::Object(map) => map.entry(part.clone()).or_insert(Value::Null),
                        _ => return Err(Problem::new(format!("`{origin}` does not fit"))),
                    }
                }
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

/// One YAML scalar, list or mapping from the command line.
pub fn parse_value(text: &str) -> Result<Value, Problem> {
    let yaml: serde_yaml::Value = serde_yaml::from_str(text).map_err(|e| Problem::new(format!("`{text}` is not valid YAML: {e}")))?;
    to_json(yaml, &mut Vec::new()).map_err(|(_, message)| Problem::new(message))
}

fn to_json(yaml: serde_yaml::Value, path: &mut Vec<String>) -> Result<Value, (Vec<String>, String)> {
    use serde_yaml::Value as Y;
    Ok(match yaml {
        Y::Null => Value::Null,
        Y::Bool(b) => b.into(),
        Y::String(s) => s.into(),
        Y::Number(n) => match (n.as_u64(), n.as_i64(), n.as_f64().and_then(serde_json::Number::from_f64)) {
            (Some(u), _, _) => u.into(),
            (_, Some(i), _) => i.into(),
            (_, _, Some(f)) => Value::Number(f),
            _ => return Err((path.clone(), format!("`{n}` is not a number that a parameter can hold"))),
        },
        Y::Sequence(items) => {
            let mut out = Vec::new();
            for (i, item) in items.into_iter().enumerate() {
                path.push(i.to_string());
                out.push(to_json(item, path)?);
                path.pop();
            }
            Value::Array(out)
        }
        Y::Mapping(map) => {
            let mut out = Map::new();
            for (key, value) in map {
                let key = match key {
                    Y::String(s) => s,
                    Y::Number(n) => n.to_string(),
                    Y::Bool(b) => b.to_string(),
                    _ => return Err((path.clone(), "a key must be a plain word".into())),
                };
                path.push(key.clone());
                let value = to_json(value, path)?;
                path.pop();
                out.insert(key, value);
            }
            Value::Object(out)
        }
        Y::Tagged(tagged) => return Err((path.clone(), format!("YAML tags such as `{}` mean nothing here", tagged.tag))),
    })
}

/// No pipeline nests deeper, and the stack is finite.
const DEEPEST: usize = 100;

type WalkError = (String, Range<usize>, Option<String>);

/// Walks the events once and notes where each path is.
struct Walk<'a> {
    text: &'a str,
    /// Byte offset of each character, where the text is not plain ASCII.
    bytes: Option<Vec<usize>>,
    parser: Parser<'a, saphyr_parser::StrInput<'a>>,
    places: HashMap<Vec<String>, Place>,
    path: Vec<String>,
}

impl<'a> Walk<'a> {
    fn new(text: &'a str) -> Self {
        let bytes = (!text.is_ascii()).then(|| text.char_indices().map(|(i, _)| i).collect());
        Self { text, bytes, parser: Parser::new_from_str(text), places: HashMap::new(), path: Vec::new() }
    }

    fn byte(&self, chars: usize) -> usize {
        match &self.bytes {
            Some(bytes) => bytes.get(chars).copied().unwrap_or(self.text.len()),
            None => chars.min(self.text.len()),
        }
    }

    fn range(&self, span: &Span) -> Range<usize> {
        let (start, end) = (self.byte(span.start.index()), self.byte(span.end.index()));
        let text = self.text.get(start..end).unwrap_or_default();
        // A block value ends where the next token starts; a place is one line at most.
        let shown = text.lines().next().unwrap_or_default().trim_end();
        start..start + shown.len().max(1).min(self.text.len().saturating_sub(start))
    }

    fn next(&mut self) -> Result<(Event<'a>, Span), WalkError> {
        match self.parser.next_event() {
            Some(Ok(event)) => Ok(event),
            Some(Err(e)) => {
                let at = self.byte(e.marker().index());
                Err((format!("not valid YAML: {}", e.info()), at..at + 1, yaml_help(self.text, at)))
            }
            None => Ok((Event::StreamEnd, Span::default())),
        }
    }

    fn walk(mut self) -> Result<HashMap<Vec<String>, Place>, WalkError> {
        let mut documents = 0;
        loop {
            let (event, span) = self.next()?;
            match event {
                Event::StreamEnd => return Ok(self.places),
                Event::DocumentStart(_) => {
                    documents += 1;
                    if documents > 1 {
                        return Err(("a pipeline is one YAML document, this is a second".into(), self.range(&span), None));
                    }
                }
                Event::StreamStart | Event::DocumentEnd | Event::Nothing => {}
                other => self.value(other, &span, None)?,
            }
        }
    }

    fn value(&mut self, event: Event<'a>, span: &Span, key: Option<Range<usize>>) -> Result<(), WalkError> {
        let value = self.range(span);
        if self.path.len() > DEEPEST {
            return Err((format!("more than {DEEPEST} levels of nesting"), value, None));
        }
        self.places.insert(self.path.clone(), Place { key, value });
        match event {
            Event::MappingStart(..) => loop {
                let (event, span) = self.next()?;
                let name = match event {
                    Event::MappingEnd => return Ok(()),
                    Event::Scalar(text, ..) => text.into_owned(),
                    _ => return Err(("a key must be a plain word".into(), self.range(&span), None)),
                };
                let key = self.range(&span);
                if name == "<<" {
                    // A merge key may come several times, and its value is not where it is written.
                    let (event, span) = self.next()?;
                    self.path.push(name);
                    self.value(event, &span, Some(key))?;
                    self.path.pop();
                    continue;
                }
                self.path.push(name);
                if self.places.contains_key(&self.path) {
                    let name = self.path.last().cloned().unwrap_or_default();
                    return Err((format!("key `{name}` is given twice"), key, Some("remove or rename one of the two".into())));
                }
                let (event, span) = self.next()?;
                self.value(event, &span, Some(key))?;
                self.path.pop();
            },
            Event::SequenceStart(..) => {
                for i in 0.. {
                    let (event, span) = self.next()?;
                    if matches!(event, Event::SequenceEnd) {
                        break;
                    }
                    self.path.push(i.to_string());
                    self.value(event, &span, None)?;
                    self.path.pop();
                }
                Ok(())
            }
            _ => Ok(()),
        }
    }
}

fn yaml_help(text: &str, at: usize) -> Option<String> {
    let line = text.get(..at)?.rsplit('\n').next()?;
    line.contains('\t').then(|| "YAML indents with spaces, never with tabs".into())
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
        assert_eq!(document.root["y"], serde_json::json!({"b": 2, "a": 1}));
        assert_eq!(document.root["z"]["a"], 1);
    }
}
