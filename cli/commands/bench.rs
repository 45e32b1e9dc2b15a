//! `flow bench`.

use flow_engine::plugin::StageError;
use flow_engine::problem::Problem;
use flow_lm::config::Preset;
use flow_lm::graph::Storage;
use flow_lm::graph::{Moments, Optimizer};
use flow_lm::train::Recipe;
use flow_shaders::device::open;
use flow_shaders::kernels::attention::Cached;
use flow_stages::bench::{self, InferBench, TrainBench};
use serde_json::Value;

use crate::args::{BenchCommand, BenchTrainArgs, KvForm};
use crate::failure::Failure;
use crate::print::{print, say};

pub fn bench(command: &BenchCommand) -> Result<u8, Failure> {
    let on = match command {
        BenchCommand::Train(a) => &a.on,
        BenchCommand::Infer(a) => &a.on,
        BenchCommand::Kernels(on) => on,
    };
    let device = open(&on.device, on.threads.unwrap_or(0)).map_err(|e| Failure::Broken(e.to_string()))?;
    let report = match command {
        BenchCommand::Train(a) => bench::train(&device, &training(a)?),
        BenchCommand::Infer(a) => {
            let cache = match a.kv {
                KvForm::F32 => Cached::Float,
                KvForm::F16 => Cached::Half,
                KvForm::Int8 => Cached::Int8,
            };
            let (prompt, decode, batch) = (a.prompt, a.decode, a.batch);
            let b = InferBench { prompt, decode, batch, repeat: a.repeat, takes: a.takes, cache, context: a.context, score: a.score };
            bench::infer(&device, &a.model, &b)
        }
        BenchCommand::Kernels(_) => bench::kernels(&device),
    };
    match report {
        Ok(report) if on.json => print(&report.to_string()),
        Ok(report) => show(&report),
        Err(e) => return Ok(failed(&e)),
    }
    Ok(0)
}

fn training(a: &BenchTrainArgs) -> Result<TrainBench, Failure> {
    let preset = Preset::ALL.into_iter().find(|p| p.name() == a.preset).ok_or_else(|| {
        let names = Preset::ALL.map(Preset::name).join(", ");
        Problem::new(format!("no preset is called `{}`: there are {names}", a.preset))
    })?;
    let optimizer = if a.muon { Optimizer::Muon } else { Optimizer::Adamw };
    let moments = if a.int8_moments { Moments::Int8 } else { Moments::Float32 };
    let storage = if a.float16_storage { Storage::Float16 } else { Storage::Float32 };
    let (batch, seq, bits, steps, recompute) = (a.batch, a.seq, a.bits, a.steps, a.recompute);
    let recipe = Recipe::default();
    let ns = Recipe { ns_steps: a.ns_steps.unwrap_or(recipe.ns_steps), ..recipe }.newton_schulz();
    Ok(TrainBench { preset, batch, seq, bits, steps, optimizer, ns, recompute, moments, storage })
}

fn failed(e: &StageError) -> u8 {
    say(&format!("error: {e}{}", e.help.as_ref().map_or(String::new(), |h| format!("\n  help: {h}"))));
    1
}

/// A line for each figure; kernels as a table.
fn show(report: &Value) {
    for (name, value) in report.as_object().into_iter().flatten() {
        let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
        match value {
            Value::Array(rows) => rows.iter().for_each(kernel),
            Value::Object(parts) => parts.iter().for_each(|(part, value)| print(&format!("{:24}  {value}", format!("{name} {part}")))),
            Value::Number(n) if name.ends_with("_bytes") => {
                print(&format!("{name:24}  {} ({} MiB)", n, n.as_u64().unwrap_or(0) >> 20));
            }
            _ => print(&format!("{name:24}  {text}")),
        }
    }
}

fn kernel(row: &Value) {
    let text = |key: &str| row[key].as_str().unwrap_or_default();
    let number = |key: &str| row[key].as_f64().unwrap_or(f64::NAN);
    let (ms, rate, share) = (number("ms"), number("rate"), 100.0 * number("share_of_peak"));
    print(&format!("{:14}  {:28}  {ms:9.3} ms  {rate:9.1} {:8}  {share:5.1} % of peak", text("kernel"), text("shape"), text("unit")));
}
