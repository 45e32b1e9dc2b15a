//! `flow kinds [KIND]`: ports, parameters and defaults, from the kinds themselves.

use flow_engine::Registry;
use flow_engine::kind::Kind;
use flow_engine::plugin::Purity;
use flow_engine::problem::{Problem, suggest};
use serde_json::{Value, json};

use crate::args::KindsArgs;
use crate::failure::Failure;
use crate::print::print;

pub fn kinds(registry: &Registry, args: &KindsArgs) -> Result<u8, Failure> {
    if let Some(name) = &args.kind {
        let kind =
            registry.get(name).ok_or_else(|| Problem::new(format!("unknown kind `{name}`")).help(suggest(name, registry.names())))?;
        if args.json {
            print(&describe_json(kind.as_ref()).to_string());
        } else {
            describe(kind.as_ref());
        }
        return Ok(0);
    }
    if args.json {
        print(&Value::Array(registry.iter().map(|k| describe_json(k.as_ref())).collect()).to_string());
        return Ok(0);
    }
    let width = registry.names().map(str::len).max().unwrap_or(0);
    for kind in registry.iter() {
        print(&format!("{:width$}  {}", kind.name(), kind.summary()));
    }
    Ok(0)
}

fn describe(kind: &dyn Kind) {
    print(&format!("{} (recipe revision {})\n  {}", kind.name(), kind.revision(), kind.summary()));
    if !kind.inputs().is_empty() {
        print("\ninputs");
    }
    for port in kind.inputs() {
        let optional = if port.required { "" } else { ", optional" };
        let list = if port.list { "list of " } else { "" };
        print(&format!("  {:18} {list}{}{optional}", port.name, port.types.join(" or ")));
        print(&format!("  {:18}   {}", "", port.doc));
    }
    print("\noutputs");
    for port in kind.outputs() {
        let measured = if port.purity == Purity::Measured { ", measured" } else { "" };
        print(&format!("  {:18} {}{measured}", port.name, port.ty));
        print(&format!("  {:18}   {}", "", port.doc));
    }
    let schema = kind.schema();
    let required: Vec<_> = schema["required"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    if let Some(properties) = schema["properties"].as_object().filter(|p| !p.is_empty()) {
        print("\nparameters");
        for (name, property) in properties {
            let default = match property.get("default") {
                Some(default) => format!(", default {}", flow_engine::explain::show(default)),
                None if required.contains(&name.as_str()) => ", required".into(),
                None => String::new(),
            };
            let unkeyed = if property.get("x-key") == Some(&Value::Bool(false)) { ", not in the key" } else { "" };
            print(&format!("  {name:18} {}{default}{unkeyed}", type_name(schema, property)));
            if let Some(text) = property["description"].as_str() {
                print(&format!("  {:18}   {}", "", text.replace('\n', " ")));
            }
        }
    }
}

/// A schema's type in a few words.
fn type_name(root: &Value, schema: &Value) -> String {
    if let Some(target) = schema["$ref"].as_str().and_then(|r| r.strip_prefix('#')).and_then(|p| root.pointer(p)) {
        return type_name(root, target);
    }
    if let Some(flow) = schema["x-flow"].as_str() {
        return flow.replace('-', " ");
    }
    if let Some(values) = schema["enum"].as_array() {
        return values
            .iter()
            .filter(|v| !v.is_null())
            .map(|v| v.as_str().map_or_else(|| v.to_string(), str::to_owned))
            .collect::<Vec<_>>()
            .join("|");
    }
    if let Some(value) = schema.get("const") {
        return value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    }
    for word in ["anyOf", "oneOf", "allOf"] {
        if let Some(branches) = schema[word].as_array() {
            let names: Vec<_> = branches.iter().map(|b| type_name(root, b)).filter(|n| n != "null").collect();
            return names.join(if word == "allOf" { " and " } else { "|" });
        }
    }
    match &schema["type"] {
        Value::String(name) if name == "array" => format!("list of {}", type_name(root, &schema["items"])),
        Value::String(name) => name.clone(),
        Value::Array(names) => names.iter().filter_map(Value::as_str).filter(|n| *n != "null").collect::<Vec<_>>().join("|"),
        _ => "any".into(),
    }
}

fn describe_json(kind: &dyn Kind) -> Value {
    let inputs: Vec<_> = kind
        .inputs()
        .iter()
        .map(|p| json!({ "name": p.name, "types": p.types, "required": p.required, "list": p.list, "doc": p.doc }))
        .collect();
    let outputs: Vec<_> =
        kind.outputs().iter().map(|p| json!({ "name": p.name, "type": p.ty, "purity": p.purity, "doc": p.doc })).collect();
    json!({ "kind": kind.name(), "revision": kind.revision(), "summary": kind.summary(), "inputs": inputs, "outputs": outputs, "params": kind.schema() })
}
