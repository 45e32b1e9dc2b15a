//! `run --profile`: a Chrome trace of what ran when, and the critical path.

use std::collections::HashMap;
use std::io::Read;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use flow_engine::events::{RunEvent, RunSink};
use flow_engine::plan::Plan;
use serde_json::json;

use crate::display::amounts::seconds;

/// The spans of a run.
pub struct Profile {
    began: Instant,
    spans: Mutex<Vec<Span>>,
}

struct Span {
    stage: String,
    kind: String,
    /// Seconds since the run began.
    from: f64,
    /// `None` while it runs.
    seconds: Option<f64>,
    ok: bool,
}

impl Default for Profile {
    fn default() -> Self {
        Self { began: Instant::now(), spans: Mutex::default() }
    }
}

/// How a trace begins.
const BEGINNING: &[u8; 38] = br#"{"displayTimeUnit":"ms","traceEvents":"#;

impl Profile {
    /// A sink that notes and passes on.
    pub fn beside(self: Arc<Self>, next: Arc<dyn RunSink>) -> impl RunSink {
        move |event: RunEvent| {
            self.note(&event);
            next.emit(event);
        }
    }

    fn note(&self, event: &RunEvent) {
        let now = self.began.elapsed().as_secs_f64();
        let mut spans = self.spans.lock().unwrap_or_else(PoisonError::into_inner);
        let mut end = |stage: &str, took: Option<f64>, ok: bool| {
            if let Some(span) = spans.iter_mut().rev().find(|s| s.stage == stage && s.seconds.is_none()) {
                span.seconds = Some(took.unwrap_or(now - span.from));
                span.ok = ok;
            }
        };
        match event {
            RunEvent::StageStarted { stage, kind, .. } => {
                spans.push(Span { stage: stage.clone(), kind: kind.clone(), from: now, seconds: None, ok: true });
            }
            RunEvent::StageFinished { stage, seconds } => end(stage, Some(*seconds), true),
            RunEvent::StageChecked { stage, difference } => end(stage, None, difference.is_none()),
            RunEvent::StageFailed { stage, .. } | RunEvent::StageRetried { stage, .. } => end(stage, None, false),
            _ => {}
        }
    }

    /// Whether a file may become a trace: there is none, or an earlier trace.
    pub fn may_replace(file: &Path) -> bool {
        // Nothing is lost with an empty file, and a device or a pipe is not replaced but written to.
        if std::fs::metadata(file).is_ok_and(|there| there.len() == 0 || !(there.is_file() || there.is_dir())) {
            return true;
        }
        let mut start = [0; BEGINNING.len()];
        match std::fs::File::open(file) {
            Err(e) => e.kind() == std::io::ErrorKind::NotFound,
            Ok(mut there) => there.read_exact(&mut start).is_ok() && start == *BEGINNING,
        }
    }

    /// Writes the trace event format that Chrome's and Perfetto's viewers read; a lane per stage that ran at once.
    pub fn write(&self, file: &Path) -> std::io::Result<()> {
        let spans = self.spans.lock().unwrap_or_else(PoisonError::into_inner);
        let mut lanes: Vec<f64> = Vec::new();
        let mut events = Vec::new();
        for span in spans.iter() {
            let to = span.from + span.seconds.unwrap_or(0.0);
            let lane = lanes.iter().position(|busy| *busy <= span.from).unwrap_or(lanes.len());
            if lane == lanes.len() {
                lanes.push(to);
            } else {
                lanes[lane] = to;
            }
            let micros = |s: f64| (s * 1e6).round();
            events.push(json!({
                "name": span.stage, "cat": span.kind, "ph": "X", "pid": 1, "tid": lane + 1,
                "ts": micros(span.from), "dur": micros(to - span.from), "args": { "kind": span.kind, "ok": span.ok },
            }));
        }
        let mut text = BEGINNING.to_vec();
        serde_json::to_writer(&mut text, &events)?;
        text.push(b'}');
        std::fs::write(file, text)
    }

    /// The chain of executed stages that nothing could have shortened by running more at once.
    pub fn critical_path(&self, plan: &Plan, total: f64) -> String {
        let spans = self.spans.lock().unwrap_or_else(PoisonError::into_inner);
        let took: HashMap<&str, f64> = spans.iter().filter_map(|s| Some((s.stage.as_str(), s.seconds?))).collect();
        let mut best: Vec<(f64, Option<usize>)> = vec![(0.0, None); plan.stages.len()];
        for id in plan.order() {
            let stage = plan.stage(*id);
            let before = stage.needs().into_iter().map(|n| (best[n.0].0, n.0)).max_by(|a, b| a.0.total_cmp(&b.0));
            let (head, from) = before.map_or((0.0, None), |(s, n)| (s, Some(n)));
            best[id.0] = (head + took.get(stage.name.as_str()).copied().unwrap_or(0.0), from);
        }
        let mut at = (0..best.len()).max_by(|a, b| best[*a].0.total_cmp(&best[*b].0));
        let length = at.map_or(0.0, |i| best[i].0);
        let mut path = Vec::new();
        while let Some(i) = at {
            if let Some(s) = took.get(plan.stages[i].name.as_str()) {
                path.push(format!("{} {}", plan.stages[i].name, seconds(*s)));
            }
            at = best[i].1;
        }
        path.reverse();
        if path.is_empty() {
            return "critical path: nothing was executed".into();
        }
        format!("critical path: {} of {}: {}", seconds(length), seconds(total), path.join(" → "))
    }
}
