//! The walk over a YAML text's events, which builds values and notes where each of them stands.

use std::collections::HashMap;
use std::ops::Range;

use saphyr_parser::{Event, Parser, ScalarStyle, Span, Tag};

use crate::node::{Fields, Node, Scalar};

/// No pipeline nests deeper, and the stack is finite.
const DEEPEST: usize = 100;
/// Values that aliases may bring beyond one for each byte of the text: a few lines of them can mean billions.
const MOST_COPIES: usize = 1_000_000;

/// What is wrong, where, and what to do.
pub(crate) type WalkError = (String, Range<usize>, Option<String>);

/// Where a key and its value stand.
#[derive(Clone, Debug, Default)]
pub(crate) struct Place {
    pub key: Option<Range<usize>>,
    pub value: Range<usize>,
}

pub(crate) struct Walk<'a> {
    text: &'a str,
    /// Byte offset of each character, where the text is not plain ASCII.
    bytes: Option<Vec<usize>>,
    parser: Parser<'a, saphyr_parser::StrInput<'a>>,
    /// Noted only where they are asked for.
    places: Option<HashMap<Vec<String>, Place>>,
    path: Vec<String>,
    anchors: HashMap<usize, Node>,
    /// Values that aliases brought so far.
    copies: usize,
}

impl<'a> Walk<'a> {
    pub fn new(text: &'a str) -> Self {
        let bytes = (!text.is_ascii()).then(|| text.char_indices().map(|(i, _)| i).collect());
        let parser = Parser::new_from_str(text);
        Self { text, bytes, parser, places: None, path: Vec::new(), anchors: HashMap::new(), copies: 0 }
    }

    /// The values of the one document.
    pub fn values(mut self) -> Result<Node, WalkError> {
        self.document()
    }

    /// Where each path is.
    pub fn places(mut self) -> Result<HashMap<Vec<String>, Place>, WalkError> {
        self.places = Some(HashMap::new());
        self.document()?;
        Ok(self.places.unwrap_or_default())
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

    fn wrong<T>(&self, span: &Span, message: impl Into<String>, help: &str) -> Result<T, WalkError> {
        Err((message.into(), self.range(span), Some(help.to_owned()).filter(|h| !h.is_empty())))
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

    fn document(&mut self) -> Result<Node, WalkError> {
        if let Some((at, c)) = self.text.char_indices().find(|(_, c)| !is_printable(*c)) {
            return Err(("not valid YAML: control characters are not allowed".into(), at..at + c.len_utf8(), None));
        }
        let mut documents = 0;
        let mut root = Node::null();
        loop {
            let (event, span) = self.next()?;
            match event {
                Event::StreamEnd => return Ok(root),
                Event::DocumentStart(_) => {
                    documents += 1;
                    if documents > 1 {
                        return self.wrong(&span, "a pipeline is one YAML document, this is a second", "");
                    }
                }
                Event::StreamStart | Event::DocumentEnd | Event::Nothing => {}
                other => root = self.value(other, &span, None)?,
            }
        }
    }

    fn value(&mut self, event: Event<'a>, span: &Span, key: Option<Range<usize>>) -> Result<Node, WalkError> {
        if self.path.len() > DEEPEST {
            return self.wrong(span, format!("more than {DEEPEST} levels of nesting"), "");
        }
        let value = self.range(span);
        if let Some(places) = &mut self.places {
            places.insert(self.path.clone(), Place { key, value });
        }
        let (node, anchor) = match event {
            Event::Scalar(text, style, anchor, tag) => (Node::Scalar(self.scalar(&text, style, tag.as_deref(), span)?), anchor),
            Event::MappingStart(anchor, tag) => {
                self.collection_tag(tag.as_deref(), span)?;
                (Node::Map(self.fields()?), anchor)
            }
            Event::SequenceStart(anchor, tag) => {
                self.collection_tag(tag.as_deref(), span)?;
                (Node::List(self.items()?), anchor)
            }
            Event::Alias(anchor) => return self.alias(anchor, span),
            _ => return self.wrong(span, "not valid YAML: a value is missing here", ""),
        };
        if anchor > 0 {
            self.anchors.insert(anchor, node.clone());
        }
        Ok(node)
    }

    fn alias(&mut self, anchor: usize, span: &Span) -> Result<Node, WalkError> {
        let Some(node) = self.anchors.get(&anchor) else {
            return self.wrong(span, "an alias stands inside the value that it means", "move the anchor out of its own value");
        };
        self.copies += node.size();
        if self.copies > MOST_COPIES + self.text.len() {
            return self.wrong(span, format!("the aliases bring more than {MOST_COPIES} values"), "");
        }
        Ok(node.clone())
    }

    fn scalar(&self, text: &str, style: ScalarStyle, tag: Option<&Tag>, span: &Span) -> Result<Scalar, WalkError> {
        let plain = match tag {
            None => style == ScalarStyle::Plain,
            Some(tag) if tag.is_yaml_core_schema() && tag.suffix == "str" => false,
            Some(tag) if tag.is_yaml_core_schema() && ["int", "float", "bool", "null"].contains(&tag.suffix.as_str()) => true,
            Some(tag) => return self.wrong(span, format!("YAML tags such as `{tag}` mean nothing here"), ""),
        };
        Ok(Scalar { text: text.to_owned(), plain })
    }

    fn collection_tag(&self, tag: Option<&Tag>, span: &Span) -> Result<(), WalkError> {
        match tag {
            Some(tag) if !(tag.is_yaml_core_schema() && ["map", "seq"].contains(&tag.suffix.as_str())) => {
                self.wrong(span, format!("YAML tags such as `{tag}` mean nothing here"), "")
            }
            _ => Ok(()),
        }
    }

    fn items(&mut self) -> Result<Vec<Node>, WalkError> {
        let mut items = Vec::new();
        loop {
            let (event, span) = self.next()?;
            if matches!(event, Event::SequenceEnd) {
                return Ok(items);
            }
            self.path.push(items.len().to_string());
            items.push(self.value(event, &span, None)?);
            self.path.pop();
        }
    }

    /// The entries of a mapping: its own first, then what merges bring, the earlier source before the later.
    fn fields(&mut self) -> Result<Fields, WalkError> {
        let mut fields = Fields::new();
        let mut merged = Vec::new();
        loop {
            let (event, span) = self.next()?;
            let (name, merge) = match event {
                Event::MappingEnd => break,
                Event::Scalar(text, style, _, tag) => {
                    let key = self.scalar(&text, style, tag.as_deref(), &span)?;
                    let merge = key.plain && key.text == "<<";
                    (key.text, merge)
                }
                _ => return self.wrong(&span, "a key must be a plain word", ""),
            };
            let key = self.range(&span);
            if name.is_empty() && self.text.get(key.clone()).is_none_or(|t| !t.starts_with(['"', '\''])) {
                return self.wrong(&span, "a key must be a plain word", "");
            }
            if !merge && fields.contains_key(&name) {
                return self.wrong(&span, format!("key `{name}` is given twice"), "remove or rename one of the two");
            }
            let (event, span) = self.next()?;
            self.path.push(name);
            let value = self.value(event, &span, Some(key))?;
            let name = self.path.pop().unwrap_or_default();
            if merge {
                merged.extend(self.sources(value, &span)?);
            } else {
                fields.insert(name, value);
            }
        }
        for (name, value) in merged.into_iter().flatten() {
            fields.entry(name).or_insert(value);
        }
        Ok(fields)
    }

    /// The mappings that a merge key names.
    fn sources(&self, value: Node, span: &Span) -> Result<Vec<Fields>, WalkError> {
        let items = match value {
            Node::List(items) => items,
            one => vec![one],
        };
        let fields = items.into_iter().map(|node| match node {
            Node::Map(fields) => Some(fields),
            _ => None,
        });
        match fields.collect() {
            Some(sources) => Ok(sources),
            None => self.wrong(span, "`<<` takes a mapping or a list of mappings", "write it as `<<: *NAME` or `<<: [*ONE, *TWO]`"),
        }
    }
}

/// `c-printable` of YAML 1.2 (section 5.1); the parser takes anything.
fn is_printable(c: char) -> bool {
    matches!(c, '\t' | '\n' | '\r' | '\u{85}' | ' '..='~' | '\u{a0}'..='\u{fffd}' | '\u{10000}'..)
}

fn yaml_help(text: &str, at: usize) -> Option<String> {
    let line = text.get(..at)?.rsplit('\n').next()?;
    line.contains('\t').then(|| "YAML indents with spaces, never with tabs".into())
}
