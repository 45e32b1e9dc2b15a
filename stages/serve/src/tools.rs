//! Tools: what an answer must be that calls one, and calls in answers.

use serde_json::{Value, json};

use crate::error::ApiError;

/// What is wanted of the tools of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// None is given, or none is to be called.
    Nothing,
    /// The model chooses.
    Auto,
    /// One of these is called.
    Required(Vec<String>),
}

/// Reads `tools` and `tool_choice`.
pub fn read(body: &Value, most: usize) -> Result<(Vec<Value>, Wanted), ApiError> {
    let mut tools = match &body["tools"] {
        Value::Null => Vec::new(),
        Value::Array(all) if all.len() <= most => all.clone(),
        Value::Array(_) => return Err(ApiError::field("tools", format!("at most {most}"))),
        _ => return Err(ApiError::field("tools", "a list")),
    };
    for (i, tool) in tools.iter().enumerate() {
        if tool["type"] != "function" || !tool["function"]["name"].is_string() {
            return Err(ApiError::field(&format!("tools[{i}]"), "`type: function` with `function.name`; other tools are not offered"));
        }
    }
    let names = || tools.iter().map(|t| name(t).to_owned()).collect::<Vec<_>>();
    let none = tools.is_empty();
    let wanted = match &body["tool_choice"] {
        Value::Null if none => Wanted::Nothing,
        Value::Null => Wanted::Auto,
        Value::String(how) => match how.as_str() {
            "none" => Wanted::Nothing,
            "auto" if none => Wanted::Nothing,
            "auto" => Wanted::Auto,
            "required" if none => return Err(ApiError::field("tool_choice", "`required` without `tools`")),
            "required" => Wanted::Required(names()),
            other => return Err(ApiError::field("tool_choice", format!("`none`, `auto`, `required` or a function, not `{other}`"))),
        },
        choice => chosen(choice, &names())?,
    };
    // Of those that are allowed the model chooses.
    if let (Wanted::Auto, Some(allowed)) = (&wanted, body["tool_choice"]["allowed_tools"]["tools"].as_array()) {
        tools.retain(|tool| allowed.iter().any(|a| a["function"]["name"] == tool["function"]["name"]));
    }
    Ok((tools, wanted))
}

/// A function that is to be called, or several of which one may or must be.
fn chosen(choice: &Value, names: &[String]) -> Result<Wanted, ApiError> {
    let known = |one: &Value| match one["function"]["name"].as_str() {
        Some(found) if names.iter().any(|n| n == found) => Ok(found.to_owned()),
        Some(found) => Err(ApiError::field("tool_choice", format!("no tool is called `{found}`"))),
        None => Err(ApiError::field("tool_choice", format!("`type: function` with `function.name`, not {one}"))),
    };
    if choice["type"] != "allowed_tools" {
        return Ok(Wanted::Required(vec![known(choice)?]));
    }
    let allowed = &choice["allowed_tools"];
    let some = allowed["tools"].as_array().filter(|t| !t.is_empty());
    let some: Vec<String> = some
        .ok_or_else(|| ApiError::field("tool_choice", "`allowed_tools` without `tools`"))?
        .iter()
        .map(known)
        .collect::<Result<_, _>>()?;
    Ok(if allowed["mode"] == "required" { Wanted::Required(some) } else { Wanted::Auto })
}

fn name(tool: &Value) -> &str {
    tool["function"]["name"].as_str().unwrap_or_default()
}

/// The schema of an answer that calls one of these tools and is nothing else. White space between values would only be
/// thrown away: one space at most.
pub fn schema(tools: &[Value], names: &[String]) -> Value {
    let one = |(i, tool): (usize, &Value)| {
        let mut parameters = match &tool["function"]["parameters"] {
            Value::Null => json!({"type": "object", "properties": {}, "additionalProperties": false}),
            schema => schema.clone(),
        };
        move_references(&mut parameters, &format!("#/anyOf/{i}/properties/arguments"));
        let properties = json!({"name": {"const": name(tool)}, "arguments": parameters});
        json!({"type": "object", "properties": properties, "required": ["name", "arguments"], "additionalProperties": false})
    };
    let all: Vec<Value> = tools.iter().filter(|t| names.iter().any(|n| n == name(t))).enumerate().map(one).collect();
    json!({"anyOf": all, "x-guidance": {"whitespace_pattern": " ?"}})
}

/// References within a schema that now stands at `root` of another.
fn move_references(schema: &mut Value, root: &str) {
    match schema {
        Value::Object(fields) => {
            for (key, value) in fields {
                match value {
                    Value::String(to) if key == "$ref" && (to == "#" || to.starts_with("#/")) => *to = format!("{root}{}", &to[1..]),
                    other => move_references(other, root),
                }
            }
        }
        Value::Array(all) => all.iter_mut().for_each(|v| move_references(v, root)),
        _ => {}
    }
}

/// A call in an answer.
#[derive(Clone, Debug, PartialEq)]
pub struct Call {
    /// The function.
    pub name: String,
    /// Its arguments, JSON as a text.
    pub arguments: String,
}

/// What begins a call in the answers of common families: Qwen and Hermes, Mistral, Llama 3.
const MARKS: [&str; 3] = ["<tool_call>", "[TOOL_CALLS]", "<|python_tag|>"];

/// How much of an answer can be told as text before it ends: all before a mark, or before what may become one. An answer that
/// begins as an object may be a call as a whole; the rest of one of which some is `told` is none.
pub fn plain(text: &str, told: bool) -> usize {
    if !told && (text.trim_start().is_empty() || text.trim_start().starts_with('{')) {
        return 0;
    }
    let found = MARKS.iter().filter_map(|m| text.find(m)).min();
    found.unwrap_or_else(|| {
        let begun = |m: &&str| (1..m.len()).rev().find(|n| text.ends_with(&m[..*n])).unwrap_or(0);
        text.len() - MARKS.iter().map(begun).max().unwrap_or(0)
    })
}

/// The text of an answer and the calls in it; an answer whose calls cannot be read is text. `told`: it is the rest of one of
/// which some is told.
pub fn parse(text: &str, tools: &[Value], told: bool) -> (String, Vec<Call>) {
    let known = |call: &Call| tools.iter().any(|t| name(t) == call.name);
    let split = MARKS.iter().filter_map(|m| text.find(m).map(|at| (at, m))).min_by_key(|(at, _)| *at);
    let (before, calls) = match split {
        None => ("", if told { None } else { whole(text.trim()) }),
        Some((at, mark)) => {
            let rest = &text[at + mark.len()..];
            let parts: Vec<&str> = if *mark == MARKS[0] {
                rest.split(MARKS[0]).map(|p| p.split("</tool_call>").next().unwrap_or(p)).collect()
            } else {
                vec![rest]
            };
            let calls: Option<Vec<Vec<Call>>> = parts.iter().map(|p| whole(p.trim())).collect();
            (&text[..at], calls.map(|c| c.concat()))
        }
    };
    match calls.filter(|c| !c.is_empty() && c.iter().all(known)) {
        Some(calls) => (before.trim_end().to_owned(), calls),
        None => (text.to_owned(), Vec::new()),
    }
}

/// The call that an answer to a schema of [`schema`] began when it was cut off: its arguments so far.
pub fn cut_off(text: &str) -> Option<Call> {
    let after = |text: &'_ str, key: &str| -> Option<String> {
        Some(text.split_once(key)?.1.trim_start().strip_prefix(':')?.trim_start().to_owned())
    };
    let named = after(text, "\"name\"")?;
    let mut names = serde_json::Deserializer::from_str(&named).into_iter::<String>();
    let name = names.next()?.ok()?;
    Some(Call { name, arguments: after(&named[names.byte_offset()..], "\"arguments\"").unwrap_or_default() })
}

/// JSON that is a call, or a list of calls.
fn whole(text: &str) -> Option<Vec<Call>> {
    let value: Value = serde_json::from_str(text).ok()?;
    let one = |v: &Value| {
        let arguments = v.get("arguments").or_else(|| v.get("parameters"))?;
        // Some families write the arguments as a text that holds JSON.
        let arguments = arguments.as_str().map_or_else(|| arguments.to_string(), str::to_owned);
        Some(Call { name: v["name"].as_str()?.to_owned(), arguments })
    };
    match &value {
        Value::Array(all) => all.iter().map(one).collect(),
        one_call => one(one_call).map(|c| vec![c]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tools() -> Vec<Value> {
        vec![
            json!({"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}),
            json!({"type": "function", "function": {"name": "time"}}),
        ]
    }

    #[test]
    fn calls_of_common_families_are_read() {
        let weather = |arguments: &str| Call { name: "weather".into(), arguments: arguments.into() };
        for (text, before) in [
            ("Let me see. <tool_call>\n{\"name\": \"weather\", \"arguments\": {\"city\":\"Rome\"}}\n</tool_call>", "Let me see."),
            ("{\"name\": \"weather\", \"parameters\": {\"city\":\"Rome\"}}", ""),
            ("[TOOL_CALLS][{\"name\": \"weather\", \"arguments\": {\"city\":\"Rome\"}}]", ""),
            ("<|python_tag|>{\"name\": \"weather\", \"parameters\": \"{\\\"city\\\":\\\"Rome\\\"}\"}", ""),
        ] {
            assert_eq!(parse(text, &tools(), false), (before.to_owned(), vec![weather("{\"city\":\"Rome\"}")]), "{text}");
        }
        let two =
            "<tool_call>{\"name\":\"time\",\"arguments\":{}}</tool_call>\n<tool_call>{\"name\":\"weather\",\"arguments\":{}}</tool_call>";
        assert_eq!(parse(two, &tools(), true).1.len(), 2);
        let call = "{\"name\": \"time\", \"arguments\": {}}";
        assert_eq!((parse(call, &tools(), false).1.len(), parse(call, &tools(), true).1.len()), (1, 0));
        for text in ["plain", "{\"name\": \"unknown\", \"arguments\": {}}", "<tool_call>{\"name\": \"weather\"", "{\"a\": 1}", ""] {
            assert_eq!(parse(text, &tools(), false), (text.to_owned(), Vec::new()), "{text}");
        }
    }

    #[test]
    fn text_is_told_until_a_call_may_begin() {
        for (text, n) in [("Hello", 5), ("Hello <tool", 6), ("Hello <tool_call>{", 6), ("a < b", 5), ("{\"name", 0), ("  ", 0), ("x [", 2)]
        {
            assert_eq!(plain(text, false), n, "{text}");
        }
    }

    #[test]
    fn references_move_with_their_schema_and_calls_may_be_cut_off() {
        let parameters = json!({"$defs": {"a": {"type": "integer"}}, "properties": {"x": {"$ref": "#/$defs/a"}, "self": {"$ref": "#"}}});
        let tool = json!({"type": "function", "function": {"name": "f", "parameters": parameters}});
        let made = schema(&[tool], &["f".to_owned()]);
        let at = |path: &str| made.pointer(path).cloned().unwrap_or_default();
        let x = at("/anyOf/0/properties/arguments/properties/x/$ref");
        assert_eq!(x, "#/anyOf/0/properties/arguments/$defs/a");
        assert_eq!(at(x.as_str().and_then(|x| x.strip_prefix('#')).unwrap_or_default()), json!({"type": "integer"}));
        assert_eq!(at("/anyOf/0/properties/arguments/properties/self/$ref"), "#/anyOf/0/properties/arguments");
        let call = |name: &str, arguments: &str| Some(Call { name: name.into(), arguments: arguments.into() });
        assert_eq!(cut_off("{\"name\": \"f\", \"arguments\":{\"x\": 1"), call("f", "{\"x\": 1"));
        assert_eq!((cut_off("{\"name\":\"f\","), cut_off("{\"name\":\"f")), (call("f", ""), None));
    }

    #[test]
    fn choices_are_checked() {
        let read = |choice: Value| read(&json!({"tools": tools(), "tool_choice": choice}), 10);
        assert_eq!(read(Value::Null).expect("auto").1, Wanted::Auto);
        assert_eq!(read(json!("required")).expect("required").1, Wanted::Required(vec!["weather".into(), "time".into()]));
        assert_eq!(read(json!({"type": "function", "function": {"name": "time"}})).expect("one").1, Wanted::Required(vec!["time".into()]));
        let allowed = |mode: &str| json!({"type": "allowed_tools", "allowed_tools": {"mode": mode, "tools": [{"type": "function", "function": {"name": "time"}}]}});
        assert_eq!(read(allowed("required")).expect("one").1, Wanted::Required(vec!["time".into()]));
        assert_eq!(read(allowed("auto")).expect("any").1, Wanted::Auto);
        assert!(read(json!("some")).is_err() && read(json!({"function": {"name": "x"}})).is_err());
        assert!(super::read(&json!({"tool_choice": "required"}), 10).is_err());
        assert!(super::read(&json!({"tools": [{"type": "browser"}]}), 10).is_err());
    }
}
