//! The JSON Schema of a kind's parameters: which of them are sources or outside the key, defaults, and what it refuses.

use serde_json::Value;

use crate::kind::Refused;
use crate::problem::suggest;

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
