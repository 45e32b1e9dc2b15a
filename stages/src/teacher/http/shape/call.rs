//! A request, and what is expected of its answer.

use std::sync::Arc;

use serde_json::{Value, json};

use crate::teacher::http::preset::{Scoring, Shape};
use crate::teacher::http::spec::Spec;
use crate::teacher::journal::AnswerKey;

/// How an answer is drawn.
#[derive(Clone, Debug)]
pub struct Draw {
    /// Most tokens.
    pub max_tokens: usize,
    /// Temperature; 0 is greedy.
    pub temperature: f64,
    /// Nucleus.
    pub top_p: f64,
    /// Seed, where the provider takes one.
    pub seed: Option<u64>,
    /// Texts that end an answer.
    pub stop: Vec<String>,
    /// Whether logprobs are wanted.
    pub logprobs: bool,
}

/// One request.
#[derive(Clone, Debug)]
pub struct Call {
    /// After the base URL; with `//` before it, after the server's root.
    pub path: String,
    /// JSON.
    pub body: Value,
    /// Which sample of the same prompt.
    pub sample: i32,
    /// What is expected of the answer.
    pub expect: Expect,
    /// Most tokens that prompt and answer can have.
    pub most: (u64, u64),
}

/// What makes an answer whole.
#[derive(Clone, Debug, PartialEq)]
pub enum Expect {
    /// A text.
    Text,
    /// A text with logprobs.
    Logprobs,
    /// Logprobs, of whatever.
    Probe,
    /// The pieces of this text (`/tokenize`).
    Pieces(Arc<str>),
    /// The distributions of this text's tokens.
    Scored(Scoring, Arc<str>),
    /// The distribution that this token of a given text came from.
    Next(Step),
    /// What only `flow serve` tells.
    Served(Served),
}

/// What is expected of an answer of `flow serve` beyond what others tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Served {
    /// What the model is.
    Model,
    /// The ids of a continuation.
    Ids,
    /// So many rows of so many candidates, each with so many figures of its tail.
    Rows(usize, usize, usize),
}

impl Call {
    /// Under which key the answer is kept.
    pub fn key(&self, spec: &Spec) -> AnswerKey {
        let parts = json!([spec.preset().name, spec.base_url, self.path, spec.model, self.body, self.sample]);
        AnswerKey(*blake3::hash(format!("flow-answer 1\n{}", flow_engine::key::canonical(&parts)).as_bytes()).as_bytes())
    }
    /// What is sent: the body, and what only says how the answer shall travel. That is in no key.
    pub fn sent(&self, spec: &Spec) -> Value {
        let mut body = self.body.clone();
        let generates = spec.preset().shape != Shape::Gemini && !matches!(self.expect, Expect::Pieces(_));
        if let Value::Object(fields) = &mut body
            && generates
        {
            // Some servers stream unless they are told not to.
            fields.insert("stream".into(), false.into());
        }
        body
    }
    /// Texts that end an answer.
    pub fn stops(&self) -> Vec<String> {
        let fields = [&self.body["stop"], &self.body["stop_sequences"], &self.body["generationConfig"]["stopSequences"]];
        let texts = |v: &Value| match v {
            Value::String(one) => vec![one.clone()],
            Value::Array(all) => all.iter().filter_map(|t| t.as_str().map(str::to_owned)).collect(),
            _ => Vec::new(),
        };
        fields.into_iter().flat_map(texts).collect()
    }
    /// Where it goes.
    pub fn url(&self, spec: &Spec) -> String {
        match self.path.strip_prefix("//") {
            Some(path) => format!("{}/{path}", spec.base_url.strip_suffix("/v1").unwrap_or(&spec.base_url)),
            None => format!("{}{}", spec.base_url, self.path),
        }
    }
}

/// One token of an answer or of a given text.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Step {
    /// Its bytes; none if it ended the answer.
    pub bytes: Vec<u8>,
    /// Its id, where the teacher tells it.
    pub id: Option<i32>,
    /// Its logprob, where the teacher tells it.
    pub logprob: Option<f64>,
    /// Alternatives that can be read: bytes (none for an end), id, logprob.
    pub top: Vec<(Vec<u8>, Option<i32>, f64)>,
}
