//! Many requests of every kind at once, well and badly behaved: none is lost, none answered for another, nothing grows.
//! `FLOW_SERVE_REQUESTS` of them (a sample of the 10,000 of `.ci/soak`), by `FLOW_SEED`.

mod support {
    #[allow(dead_code)]
    pub mod served;
}

use std::io::{Read, Write};
use std::net::Shutdown;
use std::path::Path;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use support::served::{Served, heard};

const CLIENTS: usize = 12;
const TEXT: &str = "/v1/completions";
const CHAT: &str = "/v1/chat/completions";

fn number(name: &str, otherwise: u64) -> u64 {
    std::env::var(name).ok().and_then(|n| n.parse().ok()).unwrap_or(otherwise)
}

/// A request whose answer is known: it is the same whoever asks beside it.
fn known(which: u64) -> Value {
    json!({"prompt": format!("We have seen {which} of them, and"), "max_tokens": 8 + which % 24, "temperature": 50, "seed": which, "n": 1 + which % 2})
}

fn texts(value: &Value) -> Vec<String> {
    value["choices"].as_array().unwrap_or_else(|| panic!("{value}")).iter().map(|c| c["text"].as_str().unwrap().to_owned()).collect()
}

/// Splitmix64.
fn next(state: &AtomicU64) -> u64 {
    let mut z = state.fetch_add(0x9e37_79b9_7f4a_7c15, Ordering::Relaxed);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// One request of some kind.
fn one(server: &Served, random: u64, expected: &[Vec<String>], answered: &AtomicUsize) {
    let which = (random >> 8) % expected.len() as u64;
    let ask = known(which);
    let streamed = {
        let mut streamed = ask.clone();
        streamed["stream"] = true.into();
        streamed.to_string()
    };
    let whole = || {
        let heard = server.post(TEXT, &ask);
        assert_eq!(heard.status, 200, "{heard:?}");
        assert_eq!(texts(&heard.json()), expected[which as usize]);
        answered.fetch_add(1, Ordering::Relaxed);
    };
    match random % 16 {
        0..=4 => whole(),
        5 | 6 => {
            // As a stream, by a reader that takes its time.
            let mut stream = server.send("POST", TEXT, &[], &streamed);
            let (mut bytes, mut part) = (Vec::new(), [0; 512]);
            loop {
                match stream.read(&mut part).unwrap() {
                    0 => break,
                    n => bytes.extend_from_slice(&part[..n]),
                }
                std::thread::sleep(Duration::from_millis(random % 3));
            }
            let mut made = vec![String::new(); expected[which as usize].len()];
            for chunk in heard(&bytes).chunks() {
                let choice = &chunk["choices"][0];
                made[choice["index"].as_u64().unwrap() as usize] += choice["text"].as_str().unwrap();
            }
            assert_eq!(made, expected[which as usize]);
            answered.fetch_add(1, Ordering::Relaxed);
        }
        7 | 8 => {
            // Gone after some of it.
            let mut stream = server.send("POST", TEXT, &[], &streamed);
            let mut part = vec![0; 200 + (random >> 16) as usize % 2000];
            let _ = stream.read(&mut part);
        }
        9 => drop(server.send("POST", TEXT, &[], &ask.to_string())),
        10 => {
            // Gone in the middle of what it asks.
            let body = ask.to_string();
            let head = format!("POST {TEXT} HTTP/1.1\r\nhost: {}\r\ncontent-length: {}\r\n\r\n", server.address, body.len());
            let mut stream = server.raw(head.as_bytes());
            let _ = stream.write_all(&body.as_bytes()[..body.len() / 2]).and_then(|()| stream.shutdown(Shutdown::Both));
        }
        11 => assert_eq!(server.ask("POST", TEXT, &[], &ask.to_string()[..20]).status, 400),
        12 => assert!(matches!(server.post(CHAT, &json!({"messages": which})).status, 400)),
        13 => {
            let long = "y".repeat(60 << 10);
            let mut bytes = Vec::new();
            // It may be cut off before it has read the refusal.
            let _ = server.send("POST", TEXT, &[("x-long", &long)], "{}").read_to_end(&mut bytes);
            assert!(bytes.is_empty() || heard(&bytes).status == 431);
        }
        14 => {
            let schema =
                json!({"type": "object", "properties": {"a": {"enum": [which, "b"]}}, "required": ["a"], "additionalProperties": false});
            let ask = json!({"messages": [{"role": "user", "content": "go"}], "temperature": 1, "seed": which, "max_tokens": 60,
                "response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": schema}}});
            let answer = server.post(CHAT, &ask).json();
            let choice = &answer["choices"][0];
            let text = choice["message"]["content"].as_str().unwrap_or_else(|| panic!("{answer}"));
            let valid = serde_json::from_str::<Value>(text).is_ok_and(|v| v["a"] == which || v["a"] == "b");
            assert!(valid || choice["finish_reason"] == "length", "{text}");
            answered.fetch_add(1, Ordering::Relaxed);
        }
        _ => {
            // No HTTP at all.
            let mut bytes = Vec::new();
            let _ = server.raw(&[&random.to_le_bytes().repeat(9)[..], b"\r\n\r\n"].concat()).read_to_end(&mut bytes);
            assert!(bytes.is_empty() || heard(&bytes).status == 400);
        }
    }
}

/// Resident bytes, threads and open files of the server.
fn held(server: &Served) -> (u64, u64, usize) {
    let status = std::fs::read_to_string(format!("/proc/{}/status", server.id())).unwrap();
    let field = |name: &str| status.lines().find_map(|l| l.strip_prefix(name)?.split_whitespace().next()?.parse().ok()).unwrap();
    let files = std::fs::read_dir(format!("/proc/{}/fd", server.id())).unwrap().count();
    (1024 * field("VmRSS:"), field("Threads:"), files)
}

/// Waits until nothing runs, and the connections that were closed are gone: the server has so many open files then.
fn idle(server: &Served, files: usize) {
    let end = Instant::now() + Duration::from_secs(30);
    while server.metric("flow_sequences_running") + server.metric("flow_requests_waiting") > 0.0 || held(server).2 > files {
        assert!(Instant::now() < end, "something is left: {:?} {}", held(server), server.get("/metrics").body);
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[cfg(target_os = "linux")]
#[test]
fn many_requests_of_every_kind_leave_nothing_behind() {
    let (count, seed) = (number("FLOW_SERVE_REQUESTS", 600) as usize, number("FLOW_SEED", 1));
    let model = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/gguf/student-tq2_0.gguf");
    let server = Served::start(model.to_str().unwrap(), &["--slots", "6"]);
    let expected: Vec<Vec<String>> = (0..32).map(|which| texts(&server.post(TEXT, &known(which)).json())).collect();
    let files = held(&server).2;
    let (state, answered) = (AtomicU64::new(seed), AtomicUsize::new(0));
    let some = |n: usize| {
        let left = AtomicUsize::new(n);
        std::thread::scope(|scope| {
            for _ in 0..CLIENTS {
                scope.spawn(|| {
                    while left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |n| n.checked_sub(1)).is_ok() {
                        one(&server, next(&state), &expected, &answered);
                    }
                });
            }
        });
        idle(&server, files);
    };
    let first = (count / 10).max(200).min(count);
    some(first);
    let early = held(&server);
    some(count - first);
    let late = held(&server);
    println!(
        "{count} requests, seed {seed}: {} answered; {} KiB, {} threads, {} files after {first}, then {} KiB, {}, {}",
        answered.load(Ordering::Relaxed),
        early.0 >> 10,
        early.1,
        early.2,
        late.0 >> 10,
        late.1,
        late.2
    );
    assert!(late.0 as f64 <= early.0 as f64 * 1.05, "memory grew");
    assert!(late.1 <= early.1 && late.2 <= files, "threads and files");
    assert!(answered.load(Ordering::Relaxed) > count / 4);
    // It goes on as if nothing had been.
    for which in 0..8 {
        assert_eq!(texts(&server.post(TEXT, &known(which)).json()), expected[which as usize]);
    }
    server.terminate();
    assert_eq!(server.wait().0, Some(0));
}
