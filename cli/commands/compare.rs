//! `flow compare [PIPELINE] RUN RUN`: parameters, metrics, artifacts and times side by side.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use flow_cache::{ActionKey, Cache};
use flow_engine::explain::{leaves, show};
use flow_engine::kind::show_path;
use flow_engine::problem::Problem;
use serde_json::{Value, json};

use crate::args::CompareArgs;
use crate::context::{cache_dir_here, cache_dir_of, runs_of};
use crate::display::amounts::seconds;
use crate::failure::Failure;
use crate::print::print;

/// One stage of one run, flattened to named values.
#[derive(Default)]
struct Row {
    values: BTreeMap<String, String>,
}

pub fn compare(args: &CompareArgs) -> Result<u8, Failure> {
    let (pipeline, before, after) = meant(&args.what)?;
    let dir = match &pipeline {
        Some(pipeline) => cache_dir_of(pipeline, args.cache_dir.as_ref())?,
        None => args.cache_dir.clone().map_or_else(cache_dir_here, Ok)?,
    };
    let cache = Cache::open(&dir)?;
    let newest = || Ok::<_, Failure>(cache.runs(1)?.first().and_then(|run| Some(PathBuf::from(run["pipeline"].as_str()?))));
    let runs = match pipeline.map_or_else(newest, |pipeline| Ok(Some(pipeline)))? {
        Some(pipeline) => runs_of(&cache, &pipeline, usize::MAX)?,
        None => Vec::new(),
    };
    let (before, after) = (find(&cache, &runs, &before)?, find(&cache, &runs, &after)?);
    let (old, new) = (rows(&cache, &before)?, rows(&cache, &after)?);
    let mut out = Vec::new();
    for stage in old.keys().chain(new.keys()).collect::<BTreeSet<_>>() {
        let none = Row::default();
        let (a, b) = (old.get(stage).unwrap_or(&none), new.get(stage).unwrap_or(&none));
        for name in a.values.keys().chain(b.values.keys()).collect::<BTreeSet<_>>() {
            let (x, y) = (a.values.get(name), b.values.get(name));
            if x != y {
                out.push((stage.clone(), name.clone(), x.cloned(), y.cloned()));
            }
        }
    }
    if args.json {
        let rows: Vec<_> = out.iter().map(|(s, n, a, b)| json!({ "stage": s, "what": n, "before": a, "after": b })).collect();
        print(&json!({ "before": before["id"], "after": after["id"], "differences": rows }).to_string());
        return Ok(0);
    }
    let text = |v: &Option<String>| v.clone().unwrap_or_else(|| "–".into());
    let width = |f: &dyn Fn(&Line) -> usize| out.iter().map(f).max().unwrap_or(0);
    let (w0, w1, w2) = (width(&|r| r.0.len()), width(&|r| r.1.len()), width(&|r| text(&r.2).chars().count()).max(24));
    print(&format!("{:w0$}  {:w1$}  {:w2$}  {}", "", "", word(&before["id"]), word(&after["id"])));
    let took = |r: &Value| seconds(r["seconds"].as_f64().unwrap_or(0.0));
    print(&format!("{:w0$}  {:w1$}  {:w2$}  {}", "", "wall time", took(&before), took(&after)));
    for (stage, name, a, b) in &out {
        print(&format!("{stage:w0$}  {name:w1$}  {:w2$}  {}", text(a), text(b)));
    }
    if out.is_empty() {
        print("no stage differs");
    }
    Ok(0)
}

/// The pipeline, if one is named, and the two runs.
fn meant(what: &[String]) -> Result<(Option<PathBuf>, String, String), Failure> {
    let is_file = |text: &String| Path::new(text).is_file();
    let (pipeline, runs) = match what.split_first() {
        Some((first, rest)) if is_file(first) || rest.len() == 2 => (Some(PathBuf::from(first)), rest),
        _ => (None, what),
    };
    let (before, after) = match runs {
        [] => ("last~1", "last"),
        [before] => (before.as_str(), "last"),
        [before, after] => (before.as_str(), after.as_str()),
        _ => return Err(Problem::new("more than two runs").help("flow compare [PIPELINE] last~1 last").into()),
    };
    Ok((pipeline, before.to_owned(), after.to_owned()))
}

/// Stage, what differs of it, and the two values.
type Line = (String, String, Option<String>, Option<String>);

fn word(value: &Value) -> &str {
    value.as_str().unwrap_or("?")
}

/// A run by id or by `last~N`; a run that found everything as another left it has that one's stages.
fn find(cache: &Cache, runs: &[Value], name: &str) -> Result<Value, Failure> {
    let missing = || Problem::new(format!("there is no run `{name}` of this pipeline")).help("`flow log` lists the runs");
    let mut run = match name.strip_prefix("last") {
        Some("") => runs.first().cloned(),
        Some(rest) => rest.strip_prefix('~').and_then(|n| n.parse::<usize>().ok()).and_then(|n| runs.get(n).cloned()),
        None => cache.run(name)?,
    }
    .ok_or_else(missing)?;
    if let Some(like) = run["like"].as_str()
        && let Some(other) = cache.run(like)?
    {
        run["stages"] = other["stages"].clone();
    }
    Ok(run)
}

fn rows(cache: &Cache, run: &Value) -> Result<BTreeMap<String, Row>, Failure> {
    let mut rows = BTreeMap::new();
    for stage in run["stages"].as_array().into_iter().flatten() {
        let mut row = Row::default();
        let mut put = |name: String, value: String| row.values.insert(name, value);
        for (name, value) in stage["metrics"].as_object().into_iter().flatten() {
            put(format!("metric {name}"), show(value));
        }
        for (port, digest) in stage["outputs"].as_object().into_iter().flatten() {
            put(format!("artifact {port}"), word(digest).chars().take(12).collect());
        }
        if let Some(s) = stage["seconds"].as_f64() {
            put("time".into(), seconds(s));
        }
        put("kind".into(), word(&stage["kind"]).into());
        if matches!(word(&stage["state"]), "failed" | "skipped" | "withheld") {
            put("state".into(), word(&stage["state"]).into());
        }
        if let Some(key) = stage["key"].as_str().and_then(|k| k.parse::<ActionKey>().ok())
            && let Some(parts) = cache.parts(&key)?
        {
            put("revision".into(), parts["revision"].to_string());
            for (path, value) in leaves(&parts["params"]) {
                put(show_path(&path), show(&value));
            }
        }
        rows.insert(word(&stage["stage"]).to_owned(), row);
    }
    Ok(rows)
}
