//! A teacher in the OpenAI shape whose answers are a function of the request, and a proxy that breaks them.
#![allow(dead_code)]

use std::io::Write;
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::{Value, json};

use super::http::{Goes, Request, Server, forward, reply, response};

const WORDS: [&str; 12] = [" the", " of", " and", " people", " must", " work", ",", ".", " {", "}", " \u{e9}t\u{e9}", " peace"];

fn mix(n: u64) -> u64 {
    let mut z = n.wrapping_add(0x9E37_79B9_7F4A_7C15);
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

fn seed_of(body: &Value) -> u64 {
    let text = format!("{}{}{}", body["messages"], body["prompt"], body["seed"]);
    text.bytes().fold(7, |h, b| mix(h ^ u64::from(b)))
}

/// The answer to a request: the same request, the same answer.
pub fn answer(body: &Value, id: u64) -> Value {
    let (seed, most) = (seed_of(body), body["max_tokens"].as_u64().unwrap_or(8));
    let k = body["top_logprobs"].as_u64().unwrap_or(0) as usize;
    let n = 1 + seed % most.max(1);
    let (mut text, mut content) = (String::new(), Vec::new());
    for t in 0..n {
        let at = (mix(seed ^ t) % WORDS.len() as u64) as usize;
        let one = |i: usize| {
            let word = WORDS[(at + i) % WORDS.len()];
            json!({"token": word, "bytes": word.as_bytes(), "logprob": -0.25 - 0.75 * i as f64})
        };
        // Every fifth token is not among its own alternatives.
        let from = usize::from(t % 5 == 4);
        let mut token = one(0);
        token["top_logprobs"] = (from..from + k.min(8)).map(one).collect();
        text += WORDS[at];
        content.push(token);
    }
    let finish = if n == most { "length" } else { "stop" };
    let mut choice = json!({"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": finish});
    if body["logprobs"] == true {
        choice["logprobs"] = json!({"content": content});
    }
    json!({"id": format!("chatcmpl-{id}"), "object": "chat.completion", "model": "test", "choices": [choice],
           "usage": {"prompt_tokens": 10, "completion_tokens": n, "total_tokens": 10 + n}})
}

/// The teacher.
pub struct Teacher {
    pub server: Server,
    /// Bodies of all requests, in the order in which they came.
    pub asked: Arc<Mutex<Vec<Value>>>,
}

/// What an answer does with the request before it is the usual one.
pub type Special = fn(&Request, &Value, &mut TcpStream) -> Option<Goes>;

impl Teacher {
    /// Each answer takes `pause`.
    pub fn start(pause: Duration) -> Self {
        Self::with(pause, |_, _, _| None)
    }
    pub fn with(pause: Duration, special: Special) -> Self {
        let asked: Arc<Mutex<Vec<Value>>> = Arc::default();
        let (log, ids) = (asked.clone(), AtomicU64::new(0));
        let server = Server::start(move |request, stream| {
            if request.path.ends_with("/models") {
                return reply(stream, "200 OK", "", r#"{"data": [{"id": "test"}]}"#);
            }
            let body: Value = serde_json::from_slice(&request.body).unwrap();
            log.lock().unwrap().push(body.clone());
            std::thread::sleep(pause);
            if let Some(goes) = special(request, &body, stream) {
                return goes;
            }
            reply(stream, "200 OK", "", &answer(&body, ids.fetch_add(1, Ordering::Relaxed)).to_string())
        });
        Self { server, asked }
    }
    /// How many requests came, the probe's left out.
    pub fn count(&self) -> usize {
        self.asked.lock().unwrap().iter().filter(|b| b["max_tokens"] != 1).count()
    }
}

/// What a proxy may do to an exchange.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    LimitedWithSeconds,
    LimitedWithDate,
    Limited,
    Status(u16),
    ResetBefore,
    ResetMidBody,
    SlowDrip,
    TruncatedJson,
    Html,
    NoLogprobs,
    EmptyChoices,
    Twice,
}

/// All of them; a restart and refused connections are `Server::down` and `up`.
pub const FAULTS: [Fault; 15] = [
    Fault::LimitedWithSeconds,
    Fault::LimitedWithDate,
    Fault::Limited,
    Fault::Status(500),
    Fault::Status(502),
    Fault::Status(503),
    Fault::Status(529),
    Fault::Status(408),
    Fault::ResetBefore,
    Fault::ResetMidBody,
    Fault::SlowDrip,
    Fault::TruncatedJson,
    Fault::Html,
    Fault::NoLogprobs,
    Fault::EmptyChoices,
];

/// A proxy in front of a teacher: of a hundred exchanges so many are broken, by the seed.
pub struct Proxy {
    pub server: Server,
    percent: Arc<AtomicUsize>,
    /// How many exchanges were broken.
    pub broken: Arc<AtomicUsize>,
}

impl Proxy {
    pub fn start(to: SocketAddr, seed: u64) -> Self {
        let (percent, broken) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let (share, count, turn) = (percent.clone(), broken.clone(), AtomicU64::new(seed));
        let server = Server::start(move |request, stream| {
            let chance = mix(turn.fetch_add(1, Ordering::Relaxed));
            let share = share.load(Ordering::Relaxed) as u64;
            if request.method == "POST" && chance % 100 < share {
                count.fetch_add(1, Ordering::Relaxed);
                // A tenth of them is a delivery that comes twice.
                let fault =
                    if (chance / 100).is_multiple_of(10) { Fault::Twice } else { FAULTS[(chance / 1000 % FAULTS.len() as u64) as usize] };
                return fail(fault, to, request, stream);
            }
            pass(to, request, stream)
        });
        Self { server, percent, broken }
    }
    /// Breaks so many of a hundred exchanges from now on.
    pub fn breaks(&self, percent: usize) {
        self.percent.store(percent, Ordering::Relaxed);
    }
}

fn pass(to: SocketAddr, request: &Request, stream: &mut TcpStream) -> Goes {
    match forward(to, request) {
        Ok((status, body)) => stream.write_all(&response(&status, "", &body)).is_ok(),
        Err(_) => false,
    }
}

fn fail(fault: Fault, to: SocketAddr, request: &Request, stream: &mut TcpStream) -> Goes {
    let whole = || forward(to, request).map(|(_, body)| body).unwrap_or_default();
    match fault {
        Fault::LimitedWithSeconds => {
            reply(stream, "429 Too Many Requests", "retry-after: 0.05\r\n", r#"{"error": {"message": "slow down"}}"#)
        }
        Fault::LimitedWithDate => {
            let head = "date: Tue, 24 Nov 2020 00:00:00 GMT\r\nretry-after: Tue, 24 Nov 2020 00:00:00 GMT\r\n";
            reply(stream, "429 Too Many Requests", head, "")
        }
        Fault::Limited => reply(stream, "429 Too Many Requests", "", "slow down"),
        Fault::Status(code) => reply(stream, &format!("{code} Broken"), "", r#"{"error": {"message": "overloaded"}}"#),
        Fault::ResetBefore => false,
        Fault::ResetMidBody => {
            let all = response("200 OK", "", &whole());
            let _ = stream.write_all(&all[..all.len() * 2 / 3]);
            false
        }
        Fault::SlowDrip => {
            let all = response("200 OK", "", &whole());
            for byte in all.iter().take(200) {
                if stream.write_all(&[*byte]).is_err() {
                    break;
                }
                std::thread::sleep(Duration::from_millis(20));
            }
            false
        }
        Fault::TruncatedJson => {
            let body = whole();
            stream.write_all(&response("200 OK", "", &body[..body.len() / 2])).is_ok()
        }
        Fault::Html => reply(stream, "200 OK", "", "<!DOCTYPE html><html><body>a gateway</body></html>"),
        Fault::NoLogprobs | Fault::EmptyChoices => {
            let mut value: Value = serde_json::from_slice(&whole()).unwrap_or_default();
            if fault == Fault::NoLogprobs {
                value["choices"][0]["logprobs"] = Value::Null
            } else {
                value["choices"] = json!([])
            }
            reply(stream, "200 OK", "", &value.to_string())
        }
        Fault::Twice => {
            let all = response("200 OK", "", &whole());
            stream.write_all(&[all.as_slice(), all.as_slice()].concat()).is_ok()
        }
    }
}
