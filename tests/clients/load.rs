//! Clients that ask a server for tokens, for measurements: `load ADDRESS CLIENTS PROMPT DECODE ROUNDS [VOCAB]`.
//!
//! Each client asks `/v1/completions` for DECODE greedy tokens after PROMPT random ones, as a stream, ROUNDS times after one round
//! that does not count. One line of JSON: tokens a second of all clients together, and milliseconds to the first token.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::sync::Barrier;
use std::time::Instant;

use serde_json::{Value, json};

/// What one answer was.
struct Answer {
    tokens: u64,
    /// Seconds to the first token, and to the last.
    first: f64,
    all: f64,
}

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [address, numbers @ ..] = args.as_slice() else { panic!("load ADDRESS CLIENTS PROMPT DECODE ROUNDS [VOCAB]") };
    let number = |i: usize, otherwise: usize| numbers.get(i).map_or(otherwise, |n| n.parse().expect("a number"));
    let (clients, prompt, decode, rounds, vocab) = (number(0, 1), number(1, 64), number(2, 64), number(3, 3), number(4, 4000));
    let (mut rates, mut firsts) = (Vec::new(), Vec::new());
    for round in 0..=rounds {
        let start = Barrier::new(clients);
        let began = Instant::now();
        let answers: Vec<Answer> = std::thread::scope(|scope| {
            let asking: Vec<_> = (0..clients)
                .map(|client| {
                    let start = &start;
                    scope.spawn(move || {
                        start.wait();
                        ask(address, &random(round * clients + client, prompt, vocab), decode)
                    })
                })
                .collect();
            asking.into_iter().map(|a| a.join().expect("an answer")).collect()
        });
        if round == 0 {
            continue;
        }
        let took = began.elapsed().as_secs_f64();
        firsts.extend(answers.iter().map(|a| 1000.0 * a.first));
        let tokens: u64 = answers.iter().map(|a| a.tokens).sum();
        // Decoding alone, where there is one client: its first token is the prompt's.
        let alone = |a: &Answer| (a.tokens - 1) as f64 / (a.all - a.first);
        rates.push((tokens as f64 / took, answers.iter().map(alone).sum::<f64>()));
    }
    let median = |mut all: Vec<f64>| {
        all.sort_by(f64::total_cmp);
        all[all.len() / 2]
    };
    let (whole, decoding): (Vec<f64>, Vec<f64>) = rates.into_iter().unzip();
    let (whole, decoding) = (median(whole).round(), median(decoding).round());
    println!(
        "{}",
        json!({"clients": clients, "prompt": prompt, "decode": decode, "tokens_per_second": whole, "decode_tokens_per_second": decoding,
               "first_token_ms": (median(firsts) * 10.0).round() / 10.0})
    );
}

/// Token ids that are the same for the same number.
fn random(seed: usize, n: usize, vocab: usize) -> Vec<u64> {
    let mut state = seed as u64 + 1;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        10 + (state >> 33) % (vocab as u64 - 10)
    };
    (0..n).map(|_| next()).collect()
}

fn ask(address: &str, prompt: &[u64], decode: usize) -> Answer {
    let body = json!({"model": "m", "prompt": prompt, "max_tokens": decode, "temperature": 0, "stream": true, "cache_prompt": false,
        "ignore_eos": true, "stream_options": {"include_usage": true}})
    .to_string();
    let mut stream = TcpStream::connect(address).expect("the server");
    let head = format!(
        "POST /v1/completions HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n",
        body.len()
    );
    let began = Instant::now();
    stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(body.as_bytes())).expect("a request");
    let (mut first, mut tokens, mut last) = (None, 0, 0.0);
    let mut reader = BufReader::new(stream);
    let mut line = String::new();
    while reader.read_line(&mut line).expect("an answer") > 0 {
        if let Some(data) = line.strip_prefix("data: ").filter(|d| !d.starts_with("[DONE]")) {
            let now = began.elapsed().as_secs_f64();
            let chunk: Value = serde_json::from_str(data).expect("JSON");
            if chunk["choices"][0]["text"].as_str().is_some_and(|t| !t.is_empty()) {
                first.get_or_insert(now);
                last = now;
            }
            tokens = chunk["usage"]["completion_tokens"].as_u64().unwrap_or(tokens);
        }
        line.clear();
    }
    let _ = reader.read_to_string(&mut line);
    Answer { tokens, first: first.expect("a token"), all: last }
}
