//! Why a stage runs: the exact difference to the last time.

use std::collections::{BTreeMap, BTreeSet};

use flow_cache::{ActionEntry, ActionKey, Cache, CacheError, Lookup};
use serde_json::Value;

use crate::key::KeyParts;
use crate::kind::show_path;
use crate::plan::{Origin, Plan, StageId, json_pointer};

/// The parts under which a stage of this pipeline was last made or reused.
pub fn earlier(cache: &Cache, plan: &Plan, id: StageId) -> Result<Option<KeyParts>, CacheError> {
    let pipeline = plan.pipeline.file.to_string_lossy();
    let Some(key) = cache.latest(&pipeline, &plan.stage(id).name)? else { return Ok(None) };
    Ok(cache.parts(&key)?.and_then(|parts| serde_json::from_value(parts).ok()))
}

/// Why a stage whose key is known has to run. `ran` says which stages run or ran in this run.
pub fn causes(
    cache: &Cache,
    plan: &Plan,
    id: StageId,
    now: &KeyParts,
    found: &Lookup,
    ran: &dyn Fn(StageId) -> bool,
) -> Result<Vec<String>, CacheError> {
    if let Lookup::Broken { port, digest, damaged } = found {
        let how = if *damaged { "damaged" } else { "missing" };
        return Ok(vec![format!("output `{port}` is {how} in the cache (object {})", digest.short())]);
    }
    let Some(before) = earlier(cache, plan, id)? else { return Ok(vec!["never executed".into()]) };
    let mut causes = own_causes(plan, id, &before, now);
    causes.extend(input_causes(plan, id, &before, now, ran));
    if causes.is_empty() {
        causes.push("its result is no longer in the cache".into());
    }
    Ok(causes)
}

/// Differences in what the stage itself says: kind, revision, fingerprints, parameters, machine.
pub fn own_causes(plan: &Plan, id: StageId, before: &KeyParts, now: &KeyParts) -> Vec<String> {
    let mut causes = Vec::new();
    if before.kind != now.kind {
        return vec![format!("kind `{}` → `{}`", before.kind, now.kind)];
    }
    if before.format != now.format {
        causes.push(format!("key format {} → {}", before.format, now.format));
    }
    if before.revision != now.revision {
        causes.push(format!("recipe revision {} → {}", before.revision, now.revision));
    }
    let names: BTreeSet<_> = before.fingerprints.keys().chain(now.fingerprints.keys()).collect();
    for name in names {
        match (before.fingerprints.get(name), now.fingerprints.get(name)) {
            (Some(a), Some(b)) if a == b => {}
            (Some(_), Some(_)) => causes.push(format!("fingerprint `{name}` changed")),
            (None, _) => causes.push(format!("fingerprint `{name}` is new")),
            (_, None) => causes.push(format!("fingerprint `{name}` is gone")),
        }
    }
    let (old, new) = (leaves(&before.params), leaves(&now.params));
    let stage = plan.stage(id);
    let mut told = BTreeSet::new();
    for path in old.keys().chain(new.keys()) {
        let (a, b) = (old.get(path), new.get(path));
        if a == b || !told.insert(path.clone()) {
            continue;
        }
        if let Some(source) = stage.sources.iter().find(|s| path.starts_with(&s.at)) {
            let cause = match (&source.of, path[source.at.len()..].split_first()) {
                // One file of a glob: `files`, then its name.
                (Origin::Glob(..), Some((_, [name]))) => match (a, b) {
                    (Some(_), Some(_)) => format!("source file {name} changed"),
                    (None, _) => format!("source file {name} is new"),
                    (_, None) => format!("source file {name} is gone"),
                },
                (Origin::Env(name), _) => {
                    let text = |v: Option<&Value>| v.filter(|v| !v.is_null()).map_or_else(|| "not set".into(), show);
                    format!("environment variable {name} {} → {}", text(a), text(b))
                }
                _ => format!("{} changed", source.shown(&plan.pipeline.root)),
            };
            if !causes.contains(&cause) {
                causes.push(cause);
            }
            continue;
        }
        let text = |v: Option<&Value>| v.map_or_else(|| "not given".into(), show);
        causes.push(format!("`{}` {} → {}", show_path(path), text(a), text(b)));
    }
    if let (Some(a), Some(b)) = (&before.machine, &now.machine)
        && a != b
    {
        for (name, x, y) in [
            ("device", &a.device, &b.device),
            ("driver", &a.driver, &b.driver),
            ("CPU model", &a.cpu_model, &b.cpu_model),
            ("thread count", &a.threads.to_string(), &b.threads.to_string()),
        ] {
            if x != y {
                causes.push(format!("it measures, and the {name} changed: {x} → {y}"));
            }
        }
    }
    causes
}

fn input_causes(plan: &Plan, id: StageId, before: &KeyParts, now: &KeyParts, ran: &dyn Fn(StageId) -> bool) -> Vec<String> {
    let stage = plan.stage(id);
    let mut causes = Vec::new();
    let mut told = BTreeSet::new();
    for (i, (wire, input)) in stage.inputs.iter().zip(&now.inputs).enumerate() {
        let place = now.inputs[..i].iter().filter(|x| x.port == input.port).count();
        let old = before.inputs.iter().filter(|x| x.port == input.port).nth(place);
        let from = &plan.stage(wire.from).name;
        let cause = match old {
            Some(old) if old.digest == input.digest && old.ty == input.ty => continue,
            Some(_) if ran(wire.from) => format!("input `{}` changed: stage `{from}` re-ran", input.port),
            Some(_) => format!("input `{}` changed: it is now another artifact of `{from}`", input.port),
            None => format!("input `{}` is new: `{from}.{}`", input.port, wire.output),
        };
        if told.insert(cause.clone()) {
            causes.push(cause);
        }
    }
    for port in before.inputs.iter().map(|i| &i.port).collect::<BTreeSet<_>>() {
        let count = |parts: &KeyParts| parts.inputs.iter().filter(|i| i.port == *port).count();
        if count(before) > count(now) {
            causes.push(format!("input `{port}` has {} fewer artifacts", count(before) - count(now)));
        }
    }
    causes
}

/// The execution in the cache that was nearest to what a stage would be, of whatever pipeline.
pub struct Nearest {
    /// What it made.
    pub entry: ActionEntry,
    /// What differs now.
    pub differences: Vec<String>,
}

/// The execution of the same kind with the fewest differences to `now`, the latest of them; inputs count where they are known.
pub fn nearest(cache: &Cache, plan: &Plan, id: StageId, now: &KeyParts) -> Result<Option<Nearest>, CacheError> {
    let mut best: Option<Nearest> = None;
    for entry in cache.entries_of(&now.kind)? {
        let Some(parts) = cache.parts(&entry.key)? else { continue };
        let Ok(before) = serde_json::from_value::<KeyParts>(parts) else { continue };
        let mut differences = own_causes(plan, id, &before, now);
        if now.inputs.len() == plan.stage(id).inputs.len() {
            differences.extend(input_causes(plan, id, &before, now, &|_| false));
        }
        let nearer = best.as_ref().is_none_or(|b| {
            let rank = |n: usize, e: &ActionEntry| (n, std::cmp::Reverse(e.provenance.finished), e.key);
            rank(differences.len(), &entry) < rank(b.differences.len(), &b.entry)
        });
        if nearer {
            best = Some(Nearest { entry, differences });
        }
    }
    Ok(best)
}

/// Every scalar (and empty list or mapping) of a value by its path.
pub fn leaves(value: &Value) -> BTreeMap<Vec<String>, Value> {
    fn walk(value: &Value, path: &mut Vec<String>, out: &mut BTreeMap<Vec<String>, Value>) {
        let children: Vec<(String, &Value)> = match value {
            Value::Object(map) if !map.is_empty() => map.iter().map(|(k, v)| (k.clone(), v)).collect(),
            Value::Array(items) if !items.is_empty() => items.iter().enumerate().map(|(i, v)| (i.to_string(), v)).collect(),
            leaf => {
                out.insert(path.clone(), leaf.clone());
                return;
            }
        };
        for (key, child) in children {
            path.push(key);
            walk(child, path, out);
            path.pop();
        }
    }
    let mut out = BTreeMap::new();
    walk(value, &mut Vec::new(), &mut out);
    out
}

/// A value as a person would write it; an f32 that was widened is shown at its own precision.
pub fn show(value: &Value) -> String {
    if let Value::Number(n) = value
        && let Some(f) = n.as_f64()
        && n.is_f64()
        && f64::from(f as f32) == f
    {
        return (f as f32).to_string();
    }
    value.to_string()
}

/// The value of a parameter at `path`, for displays.
pub fn param<'a>(params: &'a Value, path: &[String]) -> Option<&'a Value> {
    params.pointer(&json_pointer(path))
}

/// The key under which the stage was last made or reused, if any.
pub fn latest_key(cache: &Cache, plan: &Plan, id: StageId) -> Result<Option<ActionKey>, CacheError> {
    cache.latest(&plan.pipeline.file.to_string_lossy(), &plan.stage(id).name)
}
