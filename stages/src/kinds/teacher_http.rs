//! `teacher.http`: a teacher behind an API. The stage itself asks nothing: its artifact says who is asked and how.

use flow_engine::plugin::{InputPort, OutputPort, ParamError, Stage, StageError, TaskContext};

use crate::task;
use crate::teacher::http::params::HttpParams;
use crate::teacher::http::preset::Offered;
use crate::teacher::http::spec;

/// `teacher.http`.
pub struct HttpTeacherStage;

/// Fields that the client sets itself.
const RESERVED: [&str; 8] = ["model", "messages", "prompt", "stream", "logprobs", "top_logprobs", "n", "contents"];

impl Stage for HttpTeacherStage {
    type Params = HttpParams;
    const KIND: &'static str = "teacher.http";
    // Raised also where a preset's address, most alternatives or fields change, and with `spec::READING`.
    const REVISION: u32 = 2;
    const SUMMARY: &'static str = "Names a teacher behind an API: provider, model, limits and prices. Asks nothing itself.";

    fn inputs(&self) -> Vec<InputPort> {
        Vec::new()
    }
    fn outputs(&self) -> Vec<OutputPort> {
        vec![OutputPort::pure("teacher", "Teacher", "Who is asked and how (`teacher.json`); no secret is in it.")]
    }
    fn check(&self, p: &HttpParams) -> Result<Vec<String>, ParamError> {
        let preset = p.provider.preset();
        let wrong = |path: &str, message: String, help: Option<String>| Err(ParamError { path: path.into(), message, help });
        if p.model.trim().is_empty() {
            return wrong("model", "is empty: name the model as the provider calls it".into(), None);
        }
        p.spec()?;
        if let (Some(usual), None, None) = (preset.key, &p.base_url, p.api_key_env.as_deref().filter(|v| !v.is_empty())) {
            let help = format!("export {usual}=… in your shell and write `api_key_env: {usual}`; the key itself belongs into no file");
            return wrong("api_key_env", format!("{} needs a key, and no variable is named", preset.name), Some(help));
        }
        if let Some(name) = p.api_key_env.as_deref().filter(|v| !v.is_empty() && !v.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_'))
        {
            let shown: String = name.chars().take(4).collect();
            return wrong("api_key_env", format!("`{shown}…` is no name of a variable: it takes the name, never the key itself"), None);
        }
        if let Some(name) = p.headers.keys().find(|h| is_credential(h)) {
            return wrong(
                "headers",
                format!("`{name}` holds a credential, which would be written into files"),
                Some("name a variable in `api_key_env`".into()),
            );
        }
        if let Some(field) = p.body.keys().find(|k| RESERVED.contains(&k.as_str())) {
            return wrong("body", format!("`{field}` is set by the collection itself"), None);
        }
        if p.ask_top_k.is_some_and(|k| k > 128) {
            return wrong("ask_top_k", "more than 128 alternatives".into(), None);
        }
        check_limits(p)?;
        Ok(notes(p))
    }
    fn run(&self, p: HttpParams, ctx: &TaskContext) -> Result<(), StageError> {
        let spec = p.spec().map_err(|e| StageError::new(format!("{}: {}", e.path, e.message)))?;
        let preset = spec.preset();
        ctx.log(format!(
            "training with outputs of {}: {} (as of {}); read them before you train",
            preset.name, preset.terms, preset.written
        ));
        let dir = ctx.output("teacher")?;
        std::fs::create_dir_all(dir).map_err(|e| StageError::io("cannot make", dir, &e))?;
        task::write_json(&dir.join(spec::FILE), &spec)
    }
}

fn is_credential(header: &str) -> bool {
    let name = header.to_ascii_lowercase();
    name.contains("authorization") || name.contains("api-key") || name.contains("apikey") || name.contains("token") || name == "cookie"
}

fn check_limits(p: &HttpParams) -> Result<(), ParamError> {
    let wrong = |path: &str, message: String| Err(ParamError { path: path.into(), message, help: None });
    for (path, value) in [
        ("timeout", p.timeout),
        ("connect_timeout", p.connect_timeout),
        ("backoff", p.backoff),
        ("backoff_max", p.backoff_max),
        ("outage", p.outage),
    ] {
        if !(value > 0.0 && value <= 86_400.0) {
            return wrong(path, format!("{value} is not a number of seconds above 0 and up to a day"));
        }
    }
    for (path, value) in [("requests_per_minute", p.requests_per_minute), ("tokens_per_minute", p.tokens_per_minute)] {
        if let Some(v) = value.filter(|v| !(v.is_finite() && *v > 0.0)) {
            return wrong(path, format!("{v} is not above 0"));
        }
    }
    for (path, value) in [("price_prompt", p.price_prompt), ("price_completion", p.price_completion), ("budget_cost", p.budget_cost)] {
        if let Some(v) = value.filter(|v| !(v.is_finite() && *v >= 0.0)) {
            return wrong(path, format!("{v} is not 0 or more"));
        }
    }
    if p.budget_cost.is_some() && (p.price_prompt.is_none() || p.price_completion.is_none()) {
        return wrong("budget_cost", "needs `price_prompt` and `price_completion`, per million tokens".into());
    }
    if p.concurrency == 0 || p.concurrency > 1024 || p.attempts == 0 {
        return wrong("concurrency", "concurrency (up to 1024) and attempts must be above 0".into());
    }
    Ok(())
}

/// What this teacher makes unavailable; `plan` prints it.
fn notes(p: &HttpParams) -> Vec<String> {
    let preset = p.provider.preset();
    let mut notes = Vec::new();
    match preset.offered {
        Offered::No => notes.push(format!("{} gives no logprobs: its traces hold hard targets only", preset.name)),
        Offered::Some => notes.push(format!("{} gives logprobs with some models only: `flow teacher probe` tells", preset.name)),
        Offered::Yes => {}
    }
    if preset.scoring.is_none() {
        notes.push("given text cannot be scored there: it is cut into beginnings that the teacher continues (`source: sample`)".into());
    }
    notes.push("KL from the teacher and its bits per byte are not available with a hosted teacher, nor the QEI made of them; agreement is measured on the sampled steps".into());
    if p.memory_bytes.is_none() {
        notes.push("`memory_bytes` is not given: reports compare no memory".into());
    }
    notes
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::teacher::http::spec::Spec;
    use serde_json::{Value, json};

    fn params(more: Value) -> HttpParams {
        let mut value = json!({"provider": "openai", "model": "m", "base_url": "http://127.0.0.1:1"});
        value.as_object_mut().expect("object").extend(more.as_object().expect("object").clone());
        serde_json::from_value(value).expect("parameters")
    }

    #[test]
    fn what_cannot_work_or_would_leak_is_refused() {
        let refused = |more: Value, path: &str| {
            let error = HttpTeacherStage.check(&params(more)).expect_err("must refuse");
            assert_eq!(error.path, path, "{}", error.message);
            assert!(!error.message.contains("sk-secret"), "{}", error.message);
        };
        refused(json!({"model": ""}), "model");
        refused(json!({"base_url": null}), "api_key_env");
        refused(json!({"api_key_env": "sk-secret-1"}), "api_key_env");
        refused(json!({"base_url": "http://u:p@h/v1"}), "base_url");
        refused(json!({"headers": {"Authorization": "Bearer x"}}), "headers");
        refused(json!({"body": {"stream": true}}), "body");
        refused(json!({"budget_cost": 1.0}), "budget_cost");
        refused(json!({"timeout": 0.0}), "timeout");
        refused(json!({"concurrency": 0}), "concurrency");
        assert!(HttpTeacherStage.check(&params(json!({}))).is_ok());
    }

    #[test]
    fn limits_are_not_in_the_artifact_and_memory_is_not_in_the_digest() {
        let (a, b) = (params(json!({})), params(json!({"concurrency": 2, "api_key_env": "A_KEY", "price_prompt": 1.0})));
        assert_eq!(a.spec().expect("spec"), b.spec().expect("spec"));
        let c = params(json!({"memory_bytes": 5}));
        assert_eq!(a.spec().expect("spec").digest(), c.spec().expect("spec").digest());
        let earlier = Spec { reading: 0, ..a.spec().expect("spec") };
        assert_eq!(earlier.digest(), a.spec().expect("spec").digest(), "a lock of an earlier version holds");
        assert!(serde_json::to_value(&earlier).expect("JSON").get("reading").is_none());
        assert_ne!(a.spec().expect("spec").digest(), params(json!({"model": "n"})).spec().expect("spec").digest());
        assert_eq!(b.limits().expect("limits").key_variable(), Some("A_KEY"));
    }
}
