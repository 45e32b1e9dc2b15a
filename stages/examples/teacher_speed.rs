//! What a server gives when it is asked directly, to compare a collection with: the requests of `kd.collect` for the
//! first prompts of a file, so many at a time, without journal and traces.
//!
//! `cargo run --release -p flow-stages --example teacher_speed -- BASE_URL MODEL PROMPTS.jsonl [N [PARALLEL [MAX_TOKENS]]]`

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Instant;

use flow_stages::teacher::http::params::HttpParams;
use flow_stages::teacher::http::shape::{Draw, call};
use serde_json::{Value, json};

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [base_url, model, prompts, ..] = args.as_slice() else { panic!("BASE_URL MODEL PROMPTS.jsonl [N [PARALLEL [MAX_TOKENS]]]") };
    let number = |n: usize, default: usize| args.get(n).and_then(|a| a.parse().ok()).unwrap_or(default);
    let (n, parallel, max_tokens) = (number(3, 64), number(4, 4), number(5, 48));
    let params = json!({"provider": "llama.cpp", "base_url": base_url, "model": model});
    let params: HttpParams = serde_json::from_value(params).expect("parameters");
    let spec = params.spec().expect("a teacher");
    let text = std::fs::read_to_string(prompts).expect("prompts");
    let draw = Draw { max_tokens, temperature: 0.8, top_p: 0.95, seed: Some(1234), stop: Vec::new(), logprobs: true };
    let bodies: Vec<(String, String)> = text
        .lines()
        .take(n)
        .map(|l| serde_json::from_str::<Value>(l).expect("a prompt"))
        .map(|v| call(&spec, v["prompt"].as_str().expect("a prompt"), 0, &draw))
        .map(|c| (c.url(&spec), c.body.to_string()))
        .collect();
    let (bodies, next, tokens) = (Arc::new(bodies), Arc::new(AtomicUsize::new(0)), Arc::new(AtomicU64::new(0)));
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("a runtime");
    let _ = rustls::crypto::ring::default_provider().install_default();
    let client = reqwest::Client::builder().no_proxy().build().expect("a client");
    let start = Instant::now();
    runtime.block_on(async {
        let mut all = tokio::task::JoinSet::new();
        for _ in 0..parallel {
            let (bodies, next, tokens, client) = (bodies.clone(), next.clone(), tokens.clone(), client.clone());
            all.spawn(async move {
                while let Some((url, body)) = bodies.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let answer =
                        client.post(url).header("content-type", "application/json").body(body.clone()).send().await.expect("an answer");
                    let bytes = answer.bytes().await.expect("an answer");
                    let value: Value = serde_json::from_slice(&bytes).expect("JSON");
                    tokens.fetch_add(value["usage"]["completion_tokens"].as_u64().unwrap_or(0), Ordering::Relaxed);
                }
            });
        }
        while let Some(done) = all.join_next().await {
            done.expect("a task");
        }
    });
    let (seconds, tokens) = (start.elapsed().as_secs_f64(), tokens.load(Ordering::Relaxed));
    println!("{n} answers, {parallel} at a time: {tokens} tokens in {seconds:.2} s, {:.1} tokens/s", tokens as f64 / seconds);
}
