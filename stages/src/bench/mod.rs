//! `flow bench`: how fast this machine trains, infers and computes, beside what it could do.

mod infer;
mod kernels;
mod train;

pub use infer::{InferBench, infer};
pub use kernels::kernels;
pub use train::{TrainBench, train};

use serde_json::{Value, json};

/// Largest resident set of this process so far, in bytes (Linux).
fn peak_rss() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = text.lines().find(|l| l.starts_with("VmHWM:"))?;
    line.split_whitespace().nth(1)?.parse::<u64>().ok().map(|kib| kib * 1024)
}

/// The middle of some measurements.
fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

/// Three digits behind the point are more than a measurement has.
fn rounded(value: f64) -> Value {
    json!((value * 1e3).round() / 1e3)
}
