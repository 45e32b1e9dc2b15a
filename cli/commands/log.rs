//! `flow log [PIPELINE]`: the last runs.

use flow_cache::Cache;
use indexmap::IndexMap;
use serde_json::Value;

use crate::args::LogArgs;
use crate::context::{cache_dir_here, cache_dir_of, runs_of};
use crate::display::amounts::seconds;
use crate::failure::Failure;
use crate::print::print;

pub fn log(args: &LogArgs) -> Result<u8, Failure> {
    let dir = match &args.pipeline {
        Some(pipeline) => cache_dir_of(pipeline, args.cache_dir.as_ref())?,
        None => args.cache_dir.clone().map_or_else(cache_dir_here, Ok)?,
    };
    let cache = Cache::open(&dir)?;
    let runs = match &args.pipeline {
        Some(pipeline) => runs_of(&cache, pipeline, usize::MAX)?,
        None => cache.runs(usize::MAX)?,
    };
    // The newest first, and each pipeline's runs together, numbered as `flow compare` takes them.
    let mut by_pipeline: IndexMap<&str, Vec<&Value>> = IndexMap::new();
    for run in &runs {
        by_pipeline.entry(run["pipeline"].as_str().unwrap_or("?")).or_default().push(run);
    }
    for (pipeline, runs) in &by_pipeline {
        if by_pipeline.len() > 1 && !args.json {
            print(pipeline);
        }
        for (i, record) in runs.iter().take(args.count).enumerate() {
            if args.json { print(&record.to_string()) } else { print(&line(i, record)) }
        }
    }
    Ok(0)
}

/// How `flow compare` takes the run that was `back` runs before the last one.
fn number(back: usize) -> String {
    if back == 0 { "last".into() } else { format!("last~{back}") }
}

fn line(back: usize, record: &Value) -> String {
    let count = |state: &str| record["stages"].as_array().into_iter().flatten().filter(|s| s["state"] == state).count();
    let word = match (record["ok"].as_bool(), record["interrupted"].as_bool()) {
        (Some(true), _) => "ok",
        (_, Some(true)) => "interrupted",
        _ if record["refused"].as_array().is_some_and(|r| !r.is_empty()) => "refused",
        _ => "failed",
    };
    let pairs = |field: &str, flag: &str| {
        let pairs: Vec<(String, String)> = serde_json::from_value(record[field].clone()).unwrap_or_default();
        pairs.iter().map(|(name, value)| format!("  --{flag} {name}={value}")).collect::<String>()
    };
    format!(
        "{:8}  {}  {:11}  {}  {} executed, {} reused, {} failed, {}{}{}",
        number(back),
        record["id"].as_str().unwrap_or("?"),
        word,
        record["name"].as_str().unwrap_or("?"),
        count("executed"),
        record["reused"].as_u64().map_or_else(|| count("reused"), |n| n as usize),
        count("failed"),
        seconds(record["seconds"].as_f64().unwrap_or(0.0)),
        pairs("vars", "var"),
        pairs("sets", "set"),
    )
}
