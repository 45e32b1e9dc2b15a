//! `publish:` copies artifacts out of the cache when a run ends; nothing reads them back.

use flow_cache::Cache;

use crate::events::{RunEvent, RunSink};
use crate::plan::Plan;
use crate::run::RunOutcome;
use crate::schedule::State;

pub(crate) fn publish(plan: &Plan, cache: &Cache, states: &[State], sink: &dyn RunSink, outcome: &mut RunOutcome) {
    for (to, id, port) in &plan.publish {
        let stage = plan.stage(*id);
        let Some(artifact) = states[id.0].entry().and_then(|e| e.outputs.get(port)) else { continue };
        let path = plan.pipeline.root.join(to);
        match cache.export(artifact, &path) {
            Ok(written) => {
                sink.emit(RunEvent::Published { path: to.clone(), from: format!("{}.{port}", stage.name), written });
                outcome.published.push(path);
            }
            Err(e) => {
                sink.emit(RunEvent::PublishFailed { path: to.clone(), message: e.to_string() });
                outcome.publish_errors.push(format!("publish {to}: {e}"));
            }
        }
    }
}
