//! `flow traces …`: what a directory of traces holds.

use flow_engine::plugin::StageError;
use flow_engine::problem::Problem;
use flow_stages::distil::{Survey, TraceStats, head, survey};
use flow_stages::traces::merge;
use serde_json::json;

use crate::args::TracesCommand;
use crate::failure::Failure;
use crate::print::{print, say};

/// Bad rows that `check` names.
const NAMED: usize = 20;

pub fn traces(command: &TracesCommand) -> Result<u8, Failure> {
    match command {
        TracesCommand::Stats { dir, json } => {
            let found = survey(dir, 0).map_err(failed)?;
            if *json {
                print(&json!({ "meta": found.meta, "stats": found.stats }).to_string());
            } else {
                show(&found);
            }
        }
        TracesCommand::Head { dir, rows } => head(dir, *rows).map_err(failed)?.iter().for_each(|line| print(line)),
        TracesCommand::Check { dir, max_invalid, json } => {
            let found = survey(dir, NAMED).map_err(failed)?;
            let good = found.stats.invalid_share <= *max_invalid;
            if *json {
                print(&json!({ "ok": good, "stats": found.stats, "bad": found.bad }).to_string());
            } else {
                check(&found, *max_invalid);
            }
            return Ok(u8::from(!good));
        }
        TracesCommand::Merge { to, dirs } => {
            if to.exists() {
                return Err(Problem::new(format!("{} is there already", to.display())).help("name a directory that is not there").into());
            }
            let dirs: Vec<&std::path::Path> = dirs.iter().map(AsRef::as_ref).collect();
            let counts = merge(&dirs, to).map_err(failed)?;
            print(&format!("{}: {} sequences, {} rows, {} shards", to.display(), counts.sequences, counts.rows, counts.shards));
        }
    }
    Ok(0)
}

fn failed(error: StageError) -> Failure {
    let problem = Problem::new(error.message);
    match error.help {
        Some(help) => problem.help(help).into(),
        None => problem.into(),
    }
}

fn show(found: &Survey) {
    let (meta, s) = (&found.meta, &found.stats);
    let percent = |x: f64| format!("{:.2} %", 100.0 * x);
    let row = |name: &str, value: String| print(&format!("{name:22}  {value}"));
    row("teacher", meta.teacher.clone());
    row("method", format!("{}, {} candidates at most", meta.method_name(), meta.top_k));
    row("tokenizer", meta.tokenizer_hash.clone());
    row("projection", meta.projection.clone().unwrap_or_else(|| "none: the teacher's own tokens".into()));
    row("sequences", s.sequences.to_string());
    let sources: Vec<String> = s.rows_by_source.iter().map(|(k, v)| format!("{k} {v}")).collect();
    row("rows", format!("{} ({})", s.rows, sources.join(", ")));
    row("rows with targets", s.tokens.to_string());
    row("invalid rows", refused(s));
    row("coverage", percent(s.coverage));
    row("entropy", format!("{:.3} nats", s.entropy));
    row("candidates, mean", format!("{:.1}", s.mean_candidates));
    row("drawn is a candidate", percent(s.drawn_in_top_k));
    let taus: Vec<String> = meta.taus.iter().map(f32::to_string).collect();
    row("tails", if taus.is_empty() { "none".into() } else { format!("at {} in {}", taus.join(", "), percent(s.exact_tail_share)) });
    row("structural", percent(s.structural_share));
    row("scaled to mass 1", s.renormalised_rows.to_string());
    print("mass of Other");
    let most = s.other_mass.iter().map(|b| b.rows).max().unwrap_or(0).max(1);
    for bin in &s.other_mass {
        let bar = "█".repeat((40 * bin.rows / most) as usize);
        print(&format!("  up to {:<8}  {:>12}  {bar}", bin.up_to, bin.rows));
    }
}

fn refused(s: &TraceStats) -> String {
    let reasons: Vec<String> = s.invalid.iter().map(|(k, v)| format!("{k} {v}")).collect();
    let count: u64 = s.invalid.values().sum();
    if reasons.is_empty() { "0".into() } else { format!("{count} ({:.3} %): {}", 100.0 * s.invalid_share, reasons.join(", ")) }
}

fn check(found: &Survey, max_invalid: f64) {
    for bad in &found.bad {
        print(&format!(
            "{} row {} (prompt {} sample {} step {}): {}",
            bad.file, bad.row, bad.prompt_idx, bad.sample_idx, bad.step_idx, bad.reason
        ));
    }
    let s = &found.stats;
    print(&format!("{} rows, invalid: {}", s.rows, refused(s)));
    if s.invalid_share > max_invalid {
        say(&format!("error: more than {} % of the rows are invalid", 100.0 * max_invalid));
    }
}
