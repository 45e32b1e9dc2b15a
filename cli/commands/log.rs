//! `flow log PIPELINE`: the last runs.

use flow_cache::Cache;

use crate::args::LogArgs;
use crate::commands::print;
use crate::context::cache_dir_of;
use crate::display::seconds;
use crate::failure::Failure;

pub fn log(args: &LogArgs) -> Result<u8, Failure> {
    let cache = Cache::open(&cache_dir_of(&args.pipeline, args.cache_dir.as_ref())?)?;
    for record in cache.runs(args.count)? {
        if args.json {
            print(&record.to_string());
            continue;
        }
        let count = |state: &str| record["stages"].as_array().into_iter().flatten().filter(|s| s["state"] == state).count();
        let word = match (record["ok"].as_bool(), record["interrupted"].as_bool()) {
            (Some(true), _) => "ok",
            (_, Some(true)) => "interrupted",
            _ if record["refused"].as_array().is_some_and(|r| !r.is_empty()) => "refused",
            _ => "failed",
        };
        print(&format!(
            "{}  {:11}  {}  {} executed, {} reused, {} failed, {}",
            record["id"].as_str().unwrap_or("?"),
            word,
            record["name"].as_str().unwrap_or("?"),
            count("executed"),
            record["reused"].as_u64().map_or_else(|| count("reused"), |n| n as usize),
            count("failed"),
            seconds(record["seconds"].as_f64().unwrap_or(0.0)),
        ));
    }
    Ok(0)
}
