//! Prompts as JSON lines.

use std::collections::BTreeMap;
use std::path::Path;

use flow_engine::plugin::StageError;
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// One prompt.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Prompt {
    /// Identity in reports and traces; unique in its file.
    pub id: i64,
    /// What is asked for: `prose`, `json`, …
    pub kind: String,
    /// The text to continue or answer.
    pub prompt: String,
    /// JSON Schema of the answer, or of prompt and answer together where the prompt begins the value.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub schema: Option<Value>,
}

/// Marks `eval` of each kind's prompts (a share, or a count over all kinds), evenly spread in file order.
pub(crate) fn choose(prompts: &[Prompt], eval: f64) -> Vec<bool> {
    let share = if eval < 1.0 { eval } else { (eval / prompts.len().max(1) as f64).min(1.0) };
    let mut kinds: BTreeMap<&str, Vec<usize>> = BTreeMap::new();
    for (i, p) in prompts.iter().enumerate() {
        kinds.entry(&p.kind).or_default().push(i);
    }
    let mut chosen = vec![false; prompts.len()];
    let wanted = if eval < 1.0 { (share * prompts.len() as f64).round() as usize } else { eval as usize }.min(prompts.len());
    let (mut seen, mut taken) = (0, 0);
    for members in kinds.values() {
        seen += members.len();
        // The running total keeps the count exact however the kinds divide it.
        let upto = (wanted as f64 * seen as f64 / prompts.len() as f64).round() as usize;
        let take = upto.saturating_sub(taken).min(members.len());
        for k in 0..take {
            chosen[members[((2 * k + 1) * members.len()) / (2 * take)]] = true;
        }
        taken += take;
    }
    chosen
}

/// Reads prompts, or names the line and field that is wrong.
pub fn read_prompts(path: &Path) -> Result<Vec<Prompt>, StageError> {
    let text = super::text::read_text(path)?;
    let mut prompts = Vec::new();
    let mut lines_of: BTreeMap<i64, usize> = BTreeMap::new();
    for (number, line) in text.lines().enumerate().map(|(i, l)| (i + 1, l)) {
        if line.trim().is_empty() {
            continue;
        }
        let bad = |what: String| {
            StageError::new(format!("{} line {number}: {what}", path.display()))
                .help(r#"each line is a JSON object like {"id": 7, "kind": "prose", "prompt": "Once upon"}"#)
        };
        let value: Value = serde_json::from_str(line).map_err(|e| bad(format!("not JSON: {e}")))?;
        let object = value.as_object().ok_or_else(|| bad(format!("expected an object, found {}", type_name(&value))))?;
        let text_of = |field: &str| match object.get(field) {
            Some(Value::String(s)) if !s.is_empty() => Ok(s.clone()),
            Some(Value::String(_)) => Err(bad(format!("field `{field}`: expected text, found an empty string"))),
            Some(other) => Err(bad(format!("field `{field}`: expected a string, found {}", type_name(other)))),
            None => Err(bad(format!("field `{field}` is missing: expected a string"))),
        };
        let id = match object.get("id") {
            Some(v) => v.as_i64().ok_or_else(|| bad(format!("field `id`: expected an integer, found {}", type_name(v))))?,
            None => return Err(bad("field `id` is missing: expected an integer".into())),
        };
        if let Some(first) = lines_of.insert(id, number) {
            return Err(bad(format!("field `id`: {id} is also on line {first}; expected a number of its own")));
        }
        let kind = if object.contains_key("kind") { text_of("kind")? } else { "prose".into() };
        let schema = object.get("schema").filter(|s| !s.is_null()).cloned();
        if let Some(why) = schema.as_ref().and_then(|s| check_schema(s).err()) {
            return Err(bad(format!("field `schema`: no JSON Schema: {why}")));
        }
        prompts.push(Prompt { id, kind, prompt: text_of("prompt")?, schema });
    }
    Ok(prompts)
}

/// Whether a schema can be used; why not.
pub fn check_schema(schema: &Value) -> Result<(), String> {
    jsonschema::validator_for(schema).map(drop).map_err(|e| e.to_string())
}

fn type_name(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn prompts(kinds: &[&str]) -> Vec<Prompt> {
        kinds.iter().enumerate().map(|(i, k)| Prompt { id: i as i64, kind: (*k).into(), prompt: "p".into(), schema: None }).collect()
    }

    #[test]
    fn evaluation_prompts_are_spread_over_kinds() {
        let all = prompts(&["json", "prose", "json"].repeat(20));
        let chosen = choose(&all, 0.1);
        assert_eq!(chosen.iter().filter(|c| **c).count(), 6);
        assert_eq!(chosen.iter().zip(&all).filter(|(c, p)| **c && p.kind == "prose").count(), 2);
        assert_eq!(choose(&all, 7.0).iter().filter(|c| **c).count(), 7);
    }

    #[test]
    fn bad_lines_are_named() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let file = dir.path().join("p.jsonl");
        for (line, wanted) in [
            (r#"{"id": 1, "kind": "prose", "prompt": 5}"#, "field `prompt`: expected a string, found a number"),
            (r#"{"id": "x", "kind": "prose", "prompt": "a"}"#, "field `id`: expected an integer, found a string"),
            (r#"{"id": 0, "kind": "prose", "prompt": "a"}"#, "0 is also on line 1"),
            (r#"{"id": 3"#, "not JSON"),
            (r#"{"id": 1, "kind": "json", "prompt": "a", "schema": {"type": 5}}"#, "field `schema`: no JSON Schema"),
            (r#"[1]"#, "expected an object, found a list"),
        ] {
            std::fs::write(&file, format!("{{\"id\": 0, \"kind\": \"json\", \"prompt\": \"x\"}}\n{line}\n")).expect("write");
            let error = read_prompts(&file).expect_err("must refuse").message;
            assert!(error.contains("line 2") && error.contains(wanted), "{error}");
        }
    }
}
