//! Figures as benchmarks give them.

use serde_json::{Value, json};

/// Largest resident set of this process so far, in bytes (Linux).
pub fn peak_rss() -> Option<u64> {
    flow_engine::memory::resident().map(|r| r.peak)
}

/// What the process holds now, in bytes.
pub fn resident() -> Option<u64> {
    flow_engine::memory::resident().map(|r| r.now)
}

/// The middle of some measurements.
pub fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

/// Three digits behind the point are more than a measurement has.
pub fn rounded(value: f64) -> Value {
    json!((value * 1e3).round() / 1e3)
}
