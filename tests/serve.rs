//! `flow serve` with a client that sees every byte: answers, streams, doors, bounds, and its end.

mod support {
    #[allow(dead_code)]
    pub mod served;
}

use std::collections::BTreeMap;
use std::io::Read;
use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use support::served::{Heard, Served, heard};

fn golden(name: &str) -> String {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name).display().to_string()
}

fn server(args: &[&str]) -> Served {
    Served::start(&golden("gguf/student-tq2_0.gguf"), &[&["--name", "student"], args].concat())
}

const TEXT: &str = "/v1/completions";
const CHAT: &str = "/v1/chat/completions";

/// A seeded draw of 16 tokens.
fn drawn(seed: u64) -> Value {
    json!({"prompt": format!("We have seen {seed}"), "max_tokens": 16, "temperature": 50, "seed": seed, "return_token_ids": true})
}

fn error(heard: &Heard) -> (u16, String, Value) {
    let error = &heard.json()["error"];
    (heard.status, error["message"].as_str().unwrap_or_default().to_owned(), error["param"].clone())
}

#[test]
fn answers_have_openais_form_and_streams_join_to_them() {
    let server = server(&["--score"]);
    let models = server.get("/v1/models").json();
    assert_eq!((models["data"][0]["id"].as_str(), models["object"].as_str()), (Some("student"), Some("list")));
    assert_eq!(server.get("/v1/models/student").status, 200);
    assert_eq!(server.get("/v1/models/other").json()["error"]["code"], "model_not_found");
    assert_eq!(server.get("/health").json()["status"], "ok");

    // Tokens there and back.
    let ids = server.post("/tokenize", &json!({"content": "We have seen"})).json()["tokens"].clone();
    assert_eq!(server.post("/detokenize", &json!({"tokens": ids})).json()["content"], "We have seen");

    // A text, whole and as a stream, by its text and by its ids.
    let ask = json!({"prompt": "We have seen", "max_tokens": 8, "temperature": 0, "echo": true, "logprobs": 2});
    let whole = server.post(TEXT, &ask).json();
    let choice = &whole["choices"][0];
    let logprobs = &choice["logprobs"];
    let tokens: Vec<&str> = logprobs["tokens"].as_array().unwrap().iter().map(|t| t.as_str().unwrap()).collect();
    assert_eq!(tokens.concat(), choice["text"].as_str().unwrap());
    assert!(choice["text"].as_str().unwrap().starts_with("We have seen ") && choice["finish_reason"] == "length", "{whole}");
    for (token, offset) in tokens.iter().zip(logprobs["text_offset"].as_array().unwrap()) {
        assert!(choice["text"].as_str().unwrap()[offset.as_u64().unwrap() as usize..].starts_with(token));
    }
    assert!(logprobs["token_logprobs"][0].is_null() && logprobs["token_logprobs"][1].as_f64().unwrap() < 0.0);
    let streamed = server.post(TEXT, &with(&ask, &json!({"stream": true, "stream_options": {"include_usage": true}}))).chunks();
    let text: String = streamed.iter().filter_map(|c| c["choices"][0]["text"].as_str()).collect();
    assert_eq!(text, choice["text"].as_str().unwrap());
    let joined =
        |field: &str| streamed.iter().filter_map(|c| c["choices"][0]["logprobs"][field].as_array()).flatten().cloned().collect::<Vec<_>>();
    for field in ["tokens", "token_logprobs", "top_logprobs", "text_offset"] {
        assert_eq!(Value::from(joined(field)), logprobs[field], "{field}");
    }
    assert_eq!(streamed.last().unwrap()["usage"], whole["usage"]);
    let by_ids = server.post(TEXT, &with(&ask, &json!({"prompt": ids}))).json();
    assert_eq!(by_ids["choices"], whole["choices"]);

    // The given text alone: what it says when the text is continued.
    let alone = server.post(TEXT, &with(&ask, &json!({"max_tokens": 0}))).json();
    assert_eq!(alone["choices"][0]["text"], "We have seen");
    assert_eq!(
        alone["choices"][0]["logprobs"]["token_logprobs"],
        Value::from(&logprobs["token_logprobs"].as_array().unwrap()[..ids.as_array().unwrap().len()])
    );

    // Several prompts, several answers.
    let many = server.post(TEXT, &json!({"prompt": ["We have", "I am"], "n": 2, "max_tokens": 4, "temperature": 50, "seed": 3})).json();
    assert_eq!(many["choices"].as_array().unwrap().len(), 4);
    assert_ne!(many["choices"][0]["text"], many["choices"][1]["text"], "the choices of a prompt are draws of their own");

    // A conversation, whole and as a stream.
    let ask = json!({"messages": [{"role": "user", "content": [{"type": "text", "text": "We have seen"}]}], "max_completion_tokens": 9,
        "temperature": 50, "seed": 5, "n": 2, "logprobs": true, "top_logprobs": 3});
    let whole = server.post(CHAT, &ask).json();
    let chunks = server.post(CHAT, &with(&ask, &json!({"stream": true}))).chunks();
    for index in 0..2 {
        let choice = &whole["choices"][index];
        let content = choice["message"]["content"].as_str().unwrap();
        let told = |of: &dyn Fn(&Value) -> Option<String>| {
            chunks.iter().map(|c| &c["choices"][0]).filter(|c| c["index"] == index).filter_map(of).collect::<String>()
        };
        assert_eq!(told(&|c| c["delta"]["content"].as_str().map(str::to_owned)), content);
        assert_eq!(told(&|c| c["finish_reason"].as_str().map(str::to_owned)), choice["finish_reason"].as_str().unwrap());
        let entries = choice["logprobs"]["content"].as_array().unwrap();
        let bytes: Vec<u8> = entries.iter().flat_map(|e| e["bytes"].as_array().unwrap()).map(|b| b.as_u64().unwrap() as u8).collect();
        assert_eq!(String::from_utf8_lossy(&bytes), content);
        assert!(entries.iter().all(|e| e["top_logprobs"].as_array().unwrap().len() == 3));
    }
    // A text that ends an answer is not said.
    let text = whole["choices"][0]["message"]["content"].as_str().unwrap();
    let stop: String = text.chars().skip(5).take(4).collect();
    let ended = server.post(CHAT, &with(&ask, &json!({"stop": stop, "n": 1}))).json();
    assert_eq!(ended["choices"][0]["message"]["content"], text[..text.find(&stop).unwrap()]);
    assert_eq!(ended["choices"][0]["finish_reason"], "stop");
    // Nothing is asked for: that is said in a stream too. Next to no temperature is none.
    let nothing = server.post(CHAT, &json!({"messages": [{"role": "user", "content": "x"}], "max_tokens": 0, "stream": true})).chunks();
    assert!(nothing.iter().any(|c| c["choices"][0]["finish_reason"] == "length"), "{nothing:?}");
    let cold = |t: f64| {
        server.post(TEXT, &json!({"prompt": "We", "max_tokens": 6, "temperature": t, "top_k": 40, "seed": 1})).json()["choices"].clone()
    };
    assert_eq!(cold(1e-9), cold(0.0));
    let huge = server.post(TEXT, &json!({"prompt": "We", "max_tokens": u64::MAX}));
    assert_eq!((huge.status, huge.json()["error"]["code"].as_str()), (400, Some("context_length_exceeded")));
    // A token that is pushed is said.
    let forced = server
        .post(TEXT, &json!({"prompt": "We", "max_tokens": 3, "temperature": 0, "logit_bias": {"300": 100}, "return_token_ids": true}));
    assert_eq!(forced.json()["choices"][0]["token_ids"], json!([300, 300, 300]));
}

fn with(ask: &Value, more: &Value) -> Value {
    let mut all = ask.as_object().unwrap().clone();
    all.extend(more.as_object().unwrap().clone());
    Value::Object(all)
}

#[test]
fn a_seeded_answer_is_the_same_alone_and_among_others() {
    let server = server(&["--slots", "4"]);
    let alone: Vec<Value> = (0..10).map(|seed| server.post(TEXT, &drawn(seed)).json()["choices"].clone()).collect();
    let together: Vec<Value> = std::thread::scope(|scope| {
        let asking: Vec<_> = (0..10)
            .map(|seed| {
                scope.spawn({
                    let server = &server;
                    move || server.post(TEXT, &drawn(seed)).json()["choices"].clone()
                })
            })
            .collect();
        asking.into_iter().map(|a| a.join().unwrap()).collect()
    });
    assert_eq!(alone, together);
    let other = server.post(TEXT, &with(&drawn(3), &json!({"seed": 4}))).json();
    assert_ne!(other["choices"], alone[3]);
    // What a slot holds is not read again, and changes nothing.
    let long = json!({"prompt": "the cat sat on the mat and the dog ".repeat(8), "max_tokens": 4, "temperature": 1, "seed": 2});
    let (first, again) = (server.post(TEXT, &long).json(), server.post(TEXT, &long).json());
    assert_eq!(first["choices"], again["choices"]);
    assert!(again["usage"]["prompt_tokens_details"]["cached_tokens"].as_u64().unwrap() >= 32, "{again}");
    assert!(server.metric("flow_prompt_tokens_reused_total") >= 32.0);
}

#[test]
fn answers_are_held_to_schemas_and_tools() {
    let server = Served::start(&golden("models/tiny-llama"), &["--context", "512"]);
    let schema = json!({"type": "object", "properties": {"a": {"type": "integer", "minimum": 0, "maximum": 99}, "b": {"enum": ["x", "y"]}},
        "required": ["a", "b"], "additionalProperties": false});
    let ask = json!({"messages": [{"role": "user", "content": "go"}], "temperature": 1, "seed": 1, "n": 4,
        "response_format": {"type": "json_schema", "json_schema": {"name": "n", "strict": true, "schema": schema}}});
    let validator = jsonschema::validator_for(&schema).unwrap();
    let whole = server.post(CHAT, &ask);
    for choice in whole.json()["choices"].as_array().unwrap_or_else(|| panic!("{whole:?}")) {
        let value: Value = serde_json::from_str(choice["message"]["content"].as_str().unwrap()).unwrap();
        assert!(validator.is_valid(&value) && choice["finish_reason"] == "stop", "{value}");
    }
    let weather = json!({"type": "function", "function": {"name": "weather", "parameters": schema}});
    let ask = json!({"messages": [{"role": "user", "content": "go"}], "temperature": 1, "seed": 2, "tools": [weather], "tool_choice": "required"});
    let whole = server.post(CHAT, &ask).json();
    let (choice, call) = (&whole["choices"][0], &whole["choices"][0]["message"]["tool_calls"][0]["function"]);
    assert_eq!(
        (choice["finish_reason"].as_str(), call["name"].as_str(), choice["message"]["content"].is_null()),
        (Some("tool_calls"), Some("weather"), true),
        "{whole}"
    );
    assert!(validator.is_valid(&serde_json::from_str(call["arguments"].as_str().unwrap()).unwrap()));
    let chunks = server.post(CHAT, &with(&ask, &json!({"stream": true}))).chunks();
    let told = chunks.iter().find_map(|c| c["choices"][0]["delta"]["tool_calls"][0].as_object()).unwrap();
    assert_eq!((&told["function"], &told["index"]), (call, &json!(0)));
    // The template has no place for tools: to choose freely is refused.
    let (status, why, param) = error(&server.post(CHAT, &with(&ask, &json!({"tool_choice": "auto"}))));
    assert_eq!((status, &param), (400, &json!("tools")), "{why}");
    // What takes too much to compile is refused, and nothing else suffers.
    let deep = (0..100).fold(json!({"type": "integer"}), |inner, _| json!({"type": "array", "items": inner}));
    let format =
        |schema: &Value| json!({"prompt": "x", "response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": schema}}});
    for schema in [&deep, &json!({"enum": vec!["x".repeat(100); 4000]}), &json!({"$ref": "#/nowhere"})] {
        let (status, why, param) = error(&server.post(TEXT, &format(schema)));
        assert_eq!((status, param), (400, json!("response_format")), "{schema}: {why}");
    }
}

/// A model whose chat template has a place for tools, and which refuses messages with a field that nobody sent.
#[test]
fn calls_are_read_out_of_answers_of_models_that_know_tools() {
    let dir = tempfile::tempdir().unwrap();
    for file in ["config.json", "model.safetensors", "tokenizer.json"] {
        std::fs::copy(Path::new(&golden("models/tiny-llama")).join(file), dir.path().join(file)).unwrap();
    }
    let template = "{% for t in tools %}{{ t.function.name }};{% endfor %}{% for m in messages %}{% if 'tool_calls' in m %}{{ m.tool_calls | length }}{% endif %}{{ m.content }}{% endfor %}";
    std::fs::write(dir.path().join("chat_template.jinja"), template).unwrap();
    let server = Served::start(dir.path().to_str().unwrap(), &["--context", "512"]);
    let tool = |name: &str| json!({"type": "function", "function": {"name": name, "parameters": {"type": "object"}}});
    // What the model says is given by a grammar, as if it had learned it.
    let says = |text: &str| json!({"messages": [{"role": "user", "content": "go"}], "tools": [tool("weather"), tool("time")], "grammar": format!("root ::= {text:?}")});
    for (text, content, called) in [
        ("Sure. <tool_call>{\"name\": \"weather\", \"arguments\": {\"a\": 1}}</tool_call>", Some("Sure."), true),
        ("{\"name\": \"time\", \"parameters\": {}}", None, true),
        ("Sure: {\"name\": \"time\", \"parameters\": {}}", Some("Sure: {\"name\": \"time\", \"parameters\": {}}"), false),
        ("fn main() { }", Some("fn main() { }"), false),
    ] {
        let whole = server.post(CHAT, &says(text)).json();
        let choice = &whole["choices"][0];
        assert_eq!(choice["message"]["content"].as_str(), content, "{whole}");
        assert_eq!((choice["finish_reason"] == "tool_calls", choice["message"]["tool_calls"].is_array()), (called, called), "{whole}");
        let chunks = server.post(CHAT, &with(&says(text), &json!({"stream": true}))).chunks();
        let deltas = || chunks.iter().map(|c| &c["choices"][0]["delta"]);
        let told: String = deltas().filter_map(|d| d["content"].as_str()).collect();
        assert_eq!(told.trim_end(), content.unwrap_or_default());
        assert_eq!(deltas().any(|d| d["tool_calls"][0]["function"]["name"].is_string()), called, "{text}");
        if !called {
            assert!(deltas().filter(|d| d["content"].as_str().is_some_and(|t| !t.is_empty())).count() > 2, "{text}: as it comes");
        }
    }
    // Only those that are allowed are offered and read.
    let only = json!({"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": [tool("time")]}});
    let other = server.post(CHAT, &with(&says("{\"name\": \"weather\", \"parameters\": {}}"), &json!({"tool_choice": only}))).json();
    assert!(other["choices"][0]["message"]["tool_calls"].is_null(), "{other}");
    // A conversation goes on after a call.
    let call = json!({"id": "call_1", "type": "function", "function": {"name": "time", "arguments": "{}"}});
    let messages = json!([{"role": "user", "content": "go"}, {"role": "assistant", "content": null, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "call_1", "content": "noon"}]);
    assert_eq!(server.post(CHAT, &json!({"messages": messages, "tools": [tool("time")], "max_tokens": 4})).status, 200);
}

#[test]
fn what_is_wrong_is_said_by_name() {
    let server = server(&[]);
    let hi = json!([{"role": "user", "content": "hi"}]);
    for (path, body, status, param) in [
        (CHAT, json!({}), 400, json!("messages")),
        (CHAT, json!({"messages": []}), 400, json!("messages")),
        (CHAT, json!({"messages": [{"role": "wizard", "content": "hi"}]}), 400, json!("messages[0].role")),
        (
            CHAT,
            json!({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]}),
            400,
            json!("messages[0].content"),
        ),
        (CHAT, json!({"messages": hi, "n": 1000}), 400, json!("n")),
        (CHAT, json!({"messages": hi, "temperature": "hot"}), 400, json!("temperature")),
        (CHAT, json!({"messages": hi, "top_logprobs": 3}), 400, json!("top_logprobs")),
        (CHAT, json!({"messages": hi, "logprobs": true, "top_logprobs": 21}), 400, json!("top_logprobs")),
        (CHAT, json!({"messages": [{"role": "user", "content": "a ".repeat(400)}]}), 400, json!("messages")),
        (CHAT, json!({"messages": hi, "max_tokens": 4000}), 400, json!("messages")),
        (CHAT, json!({"messages": hi, "stop": vec!["x"; 17]}), 400, json!("stop")),
        (CHAT, json!({"messages": hi, "functions": [{}]}), 400, json!("functions")),
        (TEXT, json!({}), 400, json!("prompt")),
        (TEXT, json!({"prompt": "x", "suffix": "y"}), 400, json!("suffix")),
        (TEXT, json!({"prompt": "x", "best_of": 2}), 400, json!("best_of")),
        (TEXT, json!({"prompt": [1, 99_999]}), 400, json!("prompt")),
        (TEXT, json!({"prompt": vec!["x"; 65]}), 400, json!("prompt")),
        (TEXT, json!({"prompt": "x", "logprobs": 21}), 400, json!("logprobs")),
        (TEXT, json!({"prompt": "x", "echo": true, "logprobs": 1}), 400, json!("echo")),
        (TEXT, json!({"prompt": "x", "logit_bias": {"5": 101}}), 400, json!("logit_bias")),
        ("/v1/embeddings", json!({"input": "x"}), 404, Value::Null),
        ("/v1/images/generations", json!({}), 404, Value::Null),
        ("/tokenize", json!({"content": 1}), 400, json!("content")),
        ("/detokenize", json!({"tokens": [99_999]}), 400, json!("tokens")),
    ] {
        let heard = server.post(path, &body);
        let (found, why, named) = error(&heard);
        assert_eq!((found, &named), (status, &param), "{path} {body}: {why}");
        assert_eq!(heard.header("content-type"), Some("application/json"));
    }
    assert!(error(&server.post("/v1/embeddings", &json!({}))).1.contains("embeddings are not offered"));
    assert_eq!(server.ask("POST", TEXT, &[], "{\"prompt\": ").status, 400);
    assert_eq!(server.ask("POST", TEXT, &[], "[1, 2]").status, 400);
    assert_eq!(server.ask("POST", TEXT, &[], &"[".repeat(100_000)).status, 400);
    assert_eq!(server.ask("PUT", TEXT, &[], "{}").status, 405);
    assert_eq!(server.ask("POST", TEXT, &[("x-long", &"y".repeat(64 << 10))], "{}").status, 431);
    let huge = format!("POST {TEXT} HTTP/1.1\r\nhost: {}\r\ncontent-length: 99999999\r\n\r\n", server.address);
    assert_eq!(read(server.raw(huge.as_bytes())).status, 413);
    assert_eq!(server.post(TEXT, &drawn(1)).status, 200, "it goes on");
    assert!(server.metric("flow_requests_refused_total") >= 24.0);
}

fn read(mut stream: std::net::TcpStream) -> Heard {
    let mut bytes = [0; 16 << 10];
    let n = stream.read(&mut bytes).unwrap();
    heard(&bytes[..n])
}

#[test]
fn only_who_may_is_let_in() {
    let open = server(&[]);
    let get = |server: &Served, path: &str, headers: &[(&str, &str)]| server.ask("GET", path, headers, "").status;
    assert_eq!(get(&open, "/v1/models", &[("host", "evil.example")]), 403);
    assert_eq!(get(&open, "/v1/models", &[("origin", "https://evil.example")]), 403);
    assert_eq!(get(&open, "/v1/models", &[("origin", "http://localhost:3000")]), 200);
    let page = open.get("/");
    assert!(page.header("content-security-policy").is_some_and(|p| p.starts_with("default-src 'none'")) && page.body.contains("<title>"));
    drop(open);
    let args = ["--api-key-env", "FLOW_TEST_KEY"];
    let model = golden("gguf/student-tq2_0.gguf");
    let locked = Served::start_with(&model, &args, &[("FLOW_TEST_KEY", "only-a-test-6f1")]);
    assert_eq!(get(&locked, "/v1/models", &[]), 401);
    assert_eq!(get(&locked, "/v1/models", &[("authorization", "Bearer wrong")]), 401);
    assert_eq!(get(&locked, "/v1/models", &[("authorization", "Bearer only-a-test-6f1")]), 200);
    assert_eq!((get(&locked, "/health", &[]), get(&locked, "/metrics", &[])), (200, 401));
    assert!(!locked.ask("GET", "/v1/models", &[("authorization", "Bearer x")], "").body.contains("only-a-test"));
}

/// A long answer as a stream, of which the first event is waited for.
fn begun(server: &Served) -> std::net::TcpStream {
    let body =
        json!({"prompt": "We", "max_tokens": 100, "temperature": 1, "seed": 1, "stream": true, "logit_bias": {"0": -100}}).to_string();
    let mut stream = server.send("POST", TEXT, &[], &body);
    let mut bytes = [0; 64];
    while !String::from_utf8_lossy(&bytes).contains("200 OK") {
        let _ = stream.read(&mut bytes).unwrap();
    }
    stream
}

fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let end = Instant::now() + Duration::from_secs(20);
    while !holds() {
        assert!(Instant::now() < end, "{what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn who_goes_away_gives_the_slot_back_and_a_full_queue_says_when() {
    // Big enough that an answer takes a while.
    let server = server(&["--slots", "1", "--queue", "1", "--context", "4096"]);
    let long =
        json!({"prompt": "We", "max_tokens": 4000, "temperature": 1, "seed": 1, "stream": true, "logit_bias": {"0": -100}}).to_string();
    let running = server.send("POST", TEXT, &[], &long);
    until("a slot is taken", || server.metric("flow_sequences_running") == 1.0);
    let waiting = server.send("POST", TEXT, &[], &long);
    until("one waits", || server.metric("flow_requests_waiting") == 1.0);
    let refused = server.post(TEXT, &drawn(1));
    assert_eq!(refused.status, 429, "{refused:?}");
    assert!(refused.header("retry-after").and_then(|s| s.parse::<u64>().ok()).is_some_and(|s| (1..=60).contains(&s)));
    drop(waiting);
    drop(running);
    until("the slot is free", || server.metric("flow_sequences_running") == 0.0);
    assert!(server.metric("flow_requests_cancelled_total") >= 1.0);
    assert_eq!(server.post(TEXT, &drawn(1)).status, 200);
}

#[test]
fn a_stop_lets_answers_end_or_says_that_they_do_not() {
    // With time enough an answer is whole.
    let server_a = server(&["--grace", "20"]);
    let stream = begun(&server_a);
    server_a.terminate();
    let mut rest = String::new();
    { stream }.read_to_string(&mut rest).unwrap();
    assert!(rest.contains("data: [DONE]"), "{rest}");
    assert_eq!(server_a.wait().0, Some(0));
    // Without, it ends with an error, and the server within its time.
    let server_b = server(&["--grace", "0", "--context", "4096"]);
    let body =
        json!({"prompt": "We", "max_tokens": 4000, "temperature": 1, "seed": 1, "stream": true, "logit_bias": {"0": -100}}).to_string();
    let stream = server_b.send("POST", TEXT, &[], &body);
    until("it runs", || server_b.metric("flow_completion_tokens_total") > 3.0);
    server_b.terminate();
    let mut rest = String::new();
    { stream }.read_to_string(&mut rest).unwrap();
    assert!(!rest.contains("[DONE]") && rest.contains("the server is stopping"), "{rest}");
    let (code, took) = server_b.wait();
    assert!(code == Some(0) && took < Duration::from_secs(5), "{code:?} after {took:?}");
}

#[test]
fn metrics_are_what_prometheus_reads() {
    let server = server(&[]);
    server.post(TEXT, &drawn(1));
    let text = server.get("/metrics").body;
    let mut kinds = BTreeMap::new();
    for line in text.lines() {
        match line.split(' ').collect::<Vec<_>>()[..] {
            ["#", "TYPE", name, kind] => drop(kinds.insert(name.to_owned(), kind.to_owned())),
            ["#", "HELP", ..] => {}
            [name, value] => {
                let base = name.split('{').next().unwrap();
                let known = kinds
                    .keys()
                    .any(|k| base == k || base.strip_prefix(k.as_str()).is_some_and(|s| ["_bucket", "_sum", "_count"].contains(&s)));
                assert!(known && value.parse::<f64>().is_ok(), "{line}");
            }
            _ => panic!("{line}"),
        }
    }
    assert_eq!(server.metric("flow_completion_tokens_total"), 16.0);
}
