//! Counters for `/metrics` (Prometheus' text form, version 0.0.4).

use std::fmt::Write as _;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

/// Upper bounds of the histogram of times to the first token, seconds.
const BOUNDS: [f64; 9] = [0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0];

/// What is counted from the start on.
#[derive(Debug, Default)]
pub struct Stats {
    requests: AtomicU64,
    refused: AtomicU64,
    failed: AtomicU64,
    cancelled: AtomicU64,
    read: AtomicU64,
    reused: AtomicU64,
    said: AtomicU64,
    running: AtomicU64,
    answers: AtomicU64,
    answer_micros: AtomicU64,
    first: [AtomicU64; BOUNDS.len() + 1],
    first_micros: AtomicU64,
}

impl Stats {
    /// A request was taken.
    pub fn request(&self) {
        self.requests.fetch_add(1, Relaxed);
    }
    /// A request was refused (4xx).
    pub fn refused(&self) {
        self.refused.fetch_add(1, Relaxed);
    }
    /// A request failed here (5xx).
    pub fn failed(&self) {
        self.failed.fetch_add(1, Relaxed);
    }
    /// A client went away before the end.
    pub fn cancelled(&self) {
        self.cancelled.fetch_add(1, Relaxed);
    }
    /// Tokens of a prompt: all, and those that a slot held.
    pub fn prompt(&self, all: usize, reused: usize) {
        self.read.fetch_add((all - reused) as u64, Relaxed);
        self.reused.fetch_add(reused as u64, Relaxed);
    }
    /// Tokens that were chosen.
    pub fn tokens(&self, n: usize) {
        self.said.fetch_add(n as u64, Relaxed);
    }
    /// Sequences in slots now.
    pub fn running(&self, n: usize) {
        self.running.store(n as u64, Relaxed);
    }
    /// A finished answer, and how long it took from its request on.
    pub fn answered(&self, took: Duration) {
        self.answers.fetch_add(1, Relaxed);
        self.answer_micros.fetch_add(took.as_micros() as u64, Relaxed);
    }

    /// Seconds in which one of `waiting` requests is likely to find a slot: what answers took so far, times those before it.
    pub fn patience(&self, waiting: usize, slots: usize) -> u64 {
        let mean = self.answer_micros.load(Relaxed) as f64 / self.answers.load(Relaxed).max(1) as f64 / 1e6;
        (mean * (waiting + 1) as f64 / slots.max(1) as f64).ceil().clamp(1.0, 60.0) as u64
    }

    /// Time from a request to its first token.
    pub fn first_token(&self, after: Duration) {
        let seconds = after.as_secs_f64();
        self.first[BOUNDS.iter().position(|b| seconds <= *b).unwrap_or(BOUNDS.len())].fetch_add(1, Relaxed);
        self.first_micros.fetch_add(after.as_micros() as u64, Relaxed);
    }

    /// The text that Prometheus reads; `waiting` requests wait for one of `slots`.
    pub fn text(&self, waiting: usize, slots: usize) -> String {
        let mut out = String::new();
        let mut one = |name: &str, kind: &str, help: &str, value: u64| {
            let _ = writeln!(out, "# HELP flow_{name} {help}\n# TYPE flow_{name} {kind}\nflow_{name} {value}");
        };
        one("requests_total", "counter", "Requests that were taken.", self.requests.load(Relaxed));
        one("requests_refused_total", "counter", "Requests that were refused (4xx).", self.refused.load(Relaxed));
        one("requests_failed_total", "counter", "Requests that failed here (5xx).", self.failed.load(Relaxed));
        one("requests_cancelled_total", "counter", "Requests whose client went away.", self.cancelled.load(Relaxed));
        one("prompt_tokens_total", "counter", "Tokens of prompts that were read.", self.read.load(Relaxed));
        one("prompt_tokens_reused_total", "counter", "Tokens of prompts that a slot held.", self.reused.load(Relaxed));
        one("completion_tokens_total", "counter", "Tokens that were chosen.", self.said.load(Relaxed));
        one("sequences_running", "gauge", "Sequences in slots.", self.running.load(Relaxed));
        one("requests_waiting", "gauge", "Requests that wait for a slot.", waiting as u64);
        one("slots", "gauge", "Slots.", slots as u64);
        let name = "flow_time_to_first_token_seconds";
        let _ = writeln!(out, "# HELP {name} From a request to its first token.\n# TYPE {name} histogram");
        let mut sum = 0;
        for (bound, n) in BOUNDS.iter().map(f64::to_string).chain(["+Inf".to_owned()]).zip(&self.first) {
            sum += n.load(Relaxed);
            let _ = writeln!(out, "{name}_bucket{{le=\"{bound}\"}} {sum}");
        }
        let _ = writeln!(out, "{name}_sum {}\n{name}_count {sum}", self.first_micros.load(Relaxed) as f64 / 1e6);
        out
    }
}
