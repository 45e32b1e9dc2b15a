//! `${var}`: the only templating there is.

use serde_json::{Map, Value};

use crate::document::Document;
use crate::problem::{Problem, suggest};

/// Replaces every `${name}` below `path` in `value`. A scalar that is exactly `${name}` takes the type of
/// the variable; inside other text its value is written out. `$${` stands for `${`.
pub fn substitute(document: &Document, vars: &Map<String, Value>, path: &mut Vec<String>, value: &Value) -> Result<Value, Problem> {
    Resolver { document, vars, open: Vec::new() }.value(path, value)
}

/// A scalar as it stands inside a text.
pub fn text_of(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

struct Resolver<'a> {
    document: &'a Document,
    vars: &'a Map<String, Value>,
    /// Variables being resolved, to find one that needs itself.
    open: Vec<String>,
}

impl Resolver<'_> {
    fn value(&mut self, path: &mut Vec<String>, value: &Value) -> Result<Value, Problem> {
        Ok(match value {
            Value::String(text) => self.text(path, text)?,
            Value::Array(items) => {
                let mut out = Vec::with_capacity(items.len());
                for (i, item) in items.iter().enumerate() {
                    path.push(i.to_string());
                    out.push(self.value(path, item)?);
                    path.pop();
                }
                Value::Array(out)
            }
            Value::Object(map) => {
                let mut out = Map::new();
                for (key, item) in map {
                    path.push(key.clone());
                    out.insert(key.clone(), self.value(path, item)?);
                    path.pop();
                }
                Value::Object(out)
            }
            other => other.clone(),
        })
    }

    fn text(&mut self, path: &mut Vec<String>, text: &str) -> Result<Value, Problem> {
        if let Some(name) = text.strip_prefix("${").and_then(|t| t.strip_suffix('}'))
            && !name.contains('}')
        {
            return self.variable(path, name);
        }
        let mut out = String::new();
        let mut rest = text;
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
                Value::Array(_) | Value::Object(_) => {
                    return Err(self.document.at_value(path, "a list or mapping cannot stand inside a text"));
                }
                scalar => out.push_str(&text_of(&scalar)),
            }
            rest = &rest[at + end + 1..];
        }
        out.push_str(rest);
        Ok(Value::String(out))
    }

    fn variable(&mut self, path: &mut Vec<String>, name: &str) -> Result<Value, Problem> {
        let name = name.trim();
        let Some(value) = self.vars.get(name) else {
            let help = suggest(name, self.vars.keys().map(String::as_str));
            return Err(self.document.at_value(path, format!("unknown variable `{name}`")).help(help));
        };
        if self.open.iter().any(|o| o == name) {
            return Err(self.document.at_value(path, format!("variable `{name}` needs itself: {} → {name}", self.open.join(" → "))));
        }
        self.open.push(name.to_owned());
        let value = self.value(path, &value.clone());
        self.open.pop();
        value
    }
}
