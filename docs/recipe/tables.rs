//! Rows and tables of the recipe's ablation (`docs/recipe.md`).
//!
//! - `cargo run --release --example recipe -- rows`: every finished training and measurement of
//!   `pipelines/ablation.yaml` becomes a file in `docs/recipe/` that is not there yet: settings, seed, figures, action key, and
//!   the commit at which the row was made.
//! - `cargo run --release --example recipe -- tables`: `docs/recipe.md` gets its tables from these files.
//!
//! A table stands between `<!-- rows: BASE, FACTOR, … -->` and `<!-- end -->`. Both commands start at the project's root; `rows`
//! needs `target/release/flow`, or the program that `FLOW` names.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;
use std::process::Command;

use serde_json::{Value, json};

type Any<T> = Result<T, Box<dyn std::error::Error>>;

const PIPELINE: &str = "pipelines/ablation.yaml";
const ROWS: &str = "docs/recipe";
const PAGE: &str = "docs/recipe.md";

fn main() -> Any<()> {
    match std::env::args().nth(1).as_deref() {
        Some("rows") => rows(),
        Some("tables") => tables(),
        _ => Err("recipe rows | recipe tables".into()),
    }
}

/// What `flow` printed; nothing where it failed.
fn flow(args: &[&str]) -> Any<Option<Vec<u8>>> {
    let program = std::env::var("FLOW").unwrap_or_else(|_| "target/release/flow".into());
    let out = Command::new(&program).args(args).output().map_err(|e| format!("cannot start {program}: {e}"))?;
    Ok(out.status.success().then_some(out.stdout))
}

fn read(file: &Path) -> Any<String> {
    std::fs::read_to_string(file).map_err(|e| format!("{}: {e}; start at the project's root", file.display()).into())
}

/// A row, or which file is none.
fn row(file: &Path) -> Any<Value> {
    let row: Value = serde_json::from_str(&read(file)?).map_err(|e| format!("{}: {e}", file.display()))?;
    let whole = row["settings"].is_object() && row["factor"].is_string();
    if whole { Ok(row) } else { Err(format!("{}: no row: `factor` or `settings` is missing", file.display()).into()) }
}

/// `lr[lr=0.05,seed=2]` → `lr` and its axes.
fn parts(stage: &str) -> (String, BTreeMap<String, String>) {
    let (factor, rest) = stage.split_once('[').unwrap_or((stage, "]"));
    let axes = rest.trim_end_matches(']').split(',').filter_map(|a| a.split_once('='));
    (factor.into(), axes.map(|(k, v)| (k.into(), v.into())).collect())
}

/// The artifact of a port as JSON; nothing where the stage has no such port.
fn artifact(stage: &str, port: &str, work: &Path) -> Any<Option<Value>> {
    let to = work.join(port);
    let _ = std::fs::remove_file(&to);
    let asked = flow(&["get", PIPELINE, &format!("{stage}.{port}"), "--to", &to.to_string_lossy()])?;
    Ok(asked.and_then(|_| serde_json::from_slice(&std::fs::read(to).ok()?).ok()))
}

fn rows() -> Any<()> {
    let status = flow(&["status", PIPELINE, "--json"])?.ok_or("`flow status` failed: start at the project's root")?;
    let status: Value = serde_json::from_slice(&status)?;
    let work = tempfile::tempdir()?;
    let commit = Command::new("git").args(["rev-parse", "--short", "HEAD"]).output().map(|o| o.stdout).unwrap_or_default();
    std::fs::create_dir_all(ROWS)?;
    for stage in status["stages"].as_array().into_iter().flatten().filter(|s| s["up_to_date"] == true) {
        let name = stage["stage"].as_str().unwrap_or_default();
        let (factor, mut settings) = parts(name);
        let file = Path::new(ROWS).join(format!("{}.json", name.trim_end_matches(']').replace(['[', '/'], ",")));
        if file.exists() {
            continue;
        }
        let seed = settings.remove("seed");
        let mut row = json!({"factor": factor, "settings": settings, "seed": seed, "seconds": stage["seconds"], "device": stage["device"],
            "key": stage["key"], "commit": String::from_utf8_lossy(&commit).trim()});
        if let Some(Value::Object(mut log)) = artifact(name, "log", work.path())?.filter(|l| l["curve"].is_array()) {
            row["validation"] = log.get("validation").map(|v| v["bits_per_byte"].clone()).unwrap_or_default();
            row["tokens"] = log.get("seen_tokens").cloned().unwrap_or_default();
            log.retain(|k, _| !matches!(k.as_str(), "curve" | "health"));
            row["training"] = Value::Object(log);
        } else if let Some(report) = artifact(name, "report", work.path())?.filter(|r| r["bits_per_byte"].is_number()) {
            row["heldout"] = report["bits_per_byte"].clone();
            row["model"] = report;
        } else {
            continue;
        }
        std::fs::write(&file, serde_json::to_string_pretty(&row)? + "\n")?;
        println!("{}", file.display());
    }
    Ok(())
}

/// Figures of one setting, over its seeds.
#[derive(Default)]
struct Group {
    label: String,
    tokens: f64,
    figures: Vec<f64>,
}

fn mean(x: &[f64]) -> f64 {
    x.iter().sum::<f64>() / x.len().max(1) as f64
}

/// Sum of squared differences from the mean.
fn squares(x: &[f64]) -> f64 {
    let m = mean(x);
    x.iter().map(|v| (v - m) * (v - m)).sum()
}

/// Every group by factor, in the order of file names; figures are held-out ones where a factor has them.
fn groups() -> Any<BTreeMap<String, Vec<Group>>> {
    let mut files: Vec<_> =
        std::fs::read_dir(ROWS).map_err(|e| format!("{ROWS}: {e}; start at the project's root"))?.flatten().map(|f| f.path()).collect();
    files.retain(|f| f.extension().is_some_and(|e| e == "json"));
    files.sort();
    let mut all: BTreeMap<String, Vec<Group>> = BTreeMap::new();
    for file in files {
        let row = row(&file)?;
        let label = row["settings"]
            .as_object()
            .into_iter()
            .flatten()
            .map(|(k, v)| format!("{k} {}", v.as_str().unwrap_or_default()))
            .collect::<Vec<_>>()
            .join(", ");
        let list = all.entry(row["factor"].as_str().unwrap_or_default().into()).or_default();
        let at = list.iter().position(|g| g.label == label).unwrap_or_else(|| {
            list.push(Group { label, ..Group::default() });
            list.len() - 1
        });
        let group = &mut list[at];
        group.figures.extend(row["heldout"].as_f64().or(row["validation"].as_f64()));
        group.tokens = row["tokens"].as_f64().unwrap_or_default();
    }
    Ok(all)
}

/// Standard deviation of one figure: the median of those of all settings with several seeds, so that one wild recipe does not
/// speak for the others.
fn typical(all: &BTreeMap<String, Vec<Group>>) -> f64 {
    let several = all.values().flatten().filter(|g| g.figures.len() > 1);
    let mut each: Vec<f64> = several.map(|g| (squares(&g.figures) / (g.figures.len() as f64 - 1.0)).sqrt()).collect();
    each.sort_by(f64::total_cmp);
    each.get(each.len() / 2).copied().unwrap_or_default()
}

fn table(factors: &[&str], all: &BTreeMap<String, Vec<Group>>, sd: f64) -> String {
    let error = |g: &Group| {
        let n = g.figures.len() as f64;
        if n > 1.0 { (squares(&g.figures) / (n - 1.0) / n).sqrt().max(sd / n.sqrt() / 2.0) } else { sd }
    };
    let base = factors.first().and_then(|f| all.get(*f)).and_then(|g| g.first());
    let mut out = "| factor | setting | tokens | seeds | bits per byte | against the first | verdict |\n| --- | --- | --- | --- | --- | --- | --- |\n".to_owned();
    for factor in factors {
        for g in all.get(*factor).into_iter().flatten() {
            let (m, e) = (mean(&g.figures), error(g));
            let against = base
                .filter(|b| !std::ptr::eq(*b, g))
                .map(|b| (m / mean(&b.figures) - 1.0, (e * e + error(b) * error(b)).sqrt(), m - mean(&b.figures)));
            let (change, verdict) = against.map_or((String::new(), "–"), |(share, both, difference)| {
                let verdict = if difference.abs() < 2.0 * both {
                    "undecided"
                } else if difference < 0.0 {
                    "better"
                } else {
                    "worse"
                };
                (format!("{:+.2} %", 100.0 * share), verdict)
            });
            let tokens = if g.tokens > 0.0 { format!("{:.0}", g.tokens) } else { "–".into() };
            let _ = writeln!(out, "| {factor} | {} | {tokens} | {} | {m:.4} ± {e:.4} | {change} | {verdict} |", g.label, g.figures.len());
        }
    }
    out
}

fn tables() -> Any<()> {
    let (all, page) = (groups()?, read(Path::new(PAGE))?);
    let sd = typical(&all);
    let mut out = String::new();
    let mut rest = page.as_str();
    while let Some(at) = rest.find("<!-- rows:") {
        let end = rest[at..].find("-->").ok_or("docs/recipe.md: a comment is not closed")? + at;
        let close = rest[end..].find("<!-- end -->").ok_or("docs/recipe.md: a table without `<!-- end -->`")? + end;
        let factors: Vec<&str> = rest[at + "<!-- rows:".len()..end].split(',').map(str::trim).collect();
        let _ = write!(out, "{}-->\n{}", &rest[..end], table(&factors, &all, sd));
        rest = &rest[close..];
    }
    std::fs::write(PAGE, out + rest)?;
    println!("{PAGE}: one figure varies by {sd:.4} from seed to seed");
    Ok(())
}
