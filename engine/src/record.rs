//! `runs/<id>.json`: what was asked, executed, reused, and why.

use std::time::SystemTime;

use flow_cache::{Cache, CacheError};
use serde_json::{Value, json};

use crate::plan::{Plan, StageId};
use crate::run::outcome::RunOutcome;
use crate::schedule::states::{State, States};

/// An id that sorts by time and differs between processes: `20260131T235959.123Z-4711`.
pub fn run_id(at: SystemTime) -> String {
    let since = at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let seconds = since.as_secs();
    let (year, month, day) = civil((seconds / 86_400) as i64);
    let (h, m, s) = (seconds / 3600 % 24, seconds / 60 % 60, seconds % 60);
    format!("{year:04}{month:02}{day:02}T{h:02}{m:02}{s:02}.{:03}Z-{}", since.subsec_millis(), std::process::id())
}

/// Year, month and day of a number of days since 1970 (Hinnant, "chrono-compatible low-level date algorithms").
pub fn civil(days: i64) -> (i64, i64, i64) {
    let z = days + 719_468;
    let era = z.div_euclid(146_097);
    let doe = z.rem_euclid(146_097);
    let yoe = (doe - doe / 1460 + doe / 36_524 - doe / 146_096) / 365;
    let doy = doe - (365 * yoe + yoe / 4 - yoe / 100);
    let mp = (5 * doy + 2) / 153;
    let month = if mp < 10 { mp + 3 } else { mp - 9 };
    (yoe + era * 400 + i64::from(month <= 2), month, doy - (153 * mp + 2) / 5 + 1)
}

pub(crate) fn write(
    plan: &Plan,
    cache: &Cache,
    selected: &[StageId],
    states: &States,
    outcome: &RunOutcome,
    started: SystemTime,
) -> Result<(), CacheError> {
    let pipeline = plan.pipeline.file.to_string_lossy().into_owned();
    let mut stages = Vec::new();
    let done = |id: &StageId| states.entry(*id).map(|e| (plan.stage(*id).name.as_str(), e.key));
    cache.set_latest(&pipeline, selected.iter().filter_map(done))?;
    for &id in selected {
        let stage = plan.stage(id);
        let state = &states[id];
        let mut row = json!({ "stage": stage.name, "kind": stage.kind.name(), "state": state.word() });
        match state {
            State::Done { entry, causes, .. } => {
                row["key"] = json!(entry.key);
                row["seconds"] = json!(entry.provenance.seconds);
                row["device"] = json!(entry.provenance.device);
                row["metrics"] = json!(entry.provenance.metrics);
                row["causes"] = json!(causes);
                row["outputs"] = json!(entry.outputs.iter().map(|(p, a)| (p, a.digest)).collect::<std::collections::BTreeMap<_, _>>());
            }
            State::Failed { message, .. } => row["message"] = json!(message),
            State::Skipped { because, .. } => row["because"] = json!(because),
            _ => {}
        }
        stages.push(row);
    }
    let started = started.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs_f64();
    let record = json!({
        "format": 1,
        "id": outcome.run,
        "pipeline": pipeline,
        "name": plan.pipeline.name,
        "vars": plan.pipeline.overrides.vars,
        "sets": plan.pipeline.overrides.sets,
        "started": started,
        "seconds": outcome.seconds,
        "ok": outcome.ok(),
        "interrupted": outcome.interrupted,
        "refused": outcome.refused,
        "headline": outcome.headline.iter().cloned().collect::<std::collections::BTreeMap<_, _>>(),
        "stages": stages,
    });
    cache.record_run(&outcome.run, &record)
}

/// The record of a run that found everything as run `like` left it.
pub(crate) fn write_like(cache: &Cache, like: &Value, id: &str, started: SystemTime, seconds: f64) -> Result<(), CacheError> {
    let started = started.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs_f64();
    let mut record = like.clone();
    record["id"] = json!(id);
    record["started"] = json!(started);
    record["seconds"] = json!(seconds);
    cache.record_run(id, &record)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn ids_sort_by_time() {
        assert_eq!(civil(0), (1970, 1, 1));
        assert_eq!(civil(19_782), (2024, 2, 29));
        let id = |s| run_id(SystemTime::UNIX_EPOCH + Duration::from_secs(s));
        assert!(id(1_709_251_199).starts_with("20240229T235959"));
        assert!(id(1_709_251_199) < id(1_709_251_200));
    }
}
