//! What clients of others asked, once more: the answers have the status and the shape that the clients were content with.
//!
//! `tests/clients/run.sh` runs the clients themselves. `record.py` between them and a server writes down what is said;
//! `FLOW_RECORD=DIR` makes the exchanges here of such files.

mod support {
    #[allow(dead_code)]
    pub mod served;
}

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use support::served::Served;

const RECORDED: &str = "tests/clients/recorded.jsonl";

fn root(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(name)
}

/// Where which kinds of values stand; the members of lists, and the chunks of a stream, count as one.
fn shape(value: &Value, at: &str, to: &mut BTreeSet<String>) {
    match value {
        Value::Null => drop(to.insert(format!("{at}: null"))),
        Value::Bool(_) => drop(to.insert(format!("{at}: bool"))),
        Value::Number(_) => drop(to.insert(format!("{at}: number"))),
        Value::String(_) => drop(to.insert(format!("{at}: text"))),
        Value::Array(all) => {
            to.insert(format!("{at}: list"));
            all.iter().for_each(|v| shape(v, &format!("{at}[]"), to));
        }
        // Names that are tokens are none of the form.
        Value::Object(all) if at.ends_with("top_logprobs[]") && !all.contains_key("token") => drop(to.insert(format!("{at}: tokens"))),
        Value::Object(all) => all.iter().for_each(|(k, v)| shape(v, &format!("{at}.{k}"), to)),
    }
}

/// The shape of an answer: of JSON, of a stream's chunks, or that it is a text.
fn shape_of(content_type: &str, body: &str, events: Option<Vec<String>>) -> BTreeSet<String> {
    let mut to = BTreeSet::new();
    if let Some(events) = events {
        for event in events {
            match serde_json::from_str(&event) {
                Ok(chunk) => shape(&chunk, "", &mut to),
                Err(_) => drop(to.insert(event)),
            }
        }
    } else if content_type.starts_with("application/json") && !body.is_empty() {
        shape(&serde_json::from_str(body).unwrap_or_else(|e| panic!("{e}: {body}")), "", &mut to);
    } else {
        to.insert("a text".into());
    }
    to
}

/// Bytes of a request that is kept.
const LARGEST: usize = 8 << 10;

fn record(from: &Path) {
    let mut out = String::new();
    for client in ["openai", "litellm", "ai", "curl"] {
        let text = std::fs::read_to_string(from.join(format!("{client}.jsonl"))).unwrap();
        for line in text.lines().filter(|l| !l.contains("\"cut\": true")) {
            let one: Value = serde_json::from_str(line).unwrap();
            // What a client cut short, or was refused before it was read, is none of its requests.
            if one["request"].to_string().len() > LARGEST || one["headers"].to_string().len() > LARGEST || one["status"] == 431 {
                continue;
            }
            let kind = one["content_type"].as_str().unwrap_or_default();
            let events = one["response"].as_array().map(|e| e.iter().map(|v| v.as_str().map_or(v.to_string(), str::to_owned)).collect());
            let shape = shape_of(kind, one["response"].as_str().unwrap_or_default(), events);
            let kept = json!({"client": client, "method": one["method"], "path": one["path"], "headers": one["headers"], "request": one["request"],
                "status": one["status"], "content_type": kind, "shape": shape});
            out += &format!("{kept}\n");
        }
    }
    std::fs::write(root(RECORDED), out).unwrap();
}

#[test]
fn what_clients_asked_is_answered_in_the_shape_that_they_read() {
    if let Some(from) = std::env::var_os("FLOW_RECORD").filter(|d| Path::new(d).join("openai.jsonl").is_file()) {
        record(Path::new(&from));
    }
    let model = root("tests/golden/gguf/student-tq2_0.gguf").display().to_string();
    let server = Served::start(&model, &["--name", "student", "--score"]);
    let (mut wrong, mut clients) = (Vec::new(), BTreeSet::new());
    for (n, line) in std::fs::read_to_string(root(RECORDED)).unwrap().lines().enumerate() {
        let one: Value = serde_json::from_str(line).unwrap();
        clients.insert(one["client"].as_str().unwrap().to_owned());
        let headers: Vec<(&str, &str)> =
            one["headers"].as_object().unwrap().iter().map(|(k, v)| (k.as_str(), v.as_str().unwrap_or_default())).collect();
        let body = match &one["request"] {
            Value::Null => String::new(),
            Value::String(text) => text.clone(),
            value => value.to_string(),
        };
        let method = one["method"].as_str().unwrap();
        let heard = server.ask(method, one["path"].as_str().unwrap(), &headers, &body);
        let kind = heard.header("content-type").unwrap_or_default().to_owned();
        let events = kind.starts_with("text/event-stream").then(|| heard.events());
        let body = if method == "HEAD" { "" } else { &heard.body };
        let found = shape_of(&kind, body, events);
        let wanted: BTreeSet<String> = serde_json::from_value(one["shape"].clone()).unwrap();
        if one["status"] != heard.status || one["content_type"] != kind || found != wanted {
            let differ: Vec<&String> = found.symmetric_difference(&wanted).collect();
            wrong.push(format!("line {}: {method} {} {}: {} {kind}: {differ:?}", n + 1, one["path"], one["request"], heard.status));
        }
    }
    assert!(wrong.is_empty(), "{} differ:\n{}", wrong.len(), wrong.join("\n"));
    assert_eq!(clients.len(), 4, "{clients:?}");
}
