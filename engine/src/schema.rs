//! JSON Schemas: which parameters are sources or outside the key, and the schema of the whole file.

use serde_json::{Map, Value, json};

use crate::plugin::{InputPort, OutputPort};
use crate::problem::suggest;
use crate::registry::{Refused, Registry};

/// What a schema says about a parameter beyond its type.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Mark {
    /// Keyed by the content of the file at this path.
    SourceFile,
    /// Keyed by the content of the directory at this path.
    SourceDir,
    /// Keyed by the content of the file or directory at this path.
    SourcePath,
    /// Keyed by the content of all files that this path or glob means.
    SourceGlob,
    /// Keyed by the value of the environment variable that the key of this entry names.
    Env,
    /// Never in the key.
    NoKey,
    /// Names the environment variable that holds a secret; never in the key.
    Secret,
}

/// The marks of all parameters that `value` gives.
pub fn marks(schema: &Value, value: &Value) -> Vec<(Vec<String>, Mark)> {
    let mut found = Vec::new();
    walk(schema, schema, value, &mut Vec::new(), 0, &mut |schema, value, path| {
        let mark = match (schema.get("x-flow").and_then(Value::as_str), schema.get("x-key")) {
            (Some("source-file"), _) if value.is_string() => Mark::SourceFile,
            (Some("source-dir"), _) if value.is_string() => Mark::SourceDir,
            (Some("source-path"), _) if value.is_string() => Mark::SourcePath,
            (Some("source-glob"), _) if value.is_string() => Mark::SourceGlob,
            (Some("env"), _) if value.is_object() => Mark::Env,
            (Some("secret-env"), _) => Mark::Secret,
            (_, Some(Value::Bool(false))) => Mark::NoKey,
            _ => return,
        };
        if !found.contains(&(path.to_vec(), mark)) {
            found.push((path.to_vec(), mark));
        }
    });
    found
}

/// Refuses keys that a closed object of the schema does not have, with the nearest name.
pub fn refuse_unknown(schema: &Value, value: &Value) -> Result<(), Refused> {
    let mut refused = None;
    walk(schema, schema, value, &mut Vec::new(), 0, &mut |schema, value, path| {
        let (Some(map), Some(properties)) = (value.as_object(), schema.get("properties").and_then(Value::as_object)) else { return };
        if refused.is_some() || schema.get("additionalProperties") != Some(&Value::Bool(false)) {
            return;
        }
        if let Some(name) = map.keys().find(|k| !properties.contains_key(*k)) {
            let mut path = path.to_vec();
            path.push(name.clone());
            // A parameter that took another's place says so by its `x-was`.
            let (message, help) = match properties.iter().find(|(_, p)| p.get("x-was").and_then(Value::as_str) == Some(name)) {
                Some((now, p)) => {
                    let what = p.get("description").and_then(Value::as_str).unwrap_or_default().replace('\n', " ");
                    (format!("`{now}` took the place of the parameter `{name}`"), format!("`{now}`: {what}"))
                }
                None => (format!("unknown parameter `{name}`"), suggest(name, properties.keys().map(String::as_str))),
            };
            refused = Some(Refused { path, at_key: true, message, help: Some(help) });
        }
    });
    refused.map_or(Ok(()), Err)
}

/// Writes the defaults of an object's own properties into `value`.
pub fn fill_defaults(schema: &Value, value: &mut Value) {
    let (Some(properties), Some(map)) = (schema["properties"].as_object(), value.as_object_mut()) else { return };
    for (name, property) in properties {
        if let Some(default) = property.get("default") {
            map.entry(name.clone()).or_insert_with(|| default.clone());
        }
    }
}

/// Refuses what a JSON Schema does not allow.
pub fn check(schema: &Value, value: &Value) -> Result<(), Refused> {
    let refuse = |path: Vec<String>, message: String| Refused { path, at_key: false, message, help: None };
    let validator = jsonschema::validator_for(schema).map_err(|e| refuse(Vec::new(), format!("the kind's own schema is wrong: {e}")))?;
    match validator.iter_errors(value).next() {
        None => Ok(()),
        Some(e) => {
            let path = e.instance_path().to_string().split('/').filter(|p| !p.is_empty()).map(str::to_owned).collect();
            Err(refuse(path, e.to_string()))
        }
    }
}

pub(crate) fn resolve<'a>(root: &'a Value, schema: &'a Value) -> Option<&'a Value> {
    let name = schema.get("$ref")?.as_str()?.strip_prefix('#')?;
    root.pointer(name)
}

/// Visits every schema that applies to every part of `value`.
fn walk(
    root: &Value,
    schema: &Value,
    value: &Value,
    path: &mut Vec<String>,
    depth: usize,
    visit: &mut dyn FnMut(&Value, &Value, &[String]),
) {
    // A schema may refer to itself; a value may not.
    if depth > 64 {
        return;
    }
    visit(schema, value, path);
    if let Some(target) = resolve(root, schema) {
        walk(root, target, value, path, depth + 1, visit);
    }
    for word in ["anyOf", "oneOf", "allOf"] {
        for branch in schema.get(word).and_then(Value::as_array).into_iter().flatten() {
            if plausible(root, branch, value) {
                walk(root, branch, value, path, depth + 1, visit);
            }
        }
    }
    match value {
        Value::Object(map) => {
            for (key, item) in map {
                let sub = schema.pointer(&format!("/properties/{}", key.replace('~', "~0").replace('/', "~1")));
                if let Some(sub) = sub.or_else(|| schema.get("additionalProperties").filter(|s| s.is_object())) {
                    path.push(key.clone());
                    walk(root, sub, item, path, depth + 1, visit);
                    path.pop();
                }
            }
        }
        Value::Array(items) => {
            for (i, item) in items.iter().enumerate() {
                let sub = schema.get("prefixItems").and_then(|p| p.get(i)).or_else(|| schema.get("items"));
                if let Some(sub) = sub {
                    path.push(i.to_string());
                    walk(root, sub, item, path, depth + 1, visit);
                    path.pop();
                }
            }
        }
        _ => {}
    }
}

/// Whether a branch of a union could be the one that `value` means: by type, constants and required keys.
pub(crate) fn plausible(root: &Value, branch: &Value, value: &Value) -> bool {
    let branch = resolve(root, branch).unwrap_or(branch);
    let is = |name: &str| match name {
        "null" => value.is_null(),
        "boolean" => value.is_boolean(),
        "string" => value.is_string(),
        "integer" | "number" => value.is_number(),
        "array" => value.is_array(),
        "object" => value.is_object(),
        _ => true,
    };
    let fits = match branch.get("type") {
        Some(Value::String(name)) => is(name),
        Some(Value::Array(names)) => names.iter().filter_map(Value::as_str).any(is),
        _ => true,
    };
    if !fits {
        return false;
    }
    let Some(map) = value.as_object() else { return true };
    let constants = branch.get("properties").and_then(Value::as_object).is_none_or(|properties| {
        properties.iter().all(|(k, s)| match (s.get("const"), map.get(k)) {
            (Some(constant), Some(given)) => constant == given,
            _ => true,
        })
    });
    let required =
        branch.get("required").and_then(Value::as_array).is_none_or(|r| r.iter().filter_map(Value::as_str).all(|k| map.contains_key(k)));
    constants && required
}

/// The JSON Schema of a pipeline file, with the parameters of every kind.
pub fn of_file(registry: &Registry) -> Value {
    let mut definitions = Map::new();
    let mut rules = Vec::new();
    for kind in registry.iter() {
        let mut schema = kind.schema().clone();
        let at = kind.name().replace('~', "~0").replace('/', "~1");
        move_references(&mut schema, &at);
        allow_variables(&mut schema);
        if let Some(map) = schema.as_object_mut() {
            map.remove("$schema");
        }
        definitions.insert(kind.name().to_owned(), schema);
        let needs: Vec<_> = kind.inputs().iter().filter(|i| i.required).map(|i| i.name).collect();
        let mut then = json!({ "properties": { "with": { "$ref": format!("#/$defs/{at}") } } });
        if !kind.takes_any_input() {
            then["properties"]["in"] = input_schema(kind.inputs());
        }
        if !needs.is_empty() {
            then["required"] = json!(["in"]);
        }
        rules.push(json!({ "if": { "properties": { "use": { "const": kind.name() } } }, "then": then }));
    }
    let kinds: Vec<_> = registry
        .iter()
        .map(|k| json!({ "const": k.name(), "description": format!("{} Gives {}.", k.summary(), list_outputs(k.outputs())) }))
        .collect();
    definitions.insert("kind".into(), json!({ "oneOf": kinds }));
    definitions.insert("stage".into(), stage_schema(rules));
    definitions.insert("variable".into(), json!({ "type": "string", "pattern": "\\$\\{.+\\}" }));
    let built_in =
        json!({ "properties": { "stages": { "additionalProperties": { "properties": { "use": { "$ref": "#/$defs/kind" } } } } } });
    json!({
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "flow pipeline",
        "type": "object",
        "additionalProperties": false,
        "required": ["flow", "stages"],
        "properties": {
            "flow": { "const": 1, "description": "Version of the file format." },
            "name": { "type": "string", "description": "Name of the pipeline." },
            "vars": { "type": "object", "description": "Variables: `${name}` elsewhere takes their value." },
            "include": described(texts(), "Files whose stages, variables and plugins are taken in."),
            "plugins": { "type": "object", "description": "Executables that bring kinds of their own.", "additionalProperties": {
                "type": "object",
                "additionalProperties": false,
                "required": ["command"],
                "properties": {
                    "command": described(texts(), "The program and its arguments."),
                    "files": described(texts(), "Its files, globs allowed; their contents are in the keys of its kinds.")
                }
            } },
            "pools": described(amounts(), "Tokens of named pools that stages hold under `resources`."),
            "remote": { "description": "A cache that machines share.", "anyOf": [{ "type": "string" }, {
                "type": "object",
                "additionalProperties": false,
                "required": ["url"],
                "properties": { "url": { "type": "string" }, "read_only": { "type": "boolean" } }
            }] },
            "stages": { "type": "object", "additionalProperties": { "$ref": "#/$defs/stage" } },
            "targets": described(texts(), "Stages that a run without arguments makes."),
            "publish": { "type": "object", "additionalProperties": { "type": "string" }, "description": "Path in the project: artifact that is copied there." }
        },
        // Plugins and included files may bring kinds that nobody knows here.
        "if": { "not": { "anyOf": [{ "required": ["plugins"] }, { "required": ["include"] }] } },
        "then": built_in,
        "$defs": definitions
    })
}

/// A stage, with the rules for each kind.
fn stage_schema(rules: Vec<Value>) -> Value {
    let axis = json!({ "anyOf": [
        { "type": "array", "minItems": 1, "items": { "type": ["string", "number", "boolean", "null"] } }, { "$ref": "#/$defs/variable" }
    ] });
    let matrix = json!({ "anyOf": [{ "type": "object", "additionalProperties": axis }, { "$ref": "#/$defs/variable" }] });
    json!({
        "type": "object",
        "additionalProperties": false,
        "required": ["use"],
        "properties": {
            "use": { "anyOf": [{ "$ref": "#/$defs/kind" }, { "type": "string" }], "description": "The kind." },
            "when": described(or_variable(json!({ "type": "boolean" })), "Whether the stage is part of the pipeline."),
            "in": { "type": "object", "additionalProperties": texts(), "description": "Input port: `stage` or `stage.port`, or a list of them." },
            "with": { "type": "object", "description": "Parameters of the kind." },
            "matrix": described(matrix, "One stage for each choice of values; `${axis}` is its value."),
            "after": described(texts(), "Stages to wait for, for side effects."),
            "requires": described(texts(), "Gates that must accept."),
            "resources": described(amounts(), "Tokens that the stage holds while it runs: cpu, gpu, memory (such as 4GiB), or a named pool."),
            "retries": described(or_variable(json!({ "type": "integer", "minimum": 0 })), "How often a failure is tried again."),
            "timeout": { "type": ["string", "number"], "description": "Seconds, or such as 90s, 10m, 2h." },
            "labels": { "type": "object", "description": "Words for people and tools; never in the key." }
        },
        "allOf": rules
    })
}

fn described(mut schema: Value, text: &str) -> Value {
    schema["description"] = text.into();
    schema
}

/// One text or a list of them.
fn texts() -> Value {
    json!({ "anyOf": [{ "type": "string" }, { "type": "array", "items": { "type": "string" } }] })
}

/// A mapping to whole numbers, or to such as `4GiB`.
fn amounts() -> Value {
    let text = json!({ "type": "string", "pattern": "^[0-9.]+ ?([kKMGT]?B|[KMGT]iB|[kMGT])?$" });
    let amount = json!({ "anyOf": [{ "type": "integer", "minimum": 0 }, text, { "$ref": "#/$defs/variable" }] });
    json!({ "type": "object", "additionalProperties": amount })
}

fn or_variable(schema: Value) -> Value {
    json!({ "anyOf": [schema, { "$ref": "#/$defs/variable" }] })
}

fn list_outputs(outputs: &[OutputPort]) -> String {
    outputs.iter().map(|o| format!("`{}` ({})", o.name, o.ty)).collect::<Vec<_>>().join(", ")
}

fn input_schema(inputs: &[InputPort]) -> Value {
    let mut properties = Map::new();
    for input in inputs {
        let one = json!({ "type": "string" });
        let of = if input.list { json!({ "anyOf": [one, { "type": "array", "items": one }] }) } else { one };
        let mut of = of;
        of["description"] = format!("{} ({})", input.doc, input.types.join(" or ")).into();
        properties.insert(input.name.to_owned(), of);
    }
    let required: Vec<_> = inputs.iter().filter(|i| i.required).map(|i| i.name).collect();
    json!({ "type": "object", "additionalProperties": false, "properties": properties, "required": required })
}

/// A parameter may be `${var}` whatever its type; a text may look like a number, and a count may be grouped or scaled.
fn allow_variables(schema: &mut Value) {
    as_typed(schema);
    // A kind's own types, such as a recipe, are definitions beside its parameters.
    let nested = schema.get_mut("$defs").and_then(Value::as_object_mut);
    nested.into_iter().flat_map(|map| map.values_mut()).for_each(properties_or_variables);
    properties_or_variables(schema);
}

fn properties_or_variables(schema: &mut Value) {
    let Some(properties) = schema.get_mut("properties").and_then(Value::as_object_mut) else { return };
    for property in properties.values_mut() {
        let of = property.take();
        let description = of.get("description").cloned();
        *property = or_variable(of);
        if let Some(description) = description {
            property["description"] = description;
        }
    }
}

/// An editor's YAML reader gives plain scalars a type before it asks the schema.
fn as_typed(schema: &mut Value) {
    match schema {
        Value::Object(map) => {
            let free = ["enum", "const", "pattern"].iter().all(|word| !map.contains_key(*word));
            match map.get("type") {
                Some(Value::String(name)) if name == "string" && free => {
                    map.insert("type".into(), json!(["string", "number", "boolean"]));
                }
                Some(Value::String(name)) if name == "integer" => {
                    let mut whole = map.clone();
                    whole.retain(|word, _| word != "description");
                    let description = map.remove("description");
                    let written = json!({ "type": "string", "pattern": "^[0-9][0-9_]*(\\.[0-9]+)?[kKMGBT]?$" });
                    *map = Map::from_iter([("anyOf".to_owned(), json!([whole, written]))]);
                    map.extend(description.map(|text| ("description".to_owned(), text)));
                    return;
                }
                _ => {}
            }
            map.values_mut().for_each(as_typed);
        }
        Value::Array(items) => items.iter_mut().for_each(as_typed),
        _ => {}
    }
}

fn move_references(schema: &mut Value, to: &str) {
    match schema {
        Value::Object(map) => {
            if let Some(Value::String(reference)) = map.get_mut("$ref")
                && let Some(rest) = reference.strip_prefix("#/")
            {
                *reference = format!("#/$defs/{to}/{rest}");
            }
            map.values_mut().for_each(|v| move_references(v, to));
        }
        Value::Array(items) => items.iter_mut().for_each(|v| move_references(v, to)),
        _ => {}
    }
}
