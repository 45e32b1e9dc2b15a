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

const PIPELINE: &str = "pipelines/ablation.yaml";
const ROWS: &str = "docs/recipe";
const PAGE: &str = "docs/recipe.md";

fn main() {
    match std::env::args().nth(1).as_deref() {
        Some("rows") => rows(),
        Some("tables") => tables(),
        _ => {
            eprintln!("recipe rows | recipe tables");
            std::process::exit(2);
        }
    }
}

fn flow(args: &[&str]) -> Option<Vec<u8>> {
    let program = std::env::var("FLOW").unwrap_or_else(|_| "target/release/flow".into());
    let out = Command::new(&program).args(args).output().unwrap_or_else(|e| panic!("cannot start {program}: {e}"));
    out.status.success().then_some(out.stdout)
}

/// `lr[lr=0.05,seed=2]` → `lr` and its axes.
fn parts(stage: &str) -> (String, BTreeMap<String, String>) {
    let (factor, rest) = stage.split_once('[').unwrap_or((stage, "]"));
    let axes = rest.trim_end_matches(']').split(',').filter_map(|a| a.split_once('='));
    (factor.into(), axes.map(|(k, v)| (k.into(), v.into())).collect())
}

fn rows() {
    let status: Value = serde_json::from_slice(&flow(&["status", PIPELINE, "--json"]).expect("the pipeline is read")).expect("JSON");
    let work = tempfile::tempdir().expect("a directory");
    let commit = Command::new("git").args(["rev-parse", "--short", "HEAD"]).output().map(|o| o.stdout).unwrap_or_default();
    std::fs::create_dir_all(ROWS).expect("a directory");
    for stage in status["stages"].as_array().expect("a list").iter().filter(|s| s["up_to_date"] == true) {
        let name = stage["stage"].as_str().expect("a name");
        let (factor, mut settings) = parts(name);
        let file = Path::new(ROWS).join(format!("{}.json", name.trim_end_matches(']').replace(['[', '/'], ",")));
        if file.exists() {
            continue;
        }
        let artifact = |port: &str| -> Option<Value> {
            let to = work.path().join(port);
            let _ = std::fs::remove_file(&to);
            flow(&["get", PIPELINE, &format!("{name}.{port}"), "--to", to.to_str()?])?;
            serde_json::from_slice(&std::fs::read(to).ok()?).ok()
        };
        let seed = settings.remove("seed");
        let mut row = json!({"factor": factor, "settings": settings, "seed": seed, "seconds": stage["seconds"], "device": stage["device"], "key": stage["key"],
            "commit": String::from_utf8_lossy(&commit).trim()});
        if let Some(mut log) = artifact("log").filter(|l| l["curve"].is_array()) {
            row["validation"] = log["validation"]["bits_per_byte"].clone();
            row["tokens"] = log["seen_tokens"].clone();
            log.as_object_mut().expect("an object").retain(|k, _| !matches!(k.as_str(), "curve" | "health"));
            row["training"] = log;
        } else if let Some(report) = artifact("report").filter(|r| r["bits_per_byte"].is_number()) {
            row["heldout"] = report["bits_per_byte"].clone();
            row["model"] = report;
        } else {
            continue;
        }
        std::fs::write(&file, serde_json::to_string_pretty(&row).expect("JSON") + "\n").expect("writes");
        println!("{}", file.display());
    }
}

/// Figures of one setting, over its seeds.
#[derive(Default)]
struct Group {
    label: String,
    tokens: f64,
    seconds: Vec<f64>,
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
fn groups() -> BTreeMap<String, Vec<Group>> {
    let mut files: Vec<_> = std::fs::read_dir(ROWS).expect("rows").flatten().map(|f| f.path()).collect();
    files.retain(|f| f.extension().is_some_and(|e| e == "json"));
    files.sort();
    let mut all: BTreeMap<String, Vec<Group>> = BTreeMap::new();
    for file in files {
        let row: Value = serde_json::from_slice(&std::fs::read(&file).expect("a row")).expect("JSON");
        let settings = row["settings"].as_object().expect("settings");
        let label = settings.iter().map(|(k, v)| format!("{k} {}", v.as_str().unwrap_or_default())).collect::<Vec<_>>().join(", ");
        let list = all.entry(row["factor"].as_str().expect("a factor").into()).or_default();
        let at = list.iter().position(|g| g.label == label).unwrap_or_else(|| {
            list.push(Group { label, ..Group::default() });
            list.len() - 1
        });
        let group = &mut list[at];
        group.figures.extend(row["heldout"].as_f64().or(row["validation"].as_f64()));
        group.seconds.extend(row["seconds"].as_f64());
        group.tokens = row["tokens"].as_f64().unwrap_or_default();
    }
    all
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

fn tables() {
    let (all, page) = (groups(), std::fs::read_to_string(PAGE).expect("the page"));
    let sd = typical(&all);
    let mut out = String::new();
    let mut rest = page.as_str();
    while let Some(at) = rest.find("<!-- rows:") {
        let end = rest[at..].find("-->").expect("a closed comment") + at;
        let close = rest[end..].find("<!-- end -->").expect("`<!-- end -->`") + end;
        let factors: Vec<&str> = rest[at + "<!-- rows:".len()..end].split(',').map(str::trim).collect();
        let _ = write!(out, "{}-->\n{}", &rest[..end], table(&factors, &all, sd));
        rest = &rest[close..];
    }
    std::fs::write(PAGE, out + rest).expect("writes");
    println!("{PAGE}: one figure varies by {sd:.4} from seed to seed");
}
