//! Gathers what a task tells: forwards it to the displays, keeps what the provenance needs.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use flow_cache::ActionProvenance;

use crate::clock::unix_now;
use crate::events::{RunEvent, RunSink};
use crate::plugin::TaskEvent;

const TAIL: usize = 20;

pub(super) struct Told {
    stage: String,
    sink: Arc<dyn RunSink>,
    metrics: BTreeMap<String, f64>,
    device: Option<String>,
    warnings: Vec<String>,
    log: VecDeque<String>,
}

impl Told {
    pub fn new(stage: &str, sink: Arc<dyn RunSink>) -> Self {
        Self { stage: stage.into(), sink, metrics: BTreeMap::new(), device: None, warnings: Vec::new(), log: VecDeque::new() }
    }

    pub fn take(&mut self, event: TaskEvent) {
        let stage = self.stage.clone();
        let event = match event {
            TaskEvent::Progress { done, total, unit } => RunEvent::StageProgress { stage, done, total, unit },
            TaskEvent::Metric { name, value } => {
                self.metrics.insert(name.clone(), value);
                RunEvent::StageMetric { stage, name, value }
            }
            TaskEvent::Log { message } => {
                self.remember(message.clone());
                RunEvent::StageLog { stage, message }
            }
            TaskEvent::Warning { message } => {
                self.remember(message.clone());
                self.warnings.push(message.clone());
                RunEvent::StageWarning { stage, message }
            }
            TaskEvent::Device { name } => {
                self.device = Some(name.clone());
                RunEvent::StageDevice { stage, name }
            }
        };
        self.sink.emit(event);
    }

    fn remember(&mut self, line: String) {
        if self.log.len() == TAIL {
            self.log.pop_front();
        }
        self.log.push_back(line);
    }

    /// The last log lines.
    pub fn tail(&self) -> Vec<String> {
        self.log.iter().cloned().collect()
    }

    pub fn provenance(self, seconds: f64) -> ActionProvenance {
        ActionProvenance {
            stage: self.stage,
            seconds,
            finished: unix_now(),
            device: self.device.unwrap_or_else(|| "cpu".into()),
            metrics: self.metrics,
            warnings: self.warnings,
        }
    }
}
