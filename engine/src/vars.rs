//! `${var}`: the only templating there is.

use crate::document::Document;
use crate::node::{Fields, Node, Scalar};
use crate::problem::{Problem, suggest};

/// Replaces every `${name}` below `path` in `value`. A scalar that is exactly `${name}` becomes the value of the variable;
/// inside other text its characters are written out as they were typed. `$${` stands for `${`.
pub fn substitute(document: &Document, vars: &Fields, path: &mut Vec<String>, value: &Node) -> Result<Node, Problem> {
    Resolver { document, vars, open: Vec::new() }.value(path, value)
}

struct Resolver<'a> {
    document: &'a Document,
    vars: &'a Fields,
    /// Variables being resolved, to find one that needs itself.
    open: Vec<String>,
}

impl Resolver<'_> {
    fn value(&mut self, path: &mut Vec<String>, value: &Node) -> Result<Node, Problem> {
        Ok(match value {
            Node::Scalar(scalar) => self.scalar(path, scalar)?,
            Node::List(items) => {
                let mut out = Vec::with_capacity(items.len());
                for (i, item) in items.iter().enumerate() {
                    path.push(i.to_string());
                    out.push(self.value(path, item)?);
                    path.pop();
                }
                Node::List(out)
            }
            Node::Map(fields) => {
                let mut out = Fields::with_capacity(fields.len());
                for (key, item) in fields {
                    path.push(key.clone());
                    out.insert(key.clone(), self.value(path, item)?);
                    path.pop();
                }
                Node::Map(out)
            }
        })
    }

    fn scalar(&mut self, path: &mut Vec<String>, scalar: &Scalar) -> Result<Node, Problem> {
        let text = &scalar.text;
        if !text.contains("${") {
            return Ok(Node::Scalar(scalar.clone()));
        }
        if let Some(name) = text.strip_prefix("${").and_then(|t| t.strip_suffix('}'))
            && !name.contains('}')
        {
            return self.variable(path, name);
        }
        let mut out = String::new();
        let mut rest = text.as_str();
        while let Some(at) = rest.find("${") {
            if rest[..at].ends_with('$') {
                out.push_str(&rest[..at - 1]);
                out.push_str("${");
                rest = &rest[at + 2..];
                continue;
            }
            out.push_str(&rest[..at]);
            let end = rest[at..].find('}').ok_or_else(|| {
                self.document.at_value(path, "`${` without its `}`").help("write `$${` for the two characters themselves")
            })?;
            match self.variable(path, &rest[at + 2..at + end])? {
                Node::Scalar(scalar) => out.push_str(&scalar.text),
                Node::List(_) | Node::Map(_) => {
                    return Err(self.document.at_value(path, "a list or mapping cannot stand inside a text"));
                }
            }
            rest = &rest[at + end + 1..];
        }
        out.push_str(rest);
        Ok(Node::Scalar(Scalar::text(out)))
    }

    fn variable(&mut self, path: &mut Vec<String>, name: &str) -> Result<Node, Problem> {
        let name = name.trim();
        let Some(value) = self.vars.get(name) else {
            let help = suggest(name, self.vars.keys().map(String::as_str));
            return Err(self.document.at_value(path, format!("unknown variable `{name}`")).help(help));
        };
        if self.open.iter().any(|o| o == name) {
            return Err(self.document.at_value(path, format!("variable `{name}` needs itself: {} → {name}", self.open.join(" → "))));
        }
        self.open.push(name.to_owned());
        let value = self.value(path, value);
        self.open.pop();
        value
    }
}
