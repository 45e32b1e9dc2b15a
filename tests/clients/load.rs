//! Clients that ask a server for tokens, for measurements: `load ADDRESS CLIENTS PROMPT DECODE ROUNDS [VOCAB]`.
//!
//! Each client asks `/v1/completions` for about DECODE greedy tokens (half to one and a half times as many, so that clients do not
//! keep step) after PROMPT random ones, as a stream, ROUNDS times without a pause. One line of JSON: tokens a second of all clients
//! while all of them ask, milliseconds to the first token, and the largest gap between two tokens of a client over the median gap.

use std::io::{BufRead, BufReader, Write};
use std::net::TcpStream;
use std::time::Instant;

use serde_json::json;

/// What a client saw, in seconds since the beginning of all.
#[derive(Default)]
struct Seen {
    /// When each part of a text came.
    tokens: Vec<f64>,
    /// From each request to its first token.
    first: Vec<f64>,
    /// Between the tokens of an answer, and when.
    gaps: Vec<(f64, f64)>,
}

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [address, numbers @ ..] = args.as_slice() else { panic!("load ADDRESS CLIENTS PROMPT DECODE ROUNDS [VOCAB]") };
    let number = |i: usize, otherwise: usize| numbers.get(i).map_or(otherwise, |n| n.parse().expect("a number"));
    let (clients, prompt, decode, rounds, vocab) = (number(0, 1), number(1, 64), number(2, 64), number(3, 3), number(4, 4000));
    let began = Instant::now();
    let all: Vec<Seen> = std::thread::scope(|scope| {
        let asking: Vec<_> = (0..clients)
            .map(|client| {
                scope.spawn(move || {
                    let mut seen = Seen::default();
                    for round in 0..rounds {
                        let ids = random(client * rounds + round, prompt + 1, vocab);
                        let most = decode / 2 + ids[prompt] as usize % (decode + 1);
                        ask(address, &ids[..prompt], most.max(1), began, &mut seen);
                    }
                    seen
                })
            })
            .collect();
        asking.into_iter().map(|a| a.join().expect("a client")).collect()
    });
    // All of them ask between the last one's first token and the first one's last.
    let from = all.iter().map(|s| s.tokens[0]).fold(0.0, f64::max);
    let to = all.iter().filter_map(|s| s.tokens.last()).fold(f64::MAX, |a, b| a.min(*b));
    let tokens = all.iter().flat_map(|s| &s.tokens).filter(|t| (from..to).contains(*t)).count();
    let gaps: Vec<f64> = all.iter().flat_map(|s| &s.gaps).filter(|(at, _)| (from..to).contains(at)).map(|g| g.1).collect();
    let largest = gaps.iter().copied().fold(0.0, f64::max);
    println!(
        "{}",
        json!({"clients": clients, "prompt": prompt, "decode": decode, "tokens_per_second": short(tokens as f64 / (to - from)),
               "first_token_ms": short(1e3 * median(all.iter().flat_map(|s| &s.first).copied().collect())),
               "gap_ms": short(1e3 * median(gaps.clone())), "largest_gap": short(largest / median(gaps))})
    );
}

fn median(mut all: Vec<f64>) -> f64 {
    all.sort_by(f64::total_cmp);
    all[all.len() / 2]
}

fn short(x: f64) -> f64 {
    (x * 100.0).round() / 100.0
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

fn ask(address: &str, prompt: &[u64], decode: usize, began: Instant, seen: &mut Seen) {
    let body = json!({"model": "m", "prompt": prompt, "max_tokens": decode, "temperature": 0, "stream": true, "cache_prompt": false,
        "ignore_eos": true})
    .to_string();
    let mut stream = TcpStream::connect(address).expect("the server");
    let head = format!(
        "POST /v1/completions HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n",
        body.len()
    );
    let asked = began.elapsed().as_secs_f64();
    stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(body.as_bytes())).expect("a request");
    let (mut reader, mut line, mut last) = (BufReader::new(stream), String::new(), None);
    while reader.read_line(&mut line).expect("an answer") > 0 {
        // Reading all of the JSON would take time from a server on the same cores.
        if line.starts_with("data: {") && line.contains("\"text\":\"") && !line.contains("\"text\":\"\"") {
            let now = began.elapsed().as_secs_f64();
            match last.replace(now) {
                None => seen.first.push(now - asked),
                Some(before) => seen.gaps.push((now, now - before)),
            }
            seen.tokens.push(now);
        }
        line.clear();
    }
    assert!(last.is_some(), "no token came");
}
