//! Parameters by the types that a kind's JSON Schema gives them.
//!
//! A scalar is the text that was typed until it fills a parameter: where a text is wanted it stays that text (`3.10`, `0o17`, a
//! commit's digits), where a number is wanted it is read by YAML 1.2's core schema, and a count may be grouped or scaled
//! (`1_000_000`, `1M`, `1e6`). Where several types would do, or none is said, the core schema decides.

use serde_json::{Map, Value};

use crate::kind::Refused;
use crate::node::{Meaning, Node, Scalar};
use crate::schema::{plausible, resolve};

/// The parameters as JSON. What fits no type is handed on as the core schema reads it: the kind says what it expected.
pub fn read(schema: &Value, node: &Node) -> Result<Value, Refused> {
    Reading { root: schema, path: Vec::new() }.value(&[schema], node)
}

struct Reading<'a> {
    root: &'a Value,
    path: Vec<String>,
}

/// Which types of JSON a place takes.
#[derive(Clone, Copy, Default)]
struct Takes {
    null: bool,
    boolean: bool,
    integer: bool,
    number: bool,
    string: bool,
    /// Nothing is said.
    anything: bool,
}

impl<'a> Reading<'a> {
    fn value(&mut self, schemas: &[&'a Value], node: &Node) -> Result<Value, Refused> {
        match node {
            Node::Scalar(scalar) => self.scalar(self.takes(schemas), scalar),
            Node::List(items) => {
                let branches = self.branches(schemas, node);
                let mut out = Vec::with_capacity(items.len());
                for (i, item) in items.iter().enumerate() {
                    let tuple = branches.iter().filter_map(|s| s.get("prefixItems")?.get(i));
                    let mut sub: Vec<_> = tuple.collect();
                    if sub.is_empty() {
                        sub = branches.iter().filter_map(|s| s.get("items")).collect();
                    }
                    out.push(self.below(&i.to_string(), &sub, item)?);
                }
                Ok(Value::Array(out))
            }
            Node::Map(fields) => {
                let branches = self.branches(schemas, node);
                let mut out = Map::new();
                for (key, item) in fields {
                    let named = branches.iter().filter_map(|s| s.get("properties")?.get(key));
                    let mut sub: Vec<_> = named.collect();
                    if sub.is_empty() {
                        sub = branches.iter().filter_map(|s| s.get("additionalProperties")).filter(|s| s.is_object()).collect();
                    }
                    out.insert(key.clone(), self.below(key, &sub, item)?);
                }
                Ok(Value::Object(out))
            }
        }
    }

    fn below(&mut self, part: &str, schemas: &[&'a Value], node: &Node) -> Result<Value, Refused> {
        self.path.push(part.to_owned());
        let value = self.value(schemas, node)?;
        self.path.pop();
        Ok(value)
    }

    /// The schemas themselves and what their references and unions lead to, as far as a list or mapping may mean them.
    fn branches(&self, schemas: &[&'a Value], node: &Node) -> Vec<&'a Value> {
        let mut found: Vec<&Value> = Vec::new();
        let mut open: Vec<&Value> = schemas.to_vec();
        // A schema may refer to itself.
        while let Some(schema) = open.pop().filter(|_| found.len() < 256) {
            found.push(schema);
            open.extend(resolve(self.root, schema));
            for word in ["anyOf", "oneOf", "allOf"] {
                let branches = schema.get(word).and_then(Value::as_array).into_iter().flatten();
                open.extend(branches.filter(|branch| plausible(self.root, branch, &node.shown())));
            }
        }
        found
    }

    fn takes(&self, schemas: &[&'a Value]) -> Takes {
        let mut takes = Takes { anything: schemas.is_empty(), ..Takes::default() };
        let mut open: Vec<&Value> = schemas.to_vec();
        let mut seen = 0;
        while let Some(schema) = open.pop().filter(|_| seen < 256) {
            seen += 1;
            let unions: Vec<_> = ["anyOf", "oneOf", "allOf"].iter().filter_map(|w| schema.get(*w)?.as_array()).flatten().collect();
            let target = resolve(self.root, schema);
            let fixed = schema.get("const").into_iter().chain(schema.get("enum").and_then(Value::as_array).into_iter().flatten());
            match schema.get("type") {
                Some(Value::String(name)) => takes.add(name),
                Some(Value::Array(names)) => names.iter().filter_map(Value::as_str).for_each(|name| takes.add(name)),
                _ => {
                    let before = seen;
                    for value in fixed {
                        seen += 1;
                        takes.add(type_of(value));
                    }
                    takes.anything |= before == seen && target.is_none() && unions.is_empty();
                }
            }
            open.extend(target);
            open.extend(unions);
        }
        takes
    }

    fn scalar(&self, takes: Takes, scalar: &Scalar) -> Result<Value, Refused> {
        let text = || Value::String(scalar.text.clone());
        let number = takes.integer || takes.number || takes.anything;
        let count = || if takes.integer { scalar.count().map(Value::Number) } else { None };
        Ok(match scalar.meaning() {
            // Nothing is no text, but `null` may be one.
            Meaning::Null if takes.null || takes.anything || !takes.string || ["", "~"].contains(&scalar.text.as_str()) => Value::Null,
            Meaning::Bool(b) if takes.boolean || takes.anything || !takes.string => b.into(),
            Meaning::Whole(n) if number || !takes.string => n.into(),
            Meaning::Real(x) if takes.number || takes.anything => x.into(),
            Meaning::Real(x) => count().unwrap_or_else(|| if takes.string { text() } else { x.into() }),
            Meaning::Huge if takes.number && !takes.integer => scalar.text.parse::<f64>().unwrap_or(f64::MAX).into(),
            Meaning::Huge | Meaning::NotFinite if number && !takes.string => return Err(self.beyond(scalar)),
            Meaning::Text if !takes.string => count().unwrap_or_else(text),
            _ => text(),
        })
    }

    fn beyond(&self, scalar: &Scalar) -> Refused {
        let message = format!("`{}` is not a number that a parameter can hold", scalar.text);
        let help = "write it in quotes where it is a text";
        Refused { path: self.path.clone(), at_key: false, message, help: Some(help.into()) }
    }
}

impl Takes {
    fn add(&mut self, name: &str) {
        match name {
            "null" => self.null = true,
            "boolean" => self.boolean = true,
            "integer" => self.integer = true,
            "number" => self.number = true,
            "string" => self.string = true,
            _ => {}
        }
    }
}

fn type_of(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "boolean",
        Value::Number(n) if n.is_f64() => "number",
        Value::Number(_) => "integer",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::document::Document;

    fn typed(schema: &Value, yaml: &str) -> Result<Value, Refused> {
        read(schema, &Document::parse("p.yaml", yaml).expect("YAML").root)
    }

    #[test]
    fn a_scalar_is_its_text_where_a_text_is_wanted() {
        let schema = json!({ "properties": { "s": { "type": "string" }, "o": { "type": ["string", "null"] }, "n": { "type": "number" },
            "c": { "type": "integer" }, "m": { "type": "object", "additionalProperties": { "type": "string" } }, "b": { "type": "boolean" },
            "u": { "anyOf": [{ "$ref": "#/$defs/text" }, { "type": "number" }] }, "l": { "items": { "$ref": "#/$defs/text" } },
            "e": { "oneOf": [{ "const": "f16" }, { "const": "f32" }] }, "any": true }, "$defs": { "text": { "type": "string" } } });
        let cases = [
            ("s: 3.10", json!({ "s": "3.10" })),
            ("s: 0o17", json!({ "s": "0o17" })),
            ("s: 1234567890123456789012", json!({ "s": "1234567890123456789012" })),
            ("s: true", json!({ "s": "true" })),
            ("s: null", json!({ "s": "null" })),
            ("s: ~", json!({ "s": null })),
            ("s: ''", json!({ "s": "" })),
            ("o: null", json!({ "o": null })),
            ("o: 1e3", json!({ "o": "1e3" })),
            ("n: 0x1F", json!({ "n": 31 })),
            ("n: 1e3", json!({ "n": 1000.0 })),
            ("n: 1234567890123456789012", json!({ "n": 1234567890123456789012.0 })),
            ("n: '1'", json!({ "n": "1" })),
            ("c: 1_000_000", json!({ "c": 1_000_000 })),
            ("c: 1M", json!({ "c": 1_000_000 })),
            ("c: 1e6", json!({ "c": 1_000_000 })),
            ("c: 1.5", json!({ "c": 1.5 })),
            ("c: warm", json!({ "c": "warm" })),
            ("m: { A: 3.10, B: on, C: 007 }", json!({ "m": { "A": "3.10", "B": "on", "C": "007" } })),
            ("b: True", json!({ "b": true })),
            ("u: 5", json!({ "u": 5 })),
            ("u: 5s", json!({ "u": "5s" })),
            ("l: [1.0, 1e3]", json!({ "l": ["1.0", "1e3"] })),
            ("e: f16", json!({ "e": "f16" })),
            ("any: { a: 3.10, b: [1M, ~] }", json!({ "any": { "a": 3.1, "b": ["1M", null] } })),
            ("unknown: 3.10", json!({ "unknown": 3.1 })),
        ];
        for (yaml, wanted) in cases {
            assert_eq!(typed(&schema, yaml).map_err(|r| r.message), Ok(wanted), "{yaml}");
        }
        for yaml in ["c: 1234567890123456789012", "any: 1234567890123456789012", "any: .inf", "n: 1e999"] {
            assert!(typed(&schema, yaml).is_err(), "{yaml}");
        }
    }
}
