//! Answers to prompts of kind `json`: whether they are the JSON that was asked for, and what holds a model to it.

use std::collections::HashMap;

use flow_engine::plugin::StageError;
use flow_lm::config::Bits;
use flow_lm::format::Checkpoint;
use flow_lm::infer::{Constraint, Grammar, KvCache, Vocabulary};
use flow_lm::tokenizer::{TokenId, Tokenizer};
use flow_shaders::device::Device;
use serde_json::{Deserializer, Value};

use super::continuations::answers;
use crate::data::Prompt;

/// The kind of prompts whose answers are JSON.
const JSON: &str = "json";

/// An answer, as its validity is judged.
#[derive(Clone, Copy, Debug)]
pub struct Said<'a> {
    /// The answer.
    pub text: &'a str,
    /// Whether it ended by itself, not at the most tokens.
    pub whole: bool,
}

/// Share of valid answers among the JSON prompts; none where there are no such prompts.
pub fn json_validity<'a>(answers: impl Iterator<Item = (&'a Prompt, Said<'a>)>) -> Option<f64> {
    let (mut n, mut valid, mut validators) = (0u32, 0u32, Validators::default());
    for (prompt, said) in answers.filter(|(p, _)| p.kind == JSON) {
        n += 1;
        valid += u32::from(validators.accept(prompt, said));
    }
    (n > 0).then(|| f64::from(valid) / f64::from(n))
}

/// Validators of schemas, each made once.
#[derive(Default)]
struct Validators(HashMap<String, Option<jsonschema::Validator>>);

impl Validators {
    /// Whether the value that prompt and answer are together (the answer alone where the prompt begins none) is one that the
    /// prompt's schema allows. A value that was cut off is none.
    fn accept(&mut self, prompt: &Prompt, said: Said<'_>) -> bool {
        let begun = prompt.prompt.trim_start().starts_with(['{', '[']);
        let text = if begun { format!("{}{}", prompt.prompt, said.text) } else { said.text.to_owned() };
        let Some(value) = first_value(&text, said.whole) else { return false };
        let Some(schema) = &prompt.schema else { return true };
        let validator = self.0.entry(schema.to_string()).or_insert_with(|| jsonschema::validator_for(schema).ok());
        validator.as_ref().is_some_and(|v| v.is_valid(&value))
    }
}

/// The value that a text begins with, if nothing else is on the line where it ends; `whole`: the text was not cut off.
fn first_value(text: &str, whole: bool) -> Option<Value> {
    let mut values = Deserializer::from_str(text).into_iter::<Value>();
    let value = values.next()?.ok()?;
    let rest = &text[values.byte_offset()..];
    let line = rest.lines().next().unwrap_or_default();
    // A number at the end of what was cut off may have gone on.
    let ended = value.is_object() || value.is_array() || whole || rest.contains('\n');
    (line.trim().is_empty() && ended).then_some(value)
}

/// Share of valid answers of a model to the JSON prompts among these (`inputs` as it reads them) where it is held to their
/// schemas; none where there are no such prompts. `go_on` is asked meanwhile.
pub fn held_validity(
    device: &Device,
    (model, tokenizer): (&Checkpoint, &Tokenizer),
    (prompts, inputs): (&[Prompt], &[Vec<TokenId>]),
    how: (Bits, usize, KvCache),
    go_on: impl Fn() -> Result<(), StageError>,
) -> Result<Option<f64>, StageError> {
    let (asked, inputs): (Vec<&Prompt>, Vec<Vec<TokenId>>) =
        prompts.iter().zip(inputs.iter().cloned()).filter(|(p, _)| p.kind == JSON).unzip();
    if asked.is_empty() {
        return Ok(None);
    }
    let held = constraints(tokenizer, model.config.vocab, &asked)?;
    let answers = answers(device, model, tokenizer, (inputs, held), how, |_| go_on())?;
    let texts: Vec<String> = answers.iter().map(|a| tokenizer.decode_lossy(&a.tokens)).collect();
    let said = answers.iter().zip(&texts).map(|(a, text)| Said { text, whole: a.stopped });
    Ok(json_validity(asked.into_iter().zip(said)))
}

/// What holds a model of `vocab` tokens to the JSON of each of these prompts; a prompt that begins its value has it continued.
fn constraints(tokenizer: &Tokenizer, vocab: usize, prompts: &[&Prompt]) -> Result<Vec<Constraint>, StageError> {
    let vocabulary = Vocabulary::new(tokenizer, vocab)?;
    let mut compiled: HashMap<String, Constraint> = HashMap::new();
    let one = |prompt: &&Prompt| {
        let name = prompt.schema.as_ref().map(Value::to_string).unwrap_or_default();
        if !compiled.contains_key(&name) {
            let grammar = prompt.schema.clone().map_or(Grammar::Object, Grammar::Schema);
            let constraint = vocabulary.compile(&grammar).map_err(|e| StageError::new(format!("prompt {}: its schema: {e}", prompt.id)))?;
            compiled.insert(name.clone(), constraint);
        }
        let mut constraint = compiled[&name].fresh();
        // A prompt that is no beginning asks for all of the value.
        constraint.read(&tokenizer.encode(&prompt.prompt));
        Ok(constraint)
    };
    prompts.iter().map(one).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn valid(prompt: &str, schema: Option<Value>, text: &str, whole: bool) -> bool {
        let prompt = Prompt { id: 0, kind: JSON.into(), prompt: prompt.into(), schema };
        json_validity([(&prompt, Said { text, whole })].into_iter()) == Some(1.0)
    }

    #[test]
    fn the_first_value_decides_and_nothing_may_stand_beside_it() {
        assert!(valid("{\"a\":", None, " 1}\nand so on", false));
        assert!(valid("{\"a\":", None, " 1}", false) && valid("{\"a\":", None, "\n1\n}", true));
        assert!(!valid("{\"a\":", None, " 1", true) && !valid("{\"a\":", None, " 1} and so on\n", true));
        assert!(valid("Give me a number", None, "12", true) && !valid("Give me a number", None, "12", false));
        assert!(valid("Give me a number", None, "12\n", false));
    }

    #[test]
    fn schemas_decide_where_there_are_some() {
        let schema = json!({"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]});
        assert!(valid("{\"a\":", Some(schema.clone()), " 1}", true));
        assert!(!valid("{\"a\":", Some(schema.clone()), " \"1\"}", true));
        assert!(!valid("{\"b\":", Some(schema.clone()), " 1}", true));
        assert!(valid("Give me an object", Some(schema), "{\"a\": 2}", true));
    }
}
