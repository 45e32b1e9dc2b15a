//! The JSON Schema of a whole pipeline file, for editors.

use serde_json::{Map, Value, json};

use crate::plugin::{InputPort, OutputPort};
use crate::registry::Registry;

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
        let needs: Vec<_> = kind.inputs().iter().filter(|i| i.required).map(|i| &*i.name).collect();
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
        properties.insert(input.name.to_string(), of);
    }
    let required: Vec<_> = inputs.iter().filter(|i| i.required).map(|i| &*i.name).collect();
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
