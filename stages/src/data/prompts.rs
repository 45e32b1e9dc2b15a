//! `data.prompts`: prompts as JSON lines, split into training and evaluation.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;

use flow_engine::plugin::{InputPort, OutputPort, ParamError, SourceFile, Stage, StageError, TaskContext};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::data::spread::spread_of;

/// One prompt.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Prompt {
    /// Identity in reports and traces; unique in its file.
    pub id: i64,
    /// What is asked for: `prose`, `json`, …
    pub kind: String,
    /// The text to continue or answer.
    pub prompt: String,
}

/// Parameters of `data.prompts`.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct PromptsParams {
    /// JSON lines, each `{"id": 0, "kind": "prose", "prompt": "…"}`.
    pub path: SourceFile,
    /// Prompts to keep for evaluation: a share below 1, or a count. Spread evenly over each kind.
    #[serde(default = "default_eval")]
    pub eval: f64,
    /// Take only this many prompts, spread over the file.
    #[serde(default)]
    pub limit: Option<usize>,
}

fn default_eval() -> f64 {
    0.1
}

/// `data.prompts`.
pub struct PromptsStage;

impl Stage for PromptsStage {
    type Params = PromptsParams;
    const KIND: &'static str = "data.prompts";
    const REVISION: u32 = 2;
    const SUMMARY: &'static str = "Reads prompts and keeps some of them for evaluation.";

    fn inputs(&self) -> Vec<InputPort> {
        Vec::new()
    }
    fn outputs(&self) -> Vec<OutputPort> {
        vec![
            OutputPort::pure("train", "Prompts", "Prompts for traces, JSON lines."),
            OutputPort::pure("eval", "Prompts", "Prompts for evaluation, JSON lines."),
        ]
    }
    fn check(&self, p: &PromptsParams) -> Result<Vec<String>, ParamError> {
        let wrong = |path: &str, message: String| Err(ParamError { path: path.into(), message, help: None });
        if !(p.eval > 0.0 && p.eval.is_finite()) || (p.eval >= 1.0 && p.eval.fract() != 0.0) {
            return wrong("eval", format!("{} is neither a share between 0 and 1 nor a count", p.eval));
        }
        if p.limit == Some(0) {
            return wrong("limit", "0 leaves no prompt".into());
        }
        Ok(Vec::new())
    }
    fn run(&self, p: PromptsParams, ctx: &TaskContext) -> Result<(), StageError> {
        let prompts = spread_of(read_prompts(&p.path.0)?, p.limit, 0);
        let eval = choose(&prompts, p.eval);
        let count = eval.iter().filter(|e| **e).count();
        if count == 0 || count == prompts.len() {
            return Err(StageError::new(format!(
                "{}: eval: {} leaves {} of {} prompts for training and {count} for evaluation",
                p.path.0.display(),
                p.eval,
                prompts.len() - count,
                prompts.len()
            ))
            .help("give more prompts or another `eval`, so that both sides have some"));
        }
        for (port, wanted) in [("train", false), ("eval", true)] {
            let mut text = String::new();
            for (prompt, _) in prompts.iter().zip(&eval).filter(|(_, e)| **e == wanted) {
                let line = serde_json::to_string(prompt).map_err(|e| StageError::new(e.to_string()))?;
                let _ = writeln!(text, "{line}");
            }
            let out = ctx.output(port)?;
            std::fs::write(out, text).map_err(|e| StageError::io("cannot write", out, &e))?;
        }
        Ok(())
    }
}

/// Marks `eval` of each kind's prompts (a share, or a count over all kinds), evenly spread in file order.
fn choose(prompts: &[Prompt], eval: f64) -> Vec<bool> {
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
    let text = super::read_text(path)?;
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
        prompts.push(Prompt { id, kind, prompt: text_of("prompt")? });
    }
    Ok(prompts)
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
        kinds.iter().enumerate().map(|(i, k)| Prompt { id: i as i64, kind: (*k).into(), prompt: "p".into() }).collect()
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
            (r#"[1]"#, "expected an object, found a list"),
        ] {
            std::fs::write(&file, format!("{{\"id\": 0, \"kind\": \"json\", \"prompt\": \"x\"}}\n{line}\n")).expect("write");
            let error = read_prompts(&file).expect_err("must refuse").message;
            assert!(error.contains("line 2") && error.contains(wanted), "{error}");
        }
    }
}
