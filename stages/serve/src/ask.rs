//! What a client asks: JSON in the form of OpenAI's API, checked once, field by field.

use flow_lm::TokenId;
use flow_lm::error::{Concern, RequestError};
use flow_lm::infer::{Grammar, Sampling};
use serde::Deserialize;
use serde_json::{Map, Number, Value, json};

use crate::error::ApiError;

/// Bounds of what a request may ask for.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// Choices of a request.
    pub n: usize,
    /// Alternatives told with a token.
    pub logprobs: usize,
    /// Texts that end an answer, and the bytes of each.
    pub stops: (usize, usize),
    /// Entries of `logit_bias`.
    pub bias: usize,
    /// Messages, and tools.
    pub parts: usize,
    /// Prompts of a completion.
    pub prompts: usize,
    /// Candidates of a token of given text, and temperatures of its tail.
    pub candidates: usize,
    /// See [`Self::candidates`].
    pub taus: usize,
}

impl Default for Bounds {
    fn default() -> Self {
        Self { n: 8, logprobs: 20, stops: (16, 256), bias: 1024, parts: 1024, prompts: 64, candidates: 128, taus: 3 }
    }
}

/// Fields that both kinds of completions have.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Fields {
    max_tokens: Option<u64>,
    max_completion_tokens: Option<u64>,
    temperature: Option<f32>,
    top_p: Option<f32>,
    top_k: Option<i64>,
    min_p: Option<f32>,
    #[serde(alias = "repetition_penalty")]
    repeat_penalty: Option<f32>,
    presence_penalty: Option<f32>,
    frequency_penalty: Option<f32>,
    seed: Option<Number>,
    n: Option<u64>,
    stop: Option<Texts>,
    stream: Option<bool>,
    stream_options: Option<StreamOptions>,
    logit_bias: Option<Map<String, Value>>,
    response_format: Option<Value>,
    grammar: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Texts {
    One(String),
    Many(Vec<String>),
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct StreamOptions {
    include_usage: bool,
}

/// What is asked of every choice.
#[derive(Clone, Debug)]
pub struct Asked {
    /// The field that holds the prompt.
    pub prompt: &'static str,
    /// Which of the draws with its seed the first choice is.
    pub draw: u64,
    /// Tokens of an answer, where the client says how many.
    pub max_tokens: Option<usize>,
    /// How they are chosen.
    pub sampling: Sampling,
    /// Answers.
    pub n: usize,
    /// Texts that end one.
    pub stop: Vec<String>,
    /// Whether it is told as it comes, and whether usage is told at the end of that.
    pub stream: bool,
    /// Whether a stream ends with usage.
    pub usage: bool,
    /// What an answer must be.
    pub grammar: Option<Grammar>,
}

/// Fields whose meaning is not offered: asking for them is refused by name instead of ignored.
const NOT_OFFERED: [(&str, &str); 6] = [
    ("suffix", "text between a prompt and a suffix is not offered"),
    ("best_of", "`best_of` is not offered: ask for `n` answers"),
    ("audio", "audio is not offered"),
    ("functions", "`functions` is the older form of `tools`"),
    ("function_call", "`function_call` is the older form of `tool_choice`"),
    ("web_search_options", "searching the web is not offered"),
];

/// Whether a field says something.
fn says(value: &Value) -> bool {
    !(value.is_null() || value == &json!("") || value == &json!(1))
}

impl Asked {
    /// Reads the fields of a request.
    pub fn read(body: &Value, prompt: &'static str, bounds: &Bounds, vocab: usize) -> Result<Self, ApiError> {
        for (field, why) in NOT_OFFERED {
            if says(&body[field]) && !(field == "best_of" && body[field] == body["n"]) {
                return Err(ApiError::field(field, why));
            }
        }
        let fields: Fields = Fields::deserialize(body).map_err(|e| named(body, &e.to_string()))?;
        let n = fields.n.unwrap_or(1) as usize;
        if n == 0 || n > bounds.n {
            return Err(ApiError::field("n", format!("{n} answers: 1 to {} are given", bounds.n)));
        }
        let stop = match fields.stop {
            None => Vec::new(),
            Some(Texts::One(text)) => vec![text],
            Some(Texts::Many(all)) => all,
        };
        let (most, bytes) = bounds.stops;
        if stop.len() > most || stop.iter().any(|s| s.len() > bytes) {
            return Err(ApiError::field("stop", format!("at most {most} texts of at most {bytes} bytes")));
        }
        let sampling = Sampling {
            // Some clients send next to nothing where they mean 0.
            temperature: fields.temperature.map_or(1.0, |t| if (0.0..1e-5).contains(&t) { 0.0 } else { t }),
            top_p: fields.top_p.unwrap_or(1.0),
            // −1 means all of them to some clients.
            top_k: fields.top_k.map_or(0, |k| usize::try_from(k).unwrap_or(0)),
            min_p: fields.min_p.unwrap_or(0.0),
            repetition_penalty: fields.repeat_penalty.unwrap_or(1.0),
            presence_penalty: fields.presence_penalty.unwrap_or(0.0),
            frequency_penalty: fields.frequency_penalty.unwrap_or(0.0),
            bias: bias(fields.logit_bias.as_ref(), bounds, vocab)?,
            mask: None,
            seed: fields.seed.map_or_else(|| Ok(any_seed()), |s| seed(&s))?,
        };
        sampling.check(vocab).map_err(|e| match &e.concern {
            Concern::Request(RequestError::Sampling { field, .. }) => ApiError::field(field, e.to_string()),
            _ => ApiError::from(e),
        })?;
        let max_tokens = fields.max_completion_tokens.or(fields.max_tokens).map(|n| n as usize);
        Ok(Self {
            prompt,
            draw: 0,
            max_tokens,
            sampling,
            n,
            stop,
            stream: fields.stream.unwrap_or(false),
            usage: fields.stream_options.is_some_and(|o| o.include_usage),
            grammar: grammar(fields.response_format.as_ref(), fields.grammar)?,
        })
    }
}

/// A seed of 64 bits, however it is written.
fn seed(given: &Number) -> Result<u64, ApiError> {
    let found = given.as_u64().or(given.as_i64().map(|s| s as u64));
    found.ok_or_else(|| ApiError::field("seed", format!("a whole number, not {given}")))
}

/// A seed for who gives none: the clock's nanoseconds.
fn any_seed() -> u64 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |d| d.as_nanos() as u64)
}

/// The field that a reader's message is about: the first one that alone gives the same message.
fn named(body: &Value, message: &str) -> ApiError {
    let alone = |(name, value): (&String, &Value)| {
        let wrong = Fields::deserialize(&json!({ name: value })).is_err_and(|e| e.to_string() == message);
        wrong.then(|| name.clone())
    };
    let field = body.as_object().and_then(|all| all.iter().find_map(alone));
    match field {
        Some(field) => ApiError::field(&field, format!("`{field}`: {message}")),
        None => ApiError::new(axum::http::StatusCode::BAD_REQUEST, message),
    }
}

fn bias(given: Option<&Map<String, Value>>, bounds: &Bounds, vocab: usize) -> Result<Vec<(TokenId, f32)>, ApiError> {
    let Some(given) = given else { return Ok(Vec::new()) };
    if given.len() > bounds.bias {
        return Err(ApiError::field("logit_bias", format!("at most {} tokens", bounds.bias)));
    }
    let one = |(name, value): (&String, &Value)| {
        let id: Option<u32> = name.parse().ok().filter(|id| (*id as usize) < vocab);
        let amount = value.as_f64().filter(|a| (-100.0..=100.0).contains(a));
        let wrong = || ApiError::field("logit_bias", format!("ids below {vocab} and amounts from -100 to 100, not {name}: {value}"));
        id.zip(amount).map(|(id, a)| (TokenId(id), a as f32)).ok_or_else(wrong)
    };
    given.iter().map(one).collect()
}

fn grammar(format: Option<&Value>, gbnf: Option<String>) -> Result<Option<Grammar>, ApiError> {
    let format = match format {
        None | Some(Value::Null) => return Ok(gbnf.map(Grammar::Gbnf)),
        Some(format) => format,
    };
    match format["type"].as_str() {
        Some("text") => Ok(gbnf.map(Grammar::Gbnf)),
        _ if gbnf.is_some() => Err(ApiError::field("grammar", "either `grammar` or `response_format`")),
        Some("json_object") => Ok(Some(Grammar::Object)),
        Some("json_schema") => {
            let schema = &format["json_schema"]["schema"];
            if !schema.is_object() {
                return Err(ApiError::field("response_format", "`json_schema` needs an object `schema`"));
            }
            Ok(Some(Grammar::Schema(schema.clone())))
        }
        _ => Err(ApiError::field("response_format", format!("`text`, `json_object` or `json_schema`, not {}", format["type"]))),
    }
}

/// Text of a message's `content`: a text, or parts that are texts; anything else is refused by name.
pub fn content(message: &Value, index: usize) -> Result<String, ApiError> {
    let param = format!("messages[{index}].content");
    match &message["content"] {
        Value::String(text) => Ok(text.clone()),
        Value::Null => Ok(String::new()),
        Value::Array(parts) => parts
            .iter()
            .map(|part| match part["type"].as_str() {
                Some("text") => {
                    part["text"].as_str().map(str::to_owned).ok_or_else(|| ApiError::field(&param, "a part of type `text` needs `text`"))
                }
                Some(kind @ ("image_url" | "input_audio" | "file")) => {
                    Err(ApiError::field(&param, format!("`{kind}` is not offered: the model reads text")))
                }
                Some("refusal") => Ok(part["refusal"].as_str().unwrap_or_default().to_owned()),
                _ => Err(ApiError::field(&param, format!("parts of type `text`, not {}", part["type"]))),
            })
            .collect(),
        other => Err(ApiError::field(&param, format!("a text or a list of parts, not {other}"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(body: &Value) -> Result<Asked, ApiError> {
        Asked::read(body, "messages", &Bounds::default(), 100)
    }

    #[test]
    fn fields_have_openais_meaning_and_defaults() {
        let asked = read(&json!({})).expect("nothing is asked");
        assert_eq!((asked.n, asked.max_tokens, asked.sampling.temperature, asked.stream), (1, None, 1.0, false));
        let asked = read(&json!({"max_tokens": 3, "max_completion_tokens": 5, "seed": -1, "stop": "x", "top_k": -1, "temperature": 0,
            "logit_bias": {"7": -100, "8": 1.5}, "stream": true, "stream_options": {"include_usage": true}, "user": "u", "n": null}))
        .expect("all of it is known");
        assert_eq!((asked.max_tokens, asked.sampling.seed, asked.sampling.top_k), (Some(5), u64::MAX, 0));
        assert_eq!(asked.sampling.bias, [(TokenId(7), -100.0), (TokenId(8), 1.5)]);
        assert!(asked.stream && asked.usage && asked.stop == ["x"]);
    }

    #[test]
    fn what_cannot_be_is_named() {
        for (body, param) in [
            (json!({"temperature": "hot"}), "temperature"),
            (json!({"n": 0}), "n"),
            (json!({"n": 99}), "n"),
            (json!({"n": 1.5}), "n"),
            (json!({"stop": vec!["a"; 17]}), "stop"),
            (json!({"logit_bias": {"100": 1}}), "logit_bias"),
            (json!({"logit_bias": {"x": 1}}), "logit_bias"),
            (json!({"logit_bias": {"1": 101}}), "logit_bias"),
            (json!({"suffix": "end"}), "suffix"),
            (json!({"best_of": 3}), "best_of"),
            (json!({"response_format": {"type": "xml"}}), "response_format"),
            (json!({"response_format": {"type": "json_schema"}}), "response_format"),
            (json!({"grammar": "root ::= \"a\"", "response_format": {"type": "json_object"}}), "grammar"),
        ] {
            let e = read(&body).expect_err(&body.to_string());
            assert_eq!((e.status.as_u16(), e.param.as_deref()), (400, Some(param)), "{body}: {}", e.message);
        }
        assert!(read(&json!({"temperature": -1})).expect_err("below 0").message.contains("temperature"));
        let image = json!({"content": [{"type": "image_url", "image_url": {}}]});
        assert!(content(&image, 3).is_err_and(|e| e.param.as_deref() == Some("messages[3].content") && e.message.contains("image_url")));
        let parts = json!({"content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]});
        assert_eq!(content(&parts, 0).expect("texts"), "ab");
    }
}
