//! `flow serve MODEL`.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use flow_engine::Registry;
use flow_engine::problem::Problem;
use flow_engine::stop::Stop;
use flow_lm::infer::KvCache;
use flow_serve::server::{Memory, Options, ServeError, Server};
use flow_shaders::device;

use crate::args::{KvForm, ServeArgs};
use crate::failure::Failure;
use crate::models;
use crate::print::{print, say};
use crate::signals::Listening;

pub fn serve(registry: &Registry, args: &ServeArgs) -> Result<u8, Failure> {
    let key = key(args)?;
    if !args.host.is_loopback() && key.is_none() && !args.no_key {
        let problem = Problem::new(format!("{} is open to other machines, and no key is asked for", args.host));
        return Err(problem.help("name the variable that holds one with --api-key-env, or say --no-key").into());
    }
    let opened = models::open(registry, &args.model, &args.overrides)?;
    let device = device::open(&args.overrides.device, args.overrides.threads.unwrap_or(0)).map_err(|e| Failure::Broken(e.to_string()))?;
    let model = opened.model;
    let name = args.name.clone().unwrap_or_else(|| models::name(&args.model));
    let options = Options {
        address: SocketAddr::new(args.host, args.port),
        name: name.clone(),
        slots: args.slots,
        context: args.context.unwrap_or(model.checkpoint.config.seq.min(4096)),
        waiting: args.queue,
        takes: models::takes(&model, args.activations)?,
        cache: match args.kv {
            KvForm::F32 => KvCache::Float32,
            KvForm::F16 => KvCache::Float16,
            KvForm::Int8 => KvCache::Int8,
        },
        key,
        score: args.score,
        grace: Duration::from_secs(args.grace),
    };
    let server = Server::new(&device, model, options).map_err(|e| match e {
        ServeError::Listen(..) => Failure::from(Problem::new(e.to_string()).help("take another with --port")),
        other => Failure::Broken(other.to_string()),
    })?;
    let Memory { slots: (slots, tokens), cache, all } = server.memory();
    let (cache, all) = (mib(cache), mib(all));
    say(&format!("{slots} slots of {tokens} tokens: {cache} MiB of keys and values, {all} MiB in all, on {}", device.name()));
    let stop = Arc::new(Stop::default());
    let _listening = Listening::of(&stop, false);
    print(&format!("{name} on http://{}/v1", server.address()));
    let asked = stop.clone();
    server.run(async move { asked.reached(1).await }).map_err(|e| Failure::Broken(e.to_string()))?;
    Ok(0)
}

fn mib(bytes: u64) -> String {
    format!("{:.1}", bytes as f64 / f64::from(1 << 20))
}

/// The key, out of the variable that is named.
fn key(args: &ServeArgs) -> Result<Option<String>, Failure> {
    let Some(name) = &args.api_key_env else { return Ok(None) };
    match std::env::var(name) {
        Ok(key) if !key.is_empty() => Ok(Some(key)),
        _ => Err(Problem::new(format!("--api-key-env {name}: the variable is not set, or empty")).into()),
    }
}
